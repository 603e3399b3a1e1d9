#pragma once

namespace popops {

// How a reduction combines elements. SQUARE_ADD adds squares; LOG_ADD adds
// values that are given, and returned, as logarithms.
enum class Operation {
  ADD,
  MUL,
  MIN,
  MAX,
  LOGICAL_AND,
  LOGICAL_OR,
  SQUARE_ADD,
  LOG_ADD
};

} // namespace popops
