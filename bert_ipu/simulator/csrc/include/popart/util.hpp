#pragma once

#include <ostream>
#include <vector>

#include <popart/error.hpp>

namespace popart {

template <typename X, typename Y>
std::vector<Y> vXtoY(const std::vector<X> &values) {
  return std::vector<Y>(values.begin(), values.end());
}

template <typename T>
std::ostream &operator<<(std::ostream &os, const std::vector<T> &values) {
  logging::detail::print(os, values);
  return os;
}

} // namespace popart
