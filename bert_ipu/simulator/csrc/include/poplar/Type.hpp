#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <type_traits>

namespace poplar {

// An element type of the device. Literal, so that it can be used while other
// translation units' static objects are still being built.
class Type {
public:
  constexpr Type() : id_(0) {}
  explicit constexpr Type(unsigned id) : id_(id) {}

  constexpr unsigned id() const { return id_; }
  std::string toString() const;

  constexpr bool operator==(Type other) const { return id_ == other.id_; }
  constexpr bool operator!=(Type other) const { return id_ != other.id_; }
  constexpr bool operator<(Type other) const { return id_ < other.id_; }

private:
  unsigned id_;
};

std::ostream &operator<<(std::ostream &os, const Type &type);

constexpr Type BOOL(1);
constexpr Type CHAR(2);
constexpr Type UNSIGNED_CHAR(3);
constexpr Type SIGNED_CHAR(4);
constexpr Type UNSIGNED_SHORT(5);
constexpr Type SHORT(6);
constexpr Type UNSIGNED_INT(7);
constexpr Type INT(8);
constexpr Type UNSIGNED_LONGLONG(9);
constexpr Type LONGLONG(10);
constexpr Type HALF(11);
constexpr Type FLOAT(12);
constexpr Type QUARTER(13);

// The device type that holds a host value of type T: 64-bit host numbers have
// 32-bit device types, as the device has no wider arithmetic.
template <typename T> struct equivalent_device_type;

namespace detail {
template <unsigned Id> struct DeviceType {
  const Type value = Type(Id);
};
} // namespace detail

template <> struct equivalent_device_type<bool> : detail::DeviceType<1> {};
template <> struct equivalent_device_type<char> : detail::DeviceType<2> {};
template <>
struct equivalent_device_type<unsigned char> : detail::DeviceType<3> {};
template <>
struct equivalent_device_type<signed char> : detail::DeviceType<4> {};
template <>
struct equivalent_device_type<unsigned short> : detail::DeviceType<5> {};
template <> struct equivalent_device_type<short> : detail::DeviceType<6> {};
template <> struct equivalent_device_type<unsigned> : detail::DeviceType<7> {};
template <> struct equivalent_device_type<int> : detail::DeviceType<8> {};
template <>
struct equivalent_device_type<unsigned long> : detail::DeviceType<7> {};
template <> struct equivalent_device_type<long> : detail::DeviceType<8> {};
template <>
struct equivalent_device_type<unsigned long long> : detail::DeviceType<9> {};
template <>
struct equivalent_device_type<long long> : detail::DeviceType<10> {};
template <> struct equivalent_device_type<float> : detail::DeviceType<12> {};
template <> struct equivalent_device_type<double> : detail::DeviceType<12> {};

} // namespace poplar
