#pragma once

#include <popart/op/dropoutbase.hpp>

namespace popart {

class DropoutOp : public DropoutBaseOp {
public:
  using DropoutBaseOp::DropoutBaseOp;
  std::unique_ptr<Op> clone() const override;
  bool canBeReplacedByIdentity() const override;
  static OutIndex getMaskOutIndex() { return 1; }
  void setOutputMask(bool on) { outputMask_ = on; }
  bool getOutputMask() const { return outputMask_; }
  RandomReferenceId getReferenceId() const { return referenceId_; }
  void setReferenceId(RandomReferenceId id) { referenceId_ = id; }

private:
  bool outputMask_ = false;
  RandomReferenceId referenceId_ = 0;
};

class DropoutGradOp : public DropoutOp {
public:
  DropoutGradOp(float ratio, const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  static InIndex getGradInIndex() { return 0; }
  static OutIndex getOutIndex() { return 0; }
};

} // namespace popart
