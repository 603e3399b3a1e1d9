#pragma once

#include <popart/op/varupdate.hpp>

namespace popart {

// weight -= slr1 * velocity.
class SGD1VarUpdateOp : public VarUpdateWithUpdaterOp {
public:
  SGD1VarUpdateOp(OptimizerValue slr1, const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  std::map<InIndex, TensorId> optimizerInputs() const override;
  const OptimizerValue initSlr1;
  static InIndex getSlr1InIndex() { return 2; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

} // namespace popart
