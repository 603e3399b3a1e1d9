#pragma once

#include <popart/op.hpp>

namespace popart {

// lambda * sum |x|.
class L1Op : public Op {
public:
  L1Op(const OperatorIdentifier &opid, float lambda, ReductionType reduction,
       const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  void setup() override;
  static InIndex getInIndex() { return 0; }
  static OutIndex getOutIndex() { return 0; }
  float getLambda() const { return lambda_; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  float lambda_;
  ReductionType reduction_;
};

} // namespace popart
