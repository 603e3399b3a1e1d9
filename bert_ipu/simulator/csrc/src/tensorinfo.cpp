// Shapes, element types and attributes of PopART.
#include <popart/attributes.hpp>
#include <popart/half.hpp>
#include <popart/operatoridentifier.hpp>
#include <popart/tensorinfo.hpp>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace popart {
namespace {

struct TypeEntry {
  DataType type;
  std::string name;
  int bytes;
};

const std::vector<TypeEntry> &typeTable() {
  static const std::vector<TypeEntry> table = {
      {DataType::UINT8, "UINT8", 1},        {DataType::INT8, "INT8", 1},
      {DataType::UINT16, "UINT16", 2},      {DataType::INT16, "INT16", 2},
      {DataType::INT32, "INT32", 4},        {DataType::INT64, "INT64", 8},
      {DataType::UINT32, "UINT32", 4},      {DataType::UINT64, "UINT64", 8},
      {DataType::BOOL, "BOOL", 1},          {DataType::FLOAT, "FLOAT", 4},
      {DataType::FLOAT16, "FLOAT16", 2},    {DataType::BFLOAT16, "BFLOAT16", 2},
      {DataType::DOUBLE, "DOUBLE", 8},      {DataType::STRING, "STRING", 1},
      {DataType::UNDEFINED, "UNDEFINED", 0}};
  return table;
}

const TypeEntry &entryOf(DataType type) {
  for (const TypeEntry &entry : typeTable())
    if (entry.type == type)
      return entry;
  throw error("Data type {} is not supported", static_cast<int>(type));
}

} // namespace

const std::string &nameOf(DataType type) { return entryOf(type).name; }

DataType dataTypeFromString(const std::string &name) {
  for (const TypeEntry &entry : typeTable())
    if (entry.name == name)
      return entry.type;
  throw error("No data type is called {}", name);
}

std::ostream &operator<<(std::ostream &os, const DataType &type) {
  return os << nameOf(type);
}

int64_t TensorInfo::nelms() const {
  return std::accumulate(shape_.begin(), shape_.end(), int64_t(1),
                         std::multiplies<int64_t>());
}

int64_t TensorInfo::nbytes() const { return nelms() * entryOf(type_).bytes; }

void TensorInfo::append(std::ostream &os) const {
  os << data_type() << " ";
  logging::detail::print(os, shape_);
}

std::ostream &operator<<(std::ostream &os, const TensorInfo &info) {
  info.append(os);
  return os;
}

Shape npOut(const Shape &s0, const Shape &s1, const std::string &debugName) {
  Shape out(std::max(s0.size(), s1.size()), 1);
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t a = i < s0.size() ? s0[s0.size() - 1 - i] : 1;
    const int64_t b = i < s1.size() ? s1[s1.size() - 1 - i] : 1;
    if (a != b && a != 1 && b != 1)
      throw error("'{}': shapes {} and {} do not broadcast", debugName, s0, s1);
    out[out.size() - 1 - i] = a == 1 ? b : a;
  }
  return out;
}

TensorInfo npOut(const TensorInfo &i0, const TensorInfo &i1, bool checkDataType,
                 const std::string &debugName) {
  if (checkDataType && i0.dataType() != i1.dataType())
    throw error("'{}': operands have types {} and {}", debugName, i0.dataType(),
                i1.dataType());
  return {i0.dataType(), npOut(i0.shape(), i1.shape(), debugName)};
}

std::ostream &operator<<(std::ostream &os, const OperatorIdentifier &opid) {
  return os << opid.domain << "." << opid.type << ":" << opid.version;
}

Half::Half(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  std::memcpy(&bits_, &half, sizeof(bits_));
}

Half::operator float() const {
  _Float16 half;
  std::memcpy(&half, &bits_, sizeof(bits_));
  return static_cast<float>(half);
}

bool Attributes::hasAttribute(const std::string &key) const {
  return values_.count(key) > 0;
}

const char *Attributes::nameOf(Kind kind) {
  static const char *const names[] = {"a list of ints",    "an int",
                                      "a list of floats",  "a float",
                                      "a list of strings", "a string"};
  return names[static_cast<int>(kind)];
}

const Attributes::Value &Attributes::find(const std::string &key,
                                          Kind kind) const {
  const auto found = values_.find(key);
  if (found == values_.end())
    throw error("no attribute key {}; the op was given {}", key, names_);
  if (found->second.kind != kind)
    throw error("attribute {} is {}, but the op asks for {}", key,
                nameOf(found->second.kind), nameOf(kind));
  return found->second;
}

Attributes::Value &Attributes::add(const std::string &key, Kind kind) {
  if (!hasAttribute(key))
    names_.push_back(key);
  Value &value = values_[key];
  value = Value();
  value.kind = kind;
  return value;
}

template <>
Attributes::Ints Attributes::getAttribute(const std::string &key) const {
  return find(key, Kind::Ints).ints;
}
template <>
Attributes::Int Attributes::getAttribute(const std::string &key) const {
  return find(key, Kind::Int).ints[0];
}
template <>
Attributes::Floats Attributes::getAttribute(const std::string &key) const {
  return find(key, Kind::Floats).floats;
}
template <>
Attributes::Float Attributes::getAttribute(const std::string &key) const {
  return find(key, Kind::Float).floats[0];
}
template <>
Attributes::Strings Attributes::getAttribute(const std::string &key) const {
  return find(key, Kind::Strings).strings;
}
template <>
Attributes::String Attributes::getAttribute(const std::string &key) const {
  return find(key, Kind::String).strings[0];
}
template <> void Attributes::setAttribute(const std::string &key, Ints &value) {
  add(key, Kind::Ints).ints = value;
}
template <> void Attributes::setAttribute(const std::string &key, Int &value) {
  add(key, Kind::Int).ints = {value};
}
template <>
void Attributes::setAttribute(const std::string &key, Floats &value) {
  add(key, Kind::Floats).floats = value;
}
template <>
void Attributes::setAttribute(const std::string &key, Float &value) {
  add(key, Kind::Float).floats = {value};
}
template <>
void Attributes::setAttribute(const std::string &key, Strings &value) {
  add(key, Kind::Strings).strings = value;
}
template <>
void Attributes::setAttribute(const std::string &key, String &value) {
  add(key, Kind::String).strings = {value};
}

} // namespace popart
