#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <popart/error.hpp>
#include <popart/names.hpp>

namespace popart {

// Typed attributes of an op. Asking for one by another type is an error.
class Attributes {
public:
  using Ints = std::vector<int64_t>;
  using Int = int64_t;
  using Floats = std::vector<float>;
  using Float = float;
  using Strings = std::vector<std::string>;
  using String = std::string;

  const std::vector<std::string> &getNames() const { return names_; }
  bool hasAttribute(const std::string &key) const;

  template <typename T> T getAttribute(const std::string &key) const;
  template <typename T>
  T getAttribute(const std::string &key, const T &defaultValue) const {
    return hasAttribute(key) ? getAttribute<T>(key) : defaultValue;
  }
  template <typename T> void set(T &value, const std::string &key) const {
    value = getAttribute<T>(key);
  }
  template <typename T>
  void setIfPresent(T &value, const std::string &key) const {
    if (hasAttribute(key))
      value = getAttribute<T>(key);
  }
  template <typename T> void setAttribute(const std::string &key, T &value);

private:
  enum class Kind { Ints, Int, Floats, Float, Strings, String };
  struct Value {
    Kind kind = Kind::Int;
    Ints ints;
    Floats floats;
    Strings strings;
  };
  const Value &find(const std::string &key, Kind kind) const;
  Value &add(const std::string &key, Kind kind);
  static const char *nameOf(Kind kind);

  std::vector<std::string> names_;
  std::map<std::string, Value> values_;
};

template <>
Attributes::Ints Attributes::getAttribute(const std::string &) const;
template <> Attributes::Int Attributes::getAttribute(const std::string &) const;
template <>
Attributes::Floats Attributes::getAttribute(const std::string &) const;
template <>
Attributes::Float Attributes::getAttribute(const std::string &) const;
template <>
Attributes::Strings Attributes::getAttribute(const std::string &) const;
template <>
Attributes::String Attributes::getAttribute(const std::string &) const;
template <> void Attributes::setAttribute(const std::string &, Ints &);
template <> void Attributes::setAttribute(const std::string &, Int &);
template <> void Attributes::setAttribute(const std::string &, Floats &);
template <> void Attributes::setAttribute(const std::string &, Float &);
template <> void Attributes::setAttribute(const std::string &, Strings &);
template <> void Attributes::setAttribute(const std::string &, String &);

} // namespace popart
