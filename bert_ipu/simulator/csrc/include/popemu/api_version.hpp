// Every library of custom ops refers to the symbol of the API version it was
// compiled for; a runtime of another version does not have it, so loading
// fails with a message instead of running with mismatched classes.
#pragma once

extern "C" const int popemu_api_1;

namespace popemu {
static const int *const requiredApi __attribute__((used)) = &popemu_api_1;
}
