#pragma once

#include <popart/optimizer.hpp>
