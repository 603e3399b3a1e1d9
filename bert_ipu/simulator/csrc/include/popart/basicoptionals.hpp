#pragma once

#include <popart/names.hpp>
#include <popart/vendored/optional.hpp>

namespace popart {

template <typename T, uint32_t V = 0> using BasicOptional = nonstd::optional<T>;
using OptionalVGraphId = nonstd::optional<VGraphId>;
using OptionalPipelineStage = nonstd::optional<PipelineStage>;
using OptionalExecutionPhase = nonstd::optional<ExecutionPhase>;
using OptionalBatchSerializedPhase = nonstd::optional<BatchSerializedPhase>;

} // namespace popart
