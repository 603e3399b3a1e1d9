#pragma once

#include <iosfwd>

#include <popart/op/varupdate.hpp>
#include <popart/optimizervalue.hpp>

namespace popart {

enum class AccumulationType {
  Add = 0,
  DampenedAdd,
  DampenedAddSquare,
  DecayAdd,
  DecayAddSquare,
  MovingAverage,
  MovingAverageSquare,
  Infinity,
  Mean
};
std::ostream &operator<<(std::ostream &os, const AccumulationType &type);

class AccumulateBaseOp : public VarUpdateWithUpdaterOp {
public:
  AccumulateBaseOp(const OperatorIdentifier &opid, AccumulationType type_,
                   OptimizerValue factor_, const Op::Settings &settings);
  static constexpr InIndex getFactorInIndex() { return 2; }
  AccumulationType getAccumulationType() const { return type; }
  const OptimizerValue &getFactor() const { return factor; }
  std::map<InIndex, TensorId> optimizerInputs() const override;
  void appendOutlineAttributes(OpSerialiserBase &os) const override;
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

protected:
  AccumulationType type;
  const OptimizerValue factor;
};

class AccumulateOp : public AccumulateBaseOp {
public:
  AccumulateOp(AccumulationType type, OptimizerValue factor,
               const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
};

// PopART's own sparse accumulation, which patterns must not rewrite again.
class SparseAccumulateOp : public AccumulateBaseOp {
public:
  SparseAccumulateOp(AccumulationType type, const OptimizerValue &factor,
                     unsigned axis, const Op::Settings &settings);
  std::unique_ptr<Op> clone() const override;
  static constexpr InIndex getIndicesInIndex() { return 3; }
  static constexpr InIndex getOriginalVarToUpdateInIndex() { return 4; }
  unsigned getAxis() const { return axis_; }

private:
  unsigned axis_;
};

} // namespace popart
