// Host-side classes of the SDK that no op needs; sources include this header
// by habit.
#pragma once

#include <popart/names.hpp>
#include <popart/tensorinfo.hpp>
