#pragma once

#include <popart/graph.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/tensor.hpp>

// The searches over graphs that PopART declares here are not built: a source
// that includes the header compiles, one that calls them does not.
