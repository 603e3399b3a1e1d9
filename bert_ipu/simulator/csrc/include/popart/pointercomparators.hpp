#pragma once

#include <popart/names.hpp>
