#pragma once

#include <vector>

#include <poplar/Tensor.hpp>

namespace poputil {

// Broadcast as NumPy does; throws poplibs_error where shapes do not agree.
void broadcastToMatch(poplar::Tensor &a, const std::vector<std::size_t> &shape);
void broadcastToMatch(poplar::Tensor &a, poplar::Tensor &b);
void broadcastToMatch(poplar::Tensor &a, poplar::Tensor &b, poplar::Tensor &c);

} // namespace poputil
