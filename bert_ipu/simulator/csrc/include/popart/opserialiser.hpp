#pragma once

#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <popart/error.hpp>
#include <popart/names.hpp>
#include <popart/vendored/optional.hpp>

namespace popart {

class Op;

// Receives the attributes of an op as text, by which ops are compared.
class OpSerialiserBase {
public:
  virtual ~OpSerialiserBase() = default;

  void appendAttribute(const std::string &name, const char *value) {
    appendText(name, value);
  }
  template <typename T>
  void appendAttribute(const std::string &name, const T &value) {
    appendText(name, logging::format("{}", value));
  }
  template <typename T>
  void appendAttribute(const std::string &name,
                       const nonstd::optional<T> &value) {
    if (value)
      appendAttribute(name, *value);
  }

protected:
  virtual void appendText(const std::string &name,
                          const std::string &value) = 0;
};

// Writes "name: value" lines.
class OpSerialiser : public OpSerialiserBase {
public:
  OpSerialiser(const Op *op, std::stringstream &text);

protected:
  void appendText(const std::string &name, const std::string &value) override;

private:
  std::stringstream &text_;
};

} // namespace popart
