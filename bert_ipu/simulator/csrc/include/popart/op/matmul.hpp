#pragma once

#include <popart/op.hpp>

namespace popart {

enum class MatMulPartialsType { HALF, FLOAT };

class MatMulBaseOp : public Op {
public:
  enum class Phase { Fwd, BwdLHS, BwdRHS };
  struct SerialiseSettings {
    enum class Mode { None, InputChannels, ReducingDim, OutputChannels };
    Mode mode = Mode::None;
    int64_t factor = 0;
    bool keep_precision = false;
  };

  MatMulBaseOp(const OperatorIdentifier &opid, const Op::Settings &settings,
               Phase phase);
  SerialiseSettings &getSerialiseSettings() { return serialise_; }
  const SerialiseSettings &getSerialiseSettings() const { return serialise_; }
  bool useFullyConnectedPass() const { return fullyConnectedPass_; }
  void setUseFullyConnectedPass(bool on) { fullyConnectedPass_ = on; }
  Phase getPhase() const { return phase_; }
  void appendOutlineAttributes(OpSerialiserBase &os) const override;
  bool canShard() const override { return true; }
  float getSubgraphValue() const override { return getHighSubgraphValue(); }

private:
  Phase phase_;
  bool fullyConnectedPass_ = true;
  SerialiseSettings serialise_;
};

class MatMulOp : public MatMulBaseOp {
public:
  MatMulOp(const OperatorIdentifier &opid, const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  void setup() override;
  static InIndex getLhsInIndex() { return 0; }
  static InIndex getRhsInIndex() { return 1; }
  static OutIndex getOutIndex() { return 0; }
};

class MatMulLhsGradOp : public MatMulBaseOp {
public:
  explicit MatMulLhsGradOp(const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  static InIndex getGradInIndex() { return 0; }
  static InIndex getRhsInIndex() { return 1; }
  static OutIndex getOutIndex() { return 0; }
};

class MatMulRhsGradOp : public MatMulBaseOp {
public:
  explicit MatMulRhsGradOp(const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  static InIndex getGradInIndex() { return 0; }
  static InIndex getLhsInIndex() { return 1; }
  static OutIndex getOutIndex() { return 0; }
};

} // namespace popart
