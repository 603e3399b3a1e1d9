// Group pattern: lay a weight's gradient out like the tensor it is added to.
//
// The gradient of a matrix product and the tensor it is accumulated into are
// laid out for different operations, so every scaled addition would rearrange
// one of them in small pieces. AttemptRegroup rearranges the gradient once, in
// blocks, where poplibs finds that this pays. Values never change.
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/logging.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/op/accumulate.hpp>
#include <popart/op/gather.hpp>
#include <popart/op/matmul.hpp>
#include <popart/op/sgd1varupdate.hpp>
#include <popart/op/transpose.hpp>
#include <popart/opmanager.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/tensor.hpp>
#include <popart/tensorindex.hpp>
#include <popart/tensors.hpp>
#include <popops/Rearrange.hpp>

namespace {

const popart::OperatorIdentifier attemptRegroup("bert.ipu", "AttemptRegroup", 1,
                                                2, 1);

// Output 0 is input 0, perhaps in the layout of input 1.
class AttemptRegroupOp : public popart::Op {
public:
  AttemptRegroupOp(const popart::OperatorIdentifier &opid,
                   const popart::Op::Settings &settings_)
      : popart::Op(opid, settings_) {}

  static popart::InIndex inIndex() { return 0; }
  static popart::InIndex refIndex() { return 1; }
  static popart::OutIndex outIndex() { return 0; }

  void setup() override { outInfo(outIndex()) = inInfo(inIndex()); }
  std::unique_ptr<popart::Op> clone() const override {
    return std::unique_ptr<popart::Op>(new AttemptRegroupOp(*this));
  }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

class AttemptRegroupOpx : public popart::popx::Opx {
public:
  AttemptRegroupOpx(popart::Op *op, popart::popx::Devicex *devicex)
      : popart::popx::Opx(op, devicex) {
    verifyOp<AttemptRegroupOp>(op, attemptRegroup);
  }

  void grow(poplar::program::Sequence &prog) const override {
    setOutTensor(AttemptRegroupOp::outIndex(),
                 popops::rearrange::regroupIfBeneficial(
                     graph(), getInTensor(AttemptRegroupOp::inIndex()),
                     getInTensor(AttemptRegroupOp::refIndex()), prog,
                     debugContext("regroup")));
  }
};

bool isDampenedAccumulate(const popart::Op *op) {
  const auto *accumulate = dynamic_cast<const popart::AccumulateOp *>(op);
  return accumulate && accumulate->getAccumulationType() ==
                           popart::AccumulationType::DampenedAdd;
}

bool isVarUpdate(const popart::Op *op) {
  return op->isConvertibleTo<popart::SGD1VarUpdateOp>();
}

// True if the tensor comes out of a matrix product through ops of one input.
// An AttemptRegroup on the way means the work is done already.
bool comesFromMatMul(popart::Tensor *tensor) {
  while (tensor->hasProducer()) {
    popart::Op *op = tensor->getProducer();
    if (op->isConvertibleTo<AttemptRegroupOp>())
      return false;
    if (op->isConvertibleTo<popart::MatMulBaseOp>())
      return true;
    if (isDampenedAccumulate(op))
      tensor = op->inTensor(popart::AccumulateOp::getUpdaterInIndex());
    else if (op->input->n() == 1)
      tensor = op->input->tensors().front();
    else
      return false;
  }
  return false;
}

// The variable a tensor is a value of: through ops of one input, and through
// updates, whose first input is the variable before them.
popart::Tensor *rootVariable(popart::Tensor *tensor) {
  while (tensor->tensorType() != popart::TensorType::Variable) {
    if (!tensor->hasProducer())
      return nullptr;
    popart::Op *op = tensor->getProducer();
    if (op->isConvertibleTo<popart::VarUpdateOp>())
      tensor = op->inTensor(popart::VarUpdateOp::getVarToUpdateInIndex());
    else if (op->input->n() == 1)
      tensor = op->input->tensors().front();
    else
      return nullptr;
  }
  return tensor;
}

// A lookup reads its table through a transpose when the table is tied to the
// output projection, and through a detach when its gradient is taken elsewhere.
bool isViewOfWeight(const popart::Op *op) {
  return op->isConvertibleTo<popart::TransposeBaseOp>() ||
         op->opid.type == "Detach";
}

template <typename Predicate>
bool anyConsumer(popart::Tensor *weight, Predicate matches) {
  std::queue<popart::Tensor *> open;
  open.push(weight);
  while (!open.empty()) {
    popart::Tensor *tensor = open.front();
    open.pop();
    for (popart::Op *consumer : tensor->consumers.getOps()) {
      if (matches(consumer))
        return true;
      if (isViewOfWeight(consumer))
        open.push(consumer->outTensor(0));
    }
  }
  return false;
}

bool isLookup(const popart::Op *op) {
  return op->isConvertibleTo<popart::GatherOp>();
}

bool accumulatesRows(const popart::Op *op) {
  return op->isConvertibleTo<popart::SparseAccumulateOp>() ||
         op->opid.type == "SparseSGD1Accumulate";
}

// A tied table is laid out for its lookups and so is its accumulator: there
// the gradient is regrouped before it is accumulated. Everywhere else the
// accumulator is laid out like the gradient, and it is the accumulator that is
// regrouped before it updates the weight.
class GroupPattern : public popart::PreAliasPattern {
public:
  bool matches(popart::Op *op) const override {
    if (!isDampenedAccumulate(op) && !isVarUpdate(op))
      return false;
    popart::Tensor *root = rootVariable(
        op->inTensor(popart::VarUpdateOp::getVarToUpdateInIndex()));
    if (root == nullptr ||
        !comesFromMatMul(
            op->inTensor(popart::VarUpdateWithUpdaterOp::getUpdaterInIndex())))
      return false;
    return isVarUpdate(op) ? !anyConsumer(root, isLookup)
                           : anyConsumer(root, accumulatesRows);
  }

  std::vector<const popart::Tensor *> touches(popart::Op *) const override {
    return {};
  }

  bool apply(popart::Op *op) const override {
    const auto updaterIndex =
        popart::VarUpdateWithUpdaterOp::getUpdaterInIndex();
    popart::Graph &graph = op->getGraph();
    auto regroup = graph.createOp<AttemptRegroupOp>(
        attemptRegroup,
        popart::Op::Settings(graph, op->name() + "/attemptRegroup"));
    transferBaseProperties(op, regroup);

    popart::Tensor *gradient = op->inTensor(updaterIndex);
    const popart::TensorId regrouped = gradient->id + "_regrouped";
    op->disconnectInTensor(updaterIndex, gradient);
    regroup->connectInTensor(AttemptRegroupOp::inIndex(), gradient->id);
    regroup->connectInTensor(
        AttemptRegroupOp::refIndex(),
        op->inId(popart::VarUpdateOp::getVarToUpdateInIndex()));
    regroup->createAndConnectOutTensor(AttemptRegroupOp::outIndex(), regrouped);
    op->connectInTensor(updaterIndex, regrouped);
    regroup->setup();
    popart::logging::pattern::debug("GroupPattern: {} before {}", regrouped,
                                    op->debugName());
    return true;
  }
};

popart::OpCreator<AttemptRegroupOp>
    attemptRegroupCreator({{attemptRegroup, {}}}, true);
popart::popx::OpxCreator<AttemptRegroupOpx>
    attemptRegroupOpxCreator(attemptRegroup);
popart::PatternCreator<GroupPattern> groupPatternCreator("GroupPattern", true);

} // namespace
