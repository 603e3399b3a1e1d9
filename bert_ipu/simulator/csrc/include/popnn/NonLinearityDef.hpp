#pragma once

#include <popnn/NonLinearity.hpp>
