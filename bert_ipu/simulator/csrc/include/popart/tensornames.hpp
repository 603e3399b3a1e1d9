// Prefixes by which PopART names the tensors it adds.
#pragma once

#include <popart/names.hpp>

namespace popart {

inline const char *reservedGradientPrefix() { return "Gradient___"; }
inline const char *reservedUpdatedVarPrefix() { return "UpdatedVar___"; }
inline const char *reservedAccumPrefix() { return "Accum___"; }
inline const char *reservedAcclPrefix() { return "Accl___"; }
inline const char *reservedAccl1Prefix() { return "Accl1___"; }
inline const char *reservedAccl2Prefix() { return "Accl2___"; }
inline const char *reservedAcclToAccumulatorPrefix() {
  return "Accl___toAccumulator___";
}
inline const char *reservedAcclToReducePrefix() { return "Accl___toReduce___"; }
inline const char *reservedAcclToUpdatePrefix() { return "Accl___toUpdate___"; }
inline const char *reservedAcclFinalOutPrefix() { return "Accl___finalOut___"; }
inline const char *reservedStepPrefix() { return "Step___"; }
inline const char *reservedLambR1SqPrefix() { return "LambR1Sq___"; }
inline const char *reservedLambR2SqPrefix() { return "LambR2Sq___"; }

inline TensorId getGradId(const TensorId &id) {
  return reservedGradientPrefix() + id;
}

} // namespace popart
