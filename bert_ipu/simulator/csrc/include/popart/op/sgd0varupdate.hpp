#pragma once

#include <popart/op/varupdate.hpp>

namespace popart {

// weight = wdsf0 * weight - slr0 * gradient.
class SGD0VarUpdateOp : public VarUpdateWithUpdaterOp {
public:
  SGD0VarUpdateOp(OptimizerValue slr0, OptimizerValue wdsf0,
                  const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  std::map<InIndex, TensorId> optimizerInputs() const override;
  const OptimizerValue initSlr0;
  const OptimizerValue initWdsf0;
  static InIndex getSlr0InIndex() { return 2; }
  static InIndex getWdsf0InIndex() { return 3; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

} // namespace popart
