// Implementations of built-in ops, which the simulator runs itself.
#pragma once

#include <popart/popx/opx.hpp>
