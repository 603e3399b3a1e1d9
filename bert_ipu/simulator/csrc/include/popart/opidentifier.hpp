#pragma once

#include <popart/operators.hpp>
