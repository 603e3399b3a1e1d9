#pragma once

#include <popart/op.hpp>

namespace popart {

class TransposeBaseOp : public Op {
public:
  TransposeBaseOp(const OperatorIdentifier &opid, const Shape &perm,
                  const Op::Settings &settings);
  void setup() override;
  const Shape &getPerm() const { return perm_; }
  static InIndex getInIndex() { return 0; }
  static OutIndex getOutIndex() { return 0; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  Shape perm_;
};

class TransposeOp : public TransposeBaseOp {
public:
  using TransposeBaseOp::TransposeBaseOp;
  std::unique_ptr<Op> clone() const override;
};

} // namespace popart
