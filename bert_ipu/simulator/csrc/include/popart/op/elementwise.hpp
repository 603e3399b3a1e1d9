#pragma once

#include <popart/op.hpp>

namespace popart {

// One input, one output of the same shape and type.
class ElementWiseUnaryOp : public Op {
public:
  using Op::Op;
  static InIndex getInIndex() { return 0; }
  static OutIndex getOutIndex() { return 0; }
  void setup() override { outInfo(0) = inInfo(0); }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

// Two inputs that broadcast.
class ElementWiseBinaryOp : public Op {
public:
  using Op::Op;
  static InIndex getArg0InIndex() { return 0; }
  static InIndex getArg1InIndex() { return 1; }
  static OutIndex getOutIndex() { return 0; }
  void setup() override { outInfo(0) = prettyNpOut(inInfo(0), inInfo(1)); }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

} // namespace popart
