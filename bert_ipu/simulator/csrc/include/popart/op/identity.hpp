#pragma once

#include <popart/op/elementwise.hpp>

namespace popart {

class IdentityOp : public ElementWiseUnaryOp {
public:
  IdentityOp(const OperatorIdentifier &opid, const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  std::vector<std::unique_ptr<Op>> getGradOps() override;
};

class IdentityGradOp : public IdentityOp {
public:
  explicit IdentityGradOp(const IdentityOp &fwdOp);
  explicit IdentityGradOp(const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  const std::vector<GradInOutMapper> &gradInputInfo() const override;
  const std::map<int, int> &gradOutToNonGradIn() const override;
};

} // namespace popart
