// Suggestions for a name that is not known.
#pragma once

#include <string>
#include <vector>

namespace popemu {

// "did you mean a, b?" or "none are known".
std::string nearestNames(const std::string &name,
                         const std::vector<std::string> &known);

} // namespace popemu
