#pragma once

#include <stdexcept>
#include <string>

namespace poplar {

// Base of everything the Poplar layer throws; `type` is the class name, as in
// the SDK.
struct poplar_error : std::runtime_error {
  std::string type;
  explicit poplar_error(const std::string &message)
      : std::runtime_error(message), type("poplar_error") {}
};

struct graph_construction_error : poplar_error {
  explicit graph_construction_error(const std::string &message)
      : poplar_error(message) {}
};

struct type_error : poplar_error {
  explicit type_error(const std::string &message) : poplar_error(message) {}
};

struct invalid_tile_mapping : poplar_error {
  explicit invalid_tile_mapping(const std::string &message)
      : poplar_error(message) {}
};

struct invalid_option : poplar_error {
  explicit invalid_option(const std::string &message) : poplar_error(message) {}
};

struct graph_program_compilation_error : poplar_error {
  explicit graph_program_compilation_error(const std::string &message)
      : poplar_error(message) {}
};

struct runtime_error : poplar_error {
  explicit runtime_error(const std::string &message) : poplar_error(message) {}
};

} // namespace poplar
