#pragma once

#include <popart/op.hpp>

namespace popart {

class GatherOp : public Op {
public:
  GatherOp(const OperatorIdentifier &opid, int64_t axis,
           const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  void setup() override;
  int64_t getAxis() const { return axis_; }
  static InIndex dataInIndex() { return 0; }
  static InIndex indicesInIndex() { return 1; }
  static OutIndex outIndex() { return 0; }
  void appendOutlineAttributes(OpSerialiserBase &os) const override;
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  int64_t axis_;
};

class GatherGradOp : public Op {
public:
  GatherGradOp(int64_t axis, const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  int64_t getAxis() const { return axis_; }
  static InIndex gradInIndex() { return 0; }
  static InIndex indicesInIndex() { return 1; }
  static OutIndex gradOutIndex() { return 0; }
  void appendOutlineAttributes(OpSerialiserBase &os) const override;
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  int64_t axis_;
};

} // namespace popart
