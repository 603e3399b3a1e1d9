#pragma once

#include <popart/op.hpp>

namespace popart {

// Sum of squares, for the trust ratio of LAMB.
class LambSquareOp : public Op {
public:
  explicit LambSquareOp(const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  void setup() override;
  static InIndex getInIndex() { return 0; }
  static OutIndex getOutIndex() { return 0; }
  bool isOptimizerOp() const override { return true; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

} // namespace popart
