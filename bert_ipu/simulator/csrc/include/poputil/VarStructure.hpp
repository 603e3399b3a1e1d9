#pragma once

#include <utility>
#include <vector>

#include <poplar/Graph.hpp>
#include <poputil/exceptions.hpp>

namespace poputil {

// How many neighbours along the innermost dimension lie side by side on a
// tile; 1 where there is no such grouping. Throws poplibs_error for a tensor
// without dimensions.
unsigned detectInnermostGrouping(const poplar::Graph &graph,
                                 const poplar::Tensor &t);

// A grouped dimension, and the size of its groups.
using GroupingInfo = std::pair<unsigned, unsigned>;

// The groupings of all dimensions, the innermost in memory first.
std::vector<GroupingInfo> detectDimGroupings(const poplar::Graph &graph,
                                             const poplar::Tensor &t);

} // namespace poputil
