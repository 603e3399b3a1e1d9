// From an op of the graph to a program that runs.
#pragma once

#include <memory>
#include <vector>

#include <popart/op.hpp>

#include "engine.hpp"

namespace popemu {

// Inputs of the op that its caller provides, by index: all but the seed.
std::vector<popart::InIndex> callerInputs(const popart::Op &op);

// Positions among the caller's inputs and the outputs: an input the op changes
// in place, and the output that shows the change.
std::map<int, int> inPlaceUpdates(const popart::Op &op);

std::unique_ptr<Engine> lower(popart::Op &op, bool isolate);

} // namespace popemu
