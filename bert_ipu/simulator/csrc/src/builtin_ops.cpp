#include "builtin_ops.hpp"

#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/op/accumulate.hpp>
#include <popart/op/adamupdater.hpp>
#include <popart/op/adamvarupdate.hpp>
#include <popart/op/add.hpp>
#include <popart/op/dropout.hpp>
#include <popart/op/gather.hpp>
#include <popart/op/identity.hpp>
#include <popart/op/l1.hpp>
#include <popart/op/lamb.hpp>
#include <popart/op/matmul.hpp>
#include <popart/op/mul.hpp>
#include <popart/op/reshape.hpp>
#include <popart/op/sgd0varupdate.hpp>
#include <popart/op/sgd1acclupdate.hpp>
#include <popart/op/sgd1accumulate.hpp>
#include <popart/op/sgd1varupdate.hpp>
#include <popart/op/softmax.hpp>
#include <popart/op/subtract.hpp>
#include <popart/op/sum.hpp>
#include <popart/op/transpose.hpp>
#include <popart/operators.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>

#include <algorithm>
#include <numeric>

namespace popart {

#define POPEMU_CLONE(Class)                                                    \
  std::unique_ptr<Op> Class::clone() const {                                   \
    return std::unique_ptr<Op>(new Class(*this));                              \
  }
POPEMU_CLONE(AddOp)
POPEMU_CLONE(SubtractOp)
POPEMU_CLONE(MulOp)
POPEMU_CLONE(SumOp)
POPEMU_CLONE(IdentityOp)
POPEMU_CLONE(IdentityGradOp)
POPEMU_CLONE(L1Op)
POPEMU_CLONE(MatMulOp)
POPEMU_CLONE(MatMulLhsGradOp)
POPEMU_CLONE(MatMulRhsGradOp)
POPEMU_CLONE(GatherOp)
POPEMU_CLONE(GatherGradOp)
POPEMU_CLONE(DropoutOp)
POPEMU_CLONE(DropoutGradOp)
POPEMU_CLONE(SoftmaxOp)
POPEMU_CLONE(SoftmaxGradOp)
POPEMU_CLONE(TransposeOp)
POPEMU_CLONE(ReshapeOp)
POPEMU_CLONE(AccumulateOp)
POPEMU_CLONE(SparseAccumulateOp)
POPEMU_CLONE(SGD1AccumulateOp)
POPEMU_CLONE(SGD1VarUpdateOp)
POPEMU_CLONE(SGD1AcclUpdateOp)
POPEMU_CLONE(SGD0VarUpdateOp)
POPEMU_CLONE(AdamUpdaterOp)
POPEMU_CLONE(AdamVarUpdateOp)
POPEMU_CLONE(LambSquareOp)
#undef POPEMU_CLONE

// Elementwise

IdentityOp::IdentityOp(const OperatorIdentifier &opid_,
                       const Op::Settings &settings_)
    : ElementWiseUnaryOp(opid_, settings_) {}

std::vector<std::unique_ptr<Op>> IdentityOp::getGradOps() {
  std::vector<std::unique_ptr<Op>> ops;
  ops.emplace_back(new IdentityGradOp(*this));
  return ops;
}

IdentityGradOp::IdentityGradOp(const IdentityOp &fwdOp)
    : IdentityGradOp(fwdOp.getSettings()) {}

IdentityGradOp::IdentityGradOp(const Op::Settings &settings_)
    : IdentityOp(Onnx::GradOperators::IdentityGrad, settings_) {}

const std::vector<GradInOutMapper> &IdentityGradOp::gradInputInfo() const {
  static const std::vector<GradInOutMapper> info = {
      {getInIndex(), IdentityOp::getOutIndex(), GradOpInType::GradOut}};
  return info;
}

const std::map<int, int> &IdentityGradOp::gradOutToNonGradIn() const {
  static const std::map<int, int> info = {
      {getOutIndex(), IdentityOp::getInIndex()}};
  return info;
}

L1Op::L1Op(const OperatorIdentifier &opid_, float lambda,
           ReductionType reduction, const Op::Settings &settings_)
    : Op(opid_, settings_), lambda_(lambda), reduction_(reduction) {}

void L1Op::setup() {
  const Shape shape = reduction_ == ReductionType::NoReduction
                          ? Shape{inShape(0).at(0)}
                          : Shape{};
  outInfo(0).set(inInfo(0).dataType(), shape);
}

void SumOp::setup() {
  outInfo(0) = inInfo(0);
  for (const Tensor *tensor : input->tensors())
    outInfo(0) = prettyNpOut(outInfo(0), tensor->info);
}

SoftmaxOp::SoftmaxOp(const OperatorIdentifier &opid_, int64_t axis,
                     const Op::Settings &settings_)
    : ElementWiseUnaryOp(opid_, settings_), axis_(axis) {}

SoftmaxGradOp::SoftmaxGradOp(int64_t axis, const Op::Settings &settings_)
    : Op(Onnx::GradOperators::SoftmaxGrad, settings_), axis_(axis) {}

void SoftmaxGradOp::setup() { outInfo(0) = inInfo(0); }

// MatMul

MatMulBaseOp::MatMulBaseOp(const OperatorIdentifier &opid_,
                           const Op::Settings &settings_, Phase phase)
    : Op(opid_, settings_), phase_(phase) {}

void MatMulBaseOp::appendOutlineAttributes(OpSerialiserBase &os) const {
  os.appendAttribute("fully_connected_pass",
                     fullyConnectedPass_ ? static_cast<int>(phase_) : -1);
}

MatMulOp::MatMulOp(const OperatorIdentifier &opid_,
                   const Op::Settings &settings_)
    : MatMulBaseOp(opid_, settings_, Phase::Fwd) {}

void MatMulOp::setup() {
  Shape lhs = inShape(0), rhs = inShape(1);
  if (lhs.size() < 2 || rhs.size() < 2 || lhs.back() != rhs[rhs.size() - 2])
    throw error("{} cannot multiply {} and {}", opid, lhs, rhs);
  const int64_t rows = lhs[lhs.size() - 2], columns = rhs.back();
  lhs.resize(lhs.size() - 2);
  rhs.resize(rhs.size() - 2);
  Shape out = prettyNpOut(lhs, rhs);
  out.push_back(rows);
  out.push_back(columns);
  outInfo(0).set(inInfo(0).dataType(), out);
}

MatMulLhsGradOp::MatMulLhsGradOp(const Op::Settings &settings_)
    : MatMulBaseOp(Onnx::GradOperators::MatMulLhsGrad, settings_,
                   Phase::BwdLHS) {}

MatMulRhsGradOp::MatMulRhsGradOp(const Op::Settings &settings_)
    : MatMulBaseOp(Onnx::GradOperators::MatMulRhsGrad, settings_,
                   Phase::BwdRHS) {}

// Gather

GatherOp::GatherOp(const OperatorIdentifier &opid_, int64_t axis,
                   const Op::Settings &settings_)
    : Op(opid_, settings_), axis_(axis) {}

void GatherOp::setup() {
  Shape shape = inShape(dataInIndex());
  const Shape indices = inShape(indicesInIndex());
  const auto at = shape.erase(shape.begin() + axis_);
  shape.insert(at, indices.begin(), indices.end());
  outInfo(0).set(inInfo(dataInIndex()).dataType(), shape);
}

void GatherOp::appendOutlineAttributes(OpSerialiserBase &os) const {
  os.appendAttribute("axis", axis_);
}

GatherGradOp::GatherGradOp(int64_t axis, const Op::Settings &settings_)
    : Op(Onnx::GradOperators::GatherGrad, settings_), axis_(axis) {}

void GatherGradOp::appendOutlineAttributes(OpSerialiserBase &os) const {
  os.appendAttribute("axis", axis_);
}

// Dropout

DropoutBaseOp::DropoutBaseOp(const OperatorIdentifier &opid_, float ratio,
                             const Op::Settings &settings_)
    : Op(opid_, settings_), ratio_(ratio) {}

bool DropoutBaseOp::canBeReplacedByIdentity() const {
  return getIr().isTesting() || ratio_ == 0.0f;
}

void DropoutBaseOp::setup() { outInfo(0) = inInfo(0); }

void DropoutBaseOp::appendOutlineAttributes(OpSerialiserBase &os) const {
  os.appendAttribute("ratio", ratio_);
}

bool DropoutOp::canBeReplacedByIdentity() const {
  return !outputMask_ && DropoutBaseOp::canBeReplacedByIdentity();
}

DropoutGradOp::DropoutGradOp(float ratio, const Op::Settings &settings_)
    : DropoutOp(Onnx::GradOperators::DropoutGrad, ratio, settings_) {}

// Views

TransposeBaseOp::TransposeBaseOp(const OperatorIdentifier &opid_,
                                 const Shape &perm,
                                 const Op::Settings &settings_)
    : Op(opid_, settings_), perm_(perm) {}

void TransposeBaseOp::setup() {
  const Shape in = inShape(0);
  if (perm_.empty()) { // ONNX: reverse the dimensions
    perm_.resize(in.size());
    std::iota(perm_.rbegin(), perm_.rend(), 0);
  }
  Shape out;
  for (int64_t dimension : perm_)
    out.push_back(in.at(static_cast<size_t>(dimension)));
  outInfo(0).set(inInfo(0).dataType(), out);
}

ReshapeOp::ReshapeOp(const OperatorIdentifier &opid_, const Shape &outShape,
                     const Op::Settings &settings_)
    : Op(opid_, settings_), outShape_(outShape) {}

void ReshapeOp::setup() { outInfo(0).set(inInfo(0).dataType(), outShape_); }

// Optimizers

VarUpdateOp::VarUpdateOp(const OperatorIdentifier &opid_,
                         const Op::Settings &settings_)
    : Op(opid_, settings_) {}

VarUpdateOp::VarUpdateOp(const OperatorIdentifier &opid_, const TensorId &varId,
                         const Op::Settings &settings_)
    : Op(opid_, settings_), varId_(varId) {}

void VarUpdateOp::setup() { outInfo(0) = inInfo(0); }

view::Regions VarUpdateOp::aliases(InIndex in, OutIndex) const {
  if (in != getVarToUpdateInIndex())
    return {view::Region::getEmpty(inRank(in))};
  return {view::Region::getFull(inShape(in))};
}

view::Regions VarUpdateOp::modifies(InIndex in) const { return aliases(in, 0); }

std::ostream &operator<<(std::ostream &os, const AccumulationType &type) {
  static const char *const names[] = {"Add",
                                      "DampenedAdd",
                                      "DampenedAddSquare",
                                      "DecayAdd",
                                      "DecayAddSquare",
                                      "MovingAverage",
                                      "MovingAverageSquare",
                                      "Infinity",
                                      "Mean"};
  return os << names[static_cast<int>(type)];
}

namespace {

// Values that change between steps come as tensors.
void addIfTensor(std::map<InIndex, TensorId> &inputs, const Op &op,
                 const OptimizerValue &value, InIndex index) {
  if (!value.isConst())
    inputs[index] = op.inId(index);
}

} // namespace

AccumulateBaseOp::AccumulateBaseOp(const OperatorIdentifier &opid_,
                                   AccumulationType type_,
                                   OptimizerValue factor_,
                                   const Op::Settings &settings_)
    : VarUpdateWithUpdaterOp(opid_, settings_), type(type_), factor(factor_) {}

std::map<InIndex, TensorId> AccumulateBaseOp::optimizerInputs() const {
  std::map<InIndex, TensorId> inputs;
  addIfTensor(inputs, *this, factor, getFactorInIndex());
  return inputs;
}

void AccumulateBaseOp::appendOutlineAttributes(OpSerialiserBase &os) const {
  os.appendAttribute("accumulation_type", type);
  if (factor.isConst())
    os.appendAttribute("factor", factor.val());
}

AccumulateOp::AccumulateOp(AccumulationType type_, OptimizerValue factor_,
                           const Op::Settings &settings_)
    : AccumulateBaseOp(Onnx::CustomOperators::Accumulate, type_, factor_,
                       settings_) {}

SparseAccumulateOp::SparseAccumulateOp(AccumulationType type_,
                                       const OptimizerValue &factor_,
                                       unsigned axis,
                                       const Op::Settings &settings_)
    : AccumulateBaseOp(Onnx::CustomOperators::SparseAccumulate, type_, factor_,
                       settings_),
      axis_(axis) {}

SGD1AccumulateOp::SGD1AccumulateOp(const TensorId &, OptimizerValue dpsf1,
                                   const Op::Settings &settings_)
    : AccumulateOp(AccumulationType::DampenedAdd, dpsf1, settings_),
      initDpsf1(dpsf1) {}

SGD1VarUpdateOp::SGD1VarUpdateOp(OptimizerValue slr1,
                                 const Op::Settings &settings_)
    : VarUpdateWithUpdaterOp(Onnx::CustomOperators::SGD1VarUpdate, settings_),
      initSlr1(slr1) {}

std::map<InIndex, TensorId> SGD1VarUpdateOp::optimizerInputs() const {
  std::map<InIndex, TensorId> inputs;
  addIfTensor(inputs, *this, initSlr1, getSlr1InIndex());
  return inputs;
}

SGD1AcclUpdateOp::SGD1AcclUpdateOp(OptimizerValue smm1, OptimizerValue swd1,
                                   const Op::Settings &settings_)
    : VarUpdateWithUpdaterOp(Onnx::CustomOperators::SGD1AcclUpdate, settings_),
      initSmm1(smm1), initSwd1(swd1) {}

std::map<InIndex, TensorId> SGD1AcclUpdateOp::optimizerInputs() const {
  std::map<InIndex, TensorId> inputs;
  addIfTensor(inputs, *this, initSmm1, getSmm1InIndex());
  addIfTensor(inputs, *this, initSwd1, getSwd1InIndex());
  return inputs;
}

SGD0VarUpdateOp::SGD0VarUpdateOp(OptimizerValue slr0, OptimizerValue wdsf0,
                                 const Op::Settings &settings_)
    : VarUpdateWithUpdaterOp(Onnx::CustomOperators::SGD0VarUpdate, settings_),
      initSlr0(slr0), initWdsf0(wdsf0) {}

std::map<InIndex, TensorId> SGD0VarUpdateOp::optimizerInputs() const {
  std::map<InIndex, TensorId> inputs;
  addIfTensor(inputs, *this, initSlr0, getSlr0InIndex());
  addIfTensor(inputs, *this, initWdsf0, getWdsf0InIndex());
  return inputs;
}

AdamUpdaterOp::AdamUpdaterOp(const Op::Settings &settings_)
    : Op(Onnx::CustomOperators::AdamUpdater, settings_) {}

AdamVarUpdateOp::AdamVarUpdateOp(OptimizerValue learningRate,
                                 const Op::Settings &settings_)
    : VarUpdateWithUpdaterOp(Onnx::CustomOperators::AdamVarUpdate, settings_),
      initLr(learningRate) {}

std::map<InIndex, TensorId> AdamVarUpdateOp::optimizerInputs() const {
  std::map<InIndex, TensorId> inputs;
  addIfTensor(inputs, *this, initLr, getLrInIndex());
  return inputs;
}

LambSquareOp::LambSquareOp(const Op::Settings &settings_)
    : Op(Onnx::CustomOperators::LambSquare, settings_) {}

void LambSquareOp::setup() { outInfo(0).set(DataType::FLOAT, {}); }

namespace {

// Patterns create this one by name.
OpCreator<IdentityOp> identityCreator({{Onnx::Operators::Identity_1, {}}});

} // namespace
} // namespace popart

