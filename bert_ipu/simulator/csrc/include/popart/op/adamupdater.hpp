#pragma once

#include <popart/op.hpp>

namespace popart {

// The step of Adam and LAMB from both moments.
class AdamUpdaterOp : public Op {
public:
  explicit AdamUpdaterOp(const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  static InIndex getVarInIndex() { return 0; }
  static InIndex getAccl1InIndex() { return 1; }
  static InIndex getAccl2InIndex() { return 2; }
  static InIndex getStepInIndex() { return 3; }
  static OutIndex getUpdaterOutIndex() { return 0; }
  bool isOptimizerOp() const override { return true; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

} // namespace popart
