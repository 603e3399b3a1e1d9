#pragma once

#include <poplar/Graph.hpp>

namespace poprand {

// The emulation has its operators built in.
inline void addCodelets(poplar::Graph &) {}

} // namespace poprand
