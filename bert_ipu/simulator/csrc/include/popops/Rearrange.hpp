#pragma once

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

namespace popops {
namespace rearrange {

// A copy of `in` in the layout of `ref` where that is worth it; the values are
// those of `in`.
poplar::Tensor
regroupIfBeneficial(poplar::Graph &graph, const poplar::Tensor &in,
                    const poplar::Tensor &ref, poplar::program::Sequence &prog,
                    const poplar::DebugContext &debugContext = {});

} // namespace rearrange
} // namespace popops
