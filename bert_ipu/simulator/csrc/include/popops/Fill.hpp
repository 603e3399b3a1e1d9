#pragma once

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

namespace popops {

template <typename FillValueType>
void fill(poplar::Graph &graph, const poplar::Tensor &t,
          poplar::program::Sequence &prog, FillValueType fillValue,
          const poplar::DebugContext &debugContext = {}) {
  auto value = graph.addConstant(t.elementType(), {1}, fillValue, debugContext);
  graph.setTileMapping(value, 0);
  const auto n = static_cast<unsigned>(t.numElements());
  prog.add(poplar::program::Copy(value.broadcast(n, 0), t.flatten(), false,
                                 debugContext));
}

} // namespace popops