namespace popemu {

using namespace popart;

namespace {

class GenericOp : public Op {
public:
  using Op::Op;
  std::unique_ptr<Op> clone() const override {
    return std::unique_ptr<Op>(new GenericOp(*this));
  }
  void setup() override {
    throw error("{} is known to the simulator only by its given outputs", opid);
  }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

// The gradient of an embedding with a padding row, which gets none: an op of
// PopTorch, not of PopART, so that patterns know it by its type only, and the
// padding row by the text of its attributes.
class EmbeddingGradOp : public GenericOp {
public:
  EmbeddingGradOp(const OperatorIdentifier &opid_, int64_t paddingIndex,
                  const Op::Settings &settings_)
      : GenericOp(opid_, settings_), paddingIndex_(paddingIndex) {}
  std::unique_ptr<Op> clone() const override {
    return std::unique_ptr<Op>(new EmbeddingGradOp(*this));
  }
  void appendOutlineAttributes(OpSerialiserBase &os) const override {
    GenericOp::appendOutlineAttributes(os);
    os.appendAttribute("padding_idx", paddingIndex_);
  }

private:
  int64_t paddingIndex_;
};

int64_t axisOf(const Attributes &attributes, int64_t otherwise = 0) {
  return attributes.getAttribute<Attributes::Int>("axis", otherwise);
}

float ratioOf(const Attributes &attributes) {
  return attributes.getAttribute<Attributes::Float>("ratio", 0.5f);
}

// "dpsf1" = 0.1 with "dpsf1_const" = 0 is a value that arrives as a tensor.
OptimizerValue valueOf(const Attributes &attributes, const std::string &name) {
  return OptimizerValue(
      attributes.getAttribute<Attributes::Float>(name, 1.0f),
      attributes.getAttribute<Attributes::Int>(name + "_const", 1) != 0);
}

AccumulationType accumulationTypeOf(const Attributes &attributes) {
  const auto name =
      attributes.getAttribute<Attributes::String>("accumulation_type", "Add");
  for (int i = 0; i <= static_cast<int>(AccumulationType::Mean); ++i) {
    const auto type = static_cast<AccumulationType>(i);
    if (logging::format("{}", type) == name)
      return type;
  }
  throw error("there is no accumulation type {}", name);
}

using Factory = std::unique_ptr<Op> (*)(const OperatorIdentifier &,
                                        const Attributes &,
                                        const Op::Settings &);
using Created = std::unique_ptr<Op>;
template <typename OP>
Created plain(const OperatorIdentifier &opid, const Attributes &,
              const Op::Settings &s) {
  return Created(new OP(opid, s));
}

template <typename OP>
Created ofSettings(const OperatorIdentifier &, const Attributes &,
                   const Op::Settings &s) {
  return Created(new OP(s));
}

Created accumulate(const OperatorIdentifier &opid, const Attributes &a,
                   const Op::Settings &s) {
  const auto type = accumulationTypeOf(a);
  Created op;
  if (opid.type == "SGD1Accumulate" || type == AccumulationType::DampenedAdd) {
    const std::string name = a.hasAttribute("dpsf1") ? "dpsf1" : "factor";
    op.reset(new SGD1AccumulateOp("", valueOf(a, name), s));
  } else {
    op.reset(new AccumulateOp(type, valueOf(a, "factor"), s));
  }
  return op;
}

Created transpose(const OperatorIdentifier &opid, const Attributes &a,
                  const Op::Settings &s) {
  return Created(
      new TransposeOp(opid, a.getAttribute<Attributes::Ints>("perm", {}), s));
}

Created reshape(const OperatorIdentifier &opid, const Attributes &a,
                const Op::Settings &s) {
  return Created(
      new ReshapeOp(opid, a.getAttribute<Attributes::Ints>("shape", {}), s));
}

Created gather(const OperatorIdentifier &opid, const Attributes &a,
               const Op::Settings &s) {
  return Created(new GatherOp(opid, axisOf(a), s));
}

Created gatherGrad(const OperatorIdentifier &, const Attributes &a,
                   const Op::Settings &s) {
  return Created(new GatherGradOp(axisOf(a), s));
}

Created embeddingGrad(const OperatorIdentifier &opid, const Attributes &a,
                      const Op::Settings &s) {
  return Created(new EmbeddingGradOp(
      opid, a.getAttribute<Attributes::Int>("padding_idx"), s));
}

Created dropout(const OperatorIdentifier &opid, const Attributes &a,
                const Op::Settings &s) {
  return Created(new DropoutOp(opid, ratioOf(a), s));
}

Created dropoutGrad(const OperatorIdentifier &, const Attributes &a,
                    const Op::Settings &s) {
  return Created(new DropoutGradOp(ratioOf(a), s));
}

Created softmax(const OperatorIdentifier &opid, const Attributes &a,
                const Op::Settings &s) {
  return Created(new SoftmaxOp(opid, axisOf(a, 1), s));
}

Created softmaxGrad(const OperatorIdentifier &, const Attributes &a,
                    const Op::Settings &s) {
  return Created(new SoftmaxGradOp(axisOf(a, 1), s));
}

Created sgd0VarUpdate(const OperatorIdentifier &, const Attributes &a,
                      const Op::Settings &s) {
  return Created(
      new SGD0VarUpdateOp(valueOf(a, "slr0"), valueOf(a, "wdsf0"), s));
}

Created sgd1VarUpdate(const OperatorIdentifier &, const Attributes &a,
                      const Op::Settings &s) {
  return Created(new SGD1VarUpdateOp(valueOf(a, "slr1"), s));
}

Created sgd1AcclUpdate(const OperatorIdentifier &, const Attributes &a,
                       const Op::Settings &s) {
  return Created(
      new SGD1AcclUpdateOp(valueOf(a, "smm1"), valueOf(a, "swd1"), s));
}

Created adamVarUpdate(const OperatorIdentifier &, const Attributes &a,
                      const Op::Settings &s) {
  return Created(new AdamVarUpdateOp(valueOf(a, "lr"), s));
}

const std::map<OpType, Factory> &factories() {
  static const std::map<OpType, Factory> table = {
      {"Add", plain<AddOp>},
      {"Sub", plain<SubtractOp>},
      {"Mul", plain<MulOp>},
      {"Sum", plain<SumOp>},
      {"Identity", plain<IdentityOp>},
      {"MatMul", plain<MatMulOp>},
      {"MatMulLhsGrad", ofSettings<MatMulLhsGradOp>},
      {"MatMulRhsGrad", ofSettings<MatMulRhsGradOp>},
      {"Transpose", transpose},
      {"Reshape", reshape},
      {"Gather", gather},
      {"GatherGrad", gatherGrad},
      {"EmbeddingGrad", embeddingGrad},
      {"Dropout", dropout},
      {"DropoutGrad", dropoutGrad},
      {"Softmax", softmax},
      {"SoftmaxGrad", softmaxGrad},
      {"Accumulate", accumulate},
      {"SGD1Accumulate", accumulate},
      {"SGD0VarUpdate", sgd0VarUpdate},
      {"SGD1VarUpdate", sgd1VarUpdate},
      {"SGD1AcclUpdate", sgd1AcclUpdate},
      {"AdamUpdater", ofSettings<AdamUpdaterOp>},
      {"AdamVarUpdate", adamVarUpdate},
      {"LambSquare", ofSettings<LambSquareOp>},
  };
  return table;
}

} // namespace

std::unique_ptr<Op> createBuiltinOp(const OperatorIdentifier &opid,
                                    const Attributes &attributes,
                                    const Op::Settings &settings) {
  const auto found = factories().find(opid.type);
  return found == factories().end() ? nullptr
                                    : found->second(opid, attributes, settings);
}

std::unique_ptr<Op> createGenericOp(const OperatorIdentifier &opid,
                                    const Op::Settings &settings) {
  return std::unique_ptr<Op>(new GenericOp(opid, settings));
}

} // namespace popemu
