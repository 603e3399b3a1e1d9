#pragma once

#include <popart/op.hpp>

namespace popart {

// For sources that ask whether an operator is one: none of the simulator's
// graph is, as it keeps a layer norm as LayerNormalization.
class GroupNormOp : public Op {
public:
  using Op::Op;
  static InIndex getXInIndex() { return 0; }
  static InIndex getScaleInIndex() { return 1; }
  static InIndex getBInIndex() { return 2; }
  static OutIndex getYOutIndex() { return 0; }
  static OutIndex getMeanOutIndex() { return 1; }
  static OutIndex getInvStdDevOutIndex() { return 2; }
  std::unique_ptr<Op> clone() const override = 0;
};

} // namespace popart
