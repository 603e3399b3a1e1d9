#pragma once

#include <popart/op/elementwise.hpp>

namespace popart {

class MulOp : public ElementWiseBinaryOp {
public:
  using ElementWiseBinaryOp::ElementWiseBinaryOp;
  std::unique_ptr<Op> clone() const override;
};

} // namespace popart
