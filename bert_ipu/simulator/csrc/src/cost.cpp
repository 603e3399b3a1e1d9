#include "cost.hpp"

#include <algorithm>

namespace popemu {
namespace {

using poplar::Target;
using popops::expr::BinaryOpType;
using popops::expr::UnaryOpType;

constexpr std::uint64_t workers = 6;
constexpr std::uint64_t supervisorOverhead = 11;

std::uint64_t ceilDiv(std::uint64_t a, std::uint64_t b) {
  return (a + b - 1) / b;
}

std::uint64_t perTile(const Target &target, std::size_t elements) {
  return ceilDiv(elements, target.getNumTiles());
}

std::uint64_t vectorWidth(poplar::Type type) {
  return std::max<std::uint64_t>(1, 8 / sizeOf(type));
}

// Cycles and elements of one turn of an inner loop, {float, half}.
struct Loop {
  std::uint64_t cycles, elements;
};

Loop unaryLoop(UnaryOpType op, bool isHalf) {
  switch (op) {
  case UnaryOpType::EXPONENT:
    return isHalf ? Loop{4, 4} : Loop{6, 2};
  case UnaryOpType::LOGARITHM:
  case UnaryOpType::TANH:
    return isHalf ? Loop{4, 4} : Loop{12, 2};
  case UnaryOpType::SQRT:
    return isHalf ? Loop{23, 4} : Loop{10, 2};
  case UnaryOpType::INVERSE:
    return isHalf ? Loop{15, 4} : Loop{6, 2};
  default:
    return isHalf ? Loop{2, 4} : Loop{2, 2};
  }
}

} // namespace

std::uint64_t unaryCycles(const Target &target, std::size_t elements,
                          poplar::Type type, UnaryOpType op) {
  const Loop loop = unaryLoop(op, type == poplar::HALF);
  const std::uint64_t turns =
      ceilDiv(ceilDiv(perTile(target, elements), workers), loop.elements);
  const std::uint64_t base = op == UnaryOpType::EXPONENT ? 33 : 17;
  return workers * (base + turns * loop.cycles) + 9 + supervisorOverhead;
}

std::uint64_t binaryCycles(const Target &target, std::size_t elements,
                           poplar::Type type, BinaryOpType op) {
  const bool isHalf = type == poplar::HALF;
  Loop loop{3, vectorWidth(type)}; // one cycle of the table plus load and store
  if (op == BinaryOpType::DIVIDE)
    loop = isHalf ? Loop{21, 4} : Loop{10, 2};
  else if (op == BinaryOpType::MAXIMUM || op == BinaryOpType::MINIMUM)
    loop = isHalf ? Loop{4, 4} : Loop{3, 2};
  const std::uint64_t turns =
      ceilDiv(ceilDiv(perTile(target, elements), workers), loop.elements);
  return workers * ((isHalf ? 26 : 29) + turns * loop.cycles) +
         supervisorOverhead;
}

std::uint64_t castCycles(const Target &target, std::size_t elements) {
  const std::uint64_t share = ceilDiv(perTile(target, elements), workers);
  return 12 + workers * (ceilDiv(share, 4) * 2 + 18);
}

std::uint64_t reduceCycles(const Target &target, std::size_t elements,
                           poplar::Type type) {
  const std::uint64_t partials = perTile(target, elements);
  const std::uint64_t output = type == poplar::FLOAT ? 0 : 5;
  return 1 + 2 + 6 + 5 + 3 + ceilDiv(partials, vectorWidth(type)) * 2 + output;
}

std::uint64_t multiSliceCycles(const Target &target, std::size_t rows,
                               std::size_t width, poplar::Type type) {
  (void)type;
  // Columns are spread over the tiles, every tile looks up every row.
  const std::uint64_t columns = perTile(target, width);
  return workers *
         (30 + ceilDiv(rows, workers) * (19 + ceilDiv(columns, 2) * 2));
}

std::uint64_t multiUpdateAddCycles(const Target &target, std::size_t rows,
                                   std::size_t width, poplar::Type type) {
  const bool isFloat = type == poplar::FLOAT;
  const std::uint64_t columns = perTile(target, width);
  const std::uint64_t atom = isFloat ? 1 : 2;
  // A slice narrower than a word is written element by element.
  const std::uint64_t perRow =
      columns < atom ? columns * 20
                     : (isFloat ? 11 : 13) + (ceilDiv(columns, atom) - 1) * 3;
  return workers * (3 + (isFloat ? 29 : 30) + 4 + 2 * isFloat + rows * perRow);
}

std::uint64_t dropoutCycles(const Target &target, std::size_t elements,
                            poplar::Type type) {
  return 6 + 24 * workers +
         2 * ceilDiv(perTile(target, elements), vectorWidth(type));
}

std::uint64_t matMulCycles(const Target &target, std::size_t macs,
                           poplar::Type type) {
  const std::uint64_t rate = type == poplar::HALF ? 64 : 16;
  return ceilDiv(perTile(target, macs), rate);
}

} // namespace popemu
