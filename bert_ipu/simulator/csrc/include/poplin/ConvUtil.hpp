#pragma once

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>
#include <popops/Rearrange.hpp>

namespace poplin {

// Where this function lived before it moved to popops.
using popops::rearrange::regroupIfBeneficial;

} // namespace poplin
