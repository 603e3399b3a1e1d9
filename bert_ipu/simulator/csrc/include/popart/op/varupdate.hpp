#pragma once

#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/optimizervalue.hpp>

namespace popart {

// Changes a variable in place; output 0 is input 0 after the change. The
// constructors with a tensor id are those of SDK 1.
class VarUpdateOp : public Op {
public:
  VarUpdateOp(const OperatorIdentifier &opid, const Op::Settings &settings);
  VarUpdateOp(const OperatorIdentifier &opid, const TensorId &varId,
              const Op::Settings &settings);

  static InIndex getVarToUpdateInIndex() { return 0; }
  static OutIndex getUpdatedVarOutIndex() { return 0; }
  void setup() override;
  view::Regions aliases(InIndex in, OutIndex out) const override;
  view::Regions modifies(InIndex in) const override;
  const TensorId &getVarId() const { return varId_; }
  virtual std::map<InIndex, TensorId> optimizerInputs() const = 0;
  virtual std::unique_ptr<Op> cloneWithNewName(const TensorId &) const {
    return clone();
  }
  bool isOptimizerOp() const override { return true; }

private:
  TensorId varId_;
};

class VarUpdateWithUpdaterOp : public VarUpdateOp {
public:
  using VarUpdateOp::VarUpdateOp;
  static InIndex getUpdaterInIndex() { return 1; }
};

} // namespace popart
