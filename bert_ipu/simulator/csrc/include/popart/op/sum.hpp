#pragma once

#include <popart/op.hpp>

namespace popart {

class SumOp : public Op {
public:
  using Op::Op;
  std::unique_ptr<Op> clone() const override;
  void setup() override;
  static OutIndex getOutIndex() { return 0; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

} // namespace popart
