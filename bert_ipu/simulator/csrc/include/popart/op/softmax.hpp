#pragma once

#include <popart/op/elementwise.hpp>

namespace popart {

class SoftmaxOp : public ElementWiseUnaryOp {
public:
  SoftmaxOp(const OperatorIdentifier &opid, int64_t axis,
            const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  int64_t getAxis() const { return axis_; }

private:
  int64_t axis_;
};

class SoftmaxGradOp : public Op {
public:
  SoftmaxGradOp(int64_t axis, const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  void setup() override;
  int64_t getAxis() const { return axis_; }
  static InIndex getGradProbsInIndex() { return 0; }
  static InIndex getProbsInIndex() { return 1; }
  static OutIndex getOutIndex() { return 0; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  int64_t axis_;
};

} // namespace popart
