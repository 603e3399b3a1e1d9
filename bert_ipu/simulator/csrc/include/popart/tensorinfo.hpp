#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include <popart/datatype.hpp>
#include <popart/error.hpp>
#include <popart/names.hpp>

namespace popart {

const std::string &nameOf(DataType type);
DataType dataTypeFromString(const std::string &name);

// Shape and element type of a tensor.
class TensorInfo {
public:
  TensorInfo() = default;
  TensorInfo(DataType type, const Shape &shape) : type_(type), shape_(shape) {}
  TensorInfo(const std::string &type, const Shape &shape)
      : type_(dataTypeFromString(type)), shape_(shape) {}

  void set(DataType type) { type_ = type; }
  void set(DataType type, const Shape &shape) {
    type_ = type;
    shape_ = shape;
  }

  const Shape &shape() const { return shape_; }
  std::vector<size_t> shape_szt() const {
    return std::vector<size_t>(shape_.begin(), shape_.end());
  }
  Rank rank() const { return static_cast<Rank>(shape_.size()); }
  int64_t dim(int i) const {
    if (i < 0 || i >= rank())
      throw error("a shape of {} dimensions has no dimension {}", rank(), i);
    return shape_[static_cast<size_t>(i)];
  }
  int64_t nelms() const;
  int64_t nbytes() const;
  DataType dataType() const { return type_; }
  const std::string &data_type() const { return nameOf(type_); }
  void append(std::ostream &os) const;
  bool isSet() const { return type_ != DataType::UNDEFINED; }
  bool operator==(const TensorInfo &other) const {
    return type_ == other.type_ && shape_ == other.shape_;
  }
  bool operator!=(const TensorInfo &other) const { return !(*this == other); }

private:
  DataType type_ = DataType::UNDEFINED;
  Shape shape_;
};

std::ostream &operator<<(std::ostream &os, const TensorInfo &info);

// Shapes broadcast as in NumPy.
Shape npOut(const Shape &s0, const Shape &s1,
            const std::string &debugName = "");
TensorInfo npOut(const TensorInfo &i0, const TensorInfo &i1, bool checkDataType,
                 const std::string &debugName = "");

} // namespace popart
