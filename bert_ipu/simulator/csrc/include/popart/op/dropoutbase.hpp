#pragma once

#include <popart/op.hpp>

namespace popart {

class DropoutBaseOp : public Op {
public:
  DropoutBaseOp(const OperatorIdentifier &opid, float ratio,
                const Op::Settings &settings);
  static InIndex getInIndex() { return 0; }
  static OutIndex getOutIndex() { return 0; }
  // In inference, or when nothing is dropped.
  bool canBeReplacedByIdentity() const override;
  float getRatio() const { return ratio_; }
  void setRatio(float ratio) { ratio_ = ratio; }
  bool requiresRandomSeed() const override { return true; }
  InIndex getSeedInIndex() const override { return 1; }
  void setup() override;
  void appendOutlineAttributes(OpSerialiserBase &os) const override;
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  float ratio_;
};

} // namespace popart
