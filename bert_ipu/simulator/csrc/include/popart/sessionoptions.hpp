#pragma once

#include <cstdint>

#include <popart/tensorlocation.hpp>

namespace popart {

struct TensorLocationSettings {
  TensorLocation location;
};

struct AccumulateOuterFragmentSettings {};

// The options that patterns ask for.
struct SessionOptions {
  bool enableGradientAccumulation = false;
  int64_t accumulationFactor = 1;
  bool enableReplicatedGraphs = false;
  int64_t replicatedGraphCount = 1;
  bool enableOutlining = true;
  TensorLocationSettings weightTensorLocationSettings;
  TensorLocationSettings optimizerStateTensorLocationSettings;
  TensorLocationSettings accumulatorTensorLocationSettings;
  TensorLocationSettings activationTensorLocationSettings;
};

} // namespace popart
