#pragma once

#include <stdexcept>
#include <string>

#include <popart/logging.hpp>

namespace popart {

// A mistake of the user, with a message formatted by {}.
class error : public std::runtime_error {
public:
  template <typename... Args>
  explicit error(const std::string &text, const Args &...args)
      : std::runtime_error(logging::format(text, args...)) {}
};

// A broken assumption of the framework.
class internal_error : public error {
public:
  using error::error;
};

class runtime_error : public error {
public:
  using error::error;
};

} // namespace popart
