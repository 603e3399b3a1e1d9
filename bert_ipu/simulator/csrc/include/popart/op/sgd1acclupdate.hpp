#pragma once

#include <popart/op/varupdate.hpp>

namespace popart {

// velocity = smm1 * velocity + swd1 * weight, between two weight updates.
class SGD1AcclUpdateOp : public VarUpdateWithUpdaterOp {
public:
  SGD1AcclUpdateOp(OptimizerValue smm1, OptimizerValue swd1,
                   const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  std::map<InIndex, TensorId> optimizerInputs() const override;
  const OptimizerValue initSmm1;
  const OptimizerValue initSwd1;
  static InIndex getSmm1InIndex() { return 2; }
  static InIndex getSwd1InIndex() { return 3; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

} // namespace popart
