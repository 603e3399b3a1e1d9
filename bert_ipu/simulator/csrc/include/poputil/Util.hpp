#pragma once

#include <vector>

#include <poplar/Graph.hpp>
#include <poputil/exceptions.hpp>

namespace poputil {

// A new tensor like `t`, filled from it by a copy in `prog`.
poplar::Tensor
duplicate(poplar::Graph &graph, const poplar::Tensor &in,
          poplar::program::Sequence &prog,
          const poplar::DebugContext &debugContext = {},
          poplar::TensorCloneMethod method =
              poplar::TensorCloneMethod::PRESERVE_ORDER_UNLESS_ALIASES);

} // namespace poputil
