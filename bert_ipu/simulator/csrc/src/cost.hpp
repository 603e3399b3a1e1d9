// Cycle estimates, by the public formulas of poplibs' estimators
// (lib/popops/popopsCycleEstimators.cpp, lib/popops/PerformanceEstimation.cpp,
// lib/poprand/poprandCycleEstimators.cpp,
// lib/poplin/PerformanceEstimation.hpp). They take the elements of a whole
// tensor and spread them over all tiles.
#pragma once

#include <popops/ExprOp.hpp>

#include "core.hpp"

namespace popemu {

std::uint64_t unaryCycles(const poplar::Target &target, std::size_t elements,
                          poplar::Type type, popops::expr::UnaryOpType op);
std::uint64_t binaryCycles(const poplar::Target &target, std::size_t elements,
                           poplar::Type type, popops::expr::BinaryOpType op);
std::uint64_t castCycles(const poplar::Target &target, std::size_t elements,
                         poplar::Type from, poplar::Type to);
std::uint64_t reduceCycles(const poplar::Target &target, std::size_t elements,
                           poplar::Type type);
// `rows` looked up in a table, or added to one, each of `width` elements.
std::uint64_t multiSliceCycles(const poplar::Target &target, std::size_t rows,
                               std::size_t width, poplar::Type type);
std::uint64_t multiUpdateAddCycles(const poplar::Target &target,
                                   std::size_t rows, std::size_t width,
                                   poplar::Type type, poplar::Type scale);
std::uint64_t dropoutCycles(const poplar::Target &target, std::size_t elements,
                            poplar::Type type);
std::uint64_t matMulCycles(const poplar::Target &target, std::size_t macs,
                           poplar::Type type);

} // namespace popemu
