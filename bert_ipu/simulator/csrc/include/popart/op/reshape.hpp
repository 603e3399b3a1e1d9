#pragma once

#include <popart/op.hpp>

namespace popart {

class ReshapeOp : public Op {
public:
  ReshapeOp(const OperatorIdentifier &opid, const Shape &outShape,
            const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  void setup() override;
  const Shape &getOutShape() const { return outShape_; }
  static InIndex getInIndex() { return 0; }
  static OutIndex getOutIndex() { return 0; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  Shape outShape_;
};

} // namespace popart
