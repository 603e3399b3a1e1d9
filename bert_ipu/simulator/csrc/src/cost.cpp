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

// One worker's share of a cast: a vector is as wide as two loads and one store
// allow, or one element where the types are not both floating.
std::uint64_t castWorkerCycles(std::uint64_t elements, poplar::Type from,
                               poplar::Type to) {
  const std::uint64_t loaded = vectorWidth(from), stored = vectorWidth(to);
  const bool floating = isFloating(from) && isFloating(to);
  const std::uint64_t vector = floating ? std::min(2 * loaded, stored) : 1;
  const std::uint64_t load = vector / std::min(vector, loaded);
  const std::uint64_t store = vector / std::min(vector, stored);
  std::uint64_t cycles =
      19 + (std::max(load, store) + !floating) * (elements / vector);
  const std::uint64_t remainder = elements % vector;
  for (std::uint64_t part = 1; part < vector; part *= 2)
    cycles += remainder & part ? 3 : 1;
  return cycles;
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

std::uint64_t castCycles(const Target &target, std::size_t elements,
                         poplar::Type from, poplar::Type to) {
  const std::uint64_t share = ceilDiv(perTile(target, elements), workers);
  return 12 + workers * (castWorkerCycles(share, from, to) + 18);
}

std::uint64_t reduceCycles(const Target &target, std::size_t elements,
                           poplar::Type type) {
  const std::uint64_t partials = perTile(target, elements);
  const std::uint64_t output = type == poplar::FLOAT ? 0 : 5;
  return 1 + 2 + 6 + 5 + 3 + ceilDiv(partials, vectorWidth(type)) * 2 + output;
}

// Columns are spread over the tiles. Each tile looks up every row, and like
// the estimators this takes the worst case: one worker has all of them.
std::uint64_t multiSliceCycles(const Target &target, std::size_t rows,
                               std::size_t width, poplar::Type type) {
  const bool bytes = sizeOf(type) == 1;
  const std::uint64_t vectors = ceilDiv(perTile(target, width), bytes ? 4 : 2);
  return workers * (30 + rows * (19 + vectors * (bytes ? 3 : 2)));
}

std::uint64_t multiUpdateAddCycles(const Target &target, std::size_t rows,
                                   std::size_t width, poplar::Type type,
                                   poplar::Type scale) {
  const bool isFloat = type == poplar::FLOAT;
  const bool widerScale = !isFloat && scale == poplar::FLOAT;
  const std::uint64_t columns = perTile(target, width);
  const std::uint64_t atom = isFloat ? 1 : 2; // elements written at once
  const bool oneVector = columns == 4 || (isFloat && columns == 2);
  std::uint64_t perRow = isFloat ? 11 : 13;
  if (columns % atom != 0) // written element by element
    perRow += columns * 20;
  else if (oneVector)
    perRow = isFloat ? (columns == 2 ? 8 : 16) : (widerScale ? 12 : 9);
  else
    perRow += (columns / atom - 1) * (3 + widerScale);
  const std::uint64_t before = 3 + (isFloat ? 29 : 30) - oneVector;
  return workers * (before + 4 + 2 * isFloat + rows * perRow);
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
