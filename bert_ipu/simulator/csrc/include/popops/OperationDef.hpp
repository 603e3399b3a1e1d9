#pragma once

#include <popops/Operation.hpp>
