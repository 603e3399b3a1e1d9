#pragma once

#include <popart/op/accumulate.hpp>

namespace popart {

// The accumulation of SGD with momentum. SDK 1.2 folded this op into
// AccumulateOp with DampenedAdd; here it is both, for sources of either age.
class SGD1AccumulateOp : public AccumulateOp {
public:
  SGD1AccumulateOp(const TensorId &varToUpdate, OptimizerValue dpsf1,
                   const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  const OptimizerValue initDpsf1;
  static InIndex getDpsf1InIndex() { return 2; }
};

} // namespace popart
