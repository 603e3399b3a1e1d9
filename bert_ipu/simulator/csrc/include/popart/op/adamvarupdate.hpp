#pragma once

#include <popart/op/varupdate.hpp>

namespace popart {

class AdamVarUpdateOp : public VarUpdateWithUpdaterOp {
public:
  AdamVarUpdateOp(OptimizerValue learningRate, const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  std::map<InIndex, TensorId> optimizerInputs() const override;
  const OptimizerValue initLr;
  static InIndex getLambR1SqInIndex() { return 2; }
  static InIndex getLambR2SqInIndex() { return 3; }
  static InIndex getLrInIndex() { return 4; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

} // namespace popart
