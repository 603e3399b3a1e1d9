// Applies patterns to a graph, in PopART's order.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <popart/graph.hpp>

namespace popemu {

// One successful apply().
struct PatternEdit {
  std::string pattern;
  popart::OpId matched;
  std::string matchedType;
  std::vector<popart::OpId> removed;
  std::vector<popart::OpId> added;
};

// Patterns run by name, each over the ops in order of their ids, until a whole
// round changes nothing. `settings` overrides which are on; a name nobody
// registered is an error.
std::vector<PatternEdit>
runPatterns(popart::Graph &graph, const std::map<std::string, bool> &settings);

} // namespace popemu
