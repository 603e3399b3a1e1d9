// A C++14 optional under the name PopART's headers use.
#pragma once

#include <stdexcept>
#include <utility>

namespace nonstd {

struct nullopt_t {
  explicit constexpr nullopt_t(int) {}
};
constexpr nullopt_t nullopt{0};

template <typename T> class optional {
public:
  optional() = default;
  optional(nullopt_t) {}
  optional(T value) : value_(std::move(value)), has_(true) {}

  explicit operator bool() const { return has_; }
  bool has_value() const { return has_; }
  const T &value() const {
    if (!has_)
      throw std::logic_error("value() of an empty optional");
    return value_;
  }
  const T &operator*() const { return value(); }
  T &operator*() {
    value();
    return value_;
  }
  const T *operator->() const { return &value(); }
  template <typename U> T value_or(U &&fallback) const {
    return has_ ? value_ : static_cast<T>(std::forward<U>(fallback));
  }
  void reset() {
    has_ = false;
    value_ = T();
  }
  friend bool operator==(const optional &a, const optional &b) {
    return a.has_ == b.has_ && (!a.has_ || a.value_ == b.value_);
  }
  friend bool operator!=(const optional &a, const optional &b) {
    return !(a == b);
  }
  friend bool operator==(const optional &a, nullopt_t) { return !a.has_; }
  friend bool operator!=(const optional &a, nullopt_t) { return a.has_; }

private:
  T value_{};
  bool has_ = false;
};

} // namespace nonstd
