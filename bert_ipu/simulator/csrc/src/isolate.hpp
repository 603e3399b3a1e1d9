// Runs user code once in a forked child, to see whether the process survives.
#pragma once

#include <functional>
#include <string>

namespace popemu {

// Throws if `action` ends or crashes the child; exceptions it throws are left
// for the caller to meet when it runs the action itself.
void rehearse(const std::string &what, const std::function<void()> &action);

} // namespace popemu
