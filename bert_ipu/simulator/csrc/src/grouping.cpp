// Which elements of a tensor lie side by side on the tiles.
#include <poputil/VarStructure.hpp>

#include <algorithm>
#include <numeric>

namespace poputil {

using poplar::Graph;
using poplar::Tensor;

unsigned detectInnermostGrouping(const Graph &graph, const Tensor &t) {
  if (t.rank() == 0)
    throw poplibs_error("a tensor without dimensions has no grouping");
  if (t.numElements() == 0)
    return 1;
  Tensor line = t; // the first along the innermost dimension stands for all
  while (line.rank() > 1)
    line = line[0];
  std::size_t longest = 1;
  for (const auto &intervals : graph.getTileMapping(line, false))
    for (const auto &interval : intervals)
      longest = std::max(longest, interval.size());
  const std::size_t adjacent = line.getContiguousRegions().front().size();
  const std::size_t group = std::gcd(longest, adjacent);
  return line.numElements() % group == 0 ? unsigned(group) : 1;
}

std::vector<GroupingInfo> detectDimGroupings(const Graph &graph,
                                             const Tensor &t) {
  if (t.rank() == 0)
    throw poplibs_error("a tensor without dimensions has no grouping");
  const unsigned rank = t.rank();
  std::vector<GroupingInfo> groupings;
  unsigned found = 1;
  auto shape = t.shape();
  shape.push_back(found);
  Tensor rest = t.reshape(shape); // what is grouped already, innermost
  while (true) {
    GroupingInfo best = {0, 1};
    for (unsigned d = 0; d < rank; ++d) {
      const Tensor line = rest.dimRoll(d, rank - 1).flatten(rank - 1, rank + 1);
      const unsigned group = detectInnermostGrouping(graph, line);
      const unsigned size =
          group % found ? 1 : std::gcd<unsigned>(group / found, rest.dim(d));
      if (size > best.second)
        best = {d, size};
    }
    if (best.second == 1)
      return groupings;
    groupings.push_back(best);
    found *= best.second;
    const auto d = best.first;
    rest =
        rest.reshapePartial(d, d + 1, {rest.dim(d) / best.second, best.second})
            .dimRoll(d + 1, rank)
            .flatten(rank, rank + 2);
  }
}

} // namespace poputil
