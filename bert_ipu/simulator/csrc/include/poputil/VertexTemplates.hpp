#pragma once

#include <string>
#include <utility>

#include <poplar/StringRef.hpp>
#include <poplar/Type.hpp>

namespace poputil {
namespace detail {

inline std::string templateArgument(const std::string &value) { return value; }
inline std::string templateArgument(const char *value) { return value; }
inline std::string templateArgument(const poplar::Type &type) {
  return type.toString();
}
inline std::string templateArgument(bool value) {
  return value ? "true" : "false";
}
template <typename T> std::string templateArgument(const T &value) {
  return std::to_string(value);
}

inline void appendArguments(std::string &) {}
template <typename First, typename... Rest>
void appendArguments(std::string &list, First &&first, Rest &&...rest) {
  list +=
      (list.empty() ? "" : ",") + templateArgument(std::forward<First>(first));
  appendArguments(list, std::forward<Rest>(rest)...);
}

} // namespace detail

// "Name<float,true>": how an instantiated vertex is named.
template <typename... Args>
std::string templateVertex(const std::string &name, Args &&...args) {
  std::string list;
  detail::appendArguments(list, std::forward<Args>(args)...);
  return list.empty() ? name : name + "<" + list + ">";
}

} // namespace poputil
