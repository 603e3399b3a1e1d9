// Sparse SGD: add an embedding's gradient rows straight to the accumulator.
//
// The gradient of a lookup is a table of mostly zero rows. Instead of building
// that table and adding all of it, only the rows that were looked up are added.
// The optimizer stays dense: momentum and weight decay reach every row.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/logging.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/op/accumulate.hpp>
#include <popart/op/gather.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/optimizervalue.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/tensor.hpp>
#include <popart/tensors.hpp>
#include <popart/topocons.hpp>
#include <popops/Cast.hpp>
#include <popops/DynamicSlice.hpp>

namespace {

const popart::OperatorIdentifier
    sparseSgd1Accumulate("bert.ipu", "SparseSGD1Accumulate", 1, {3, 4}, 1);

// accumulator[indices[k]] += factor * gradient[k], for k in order; an index
// beyond the table is skipped. The factor is an attribute, or input 2 where it
// changes between steps. Indices may have any rank.
class SparseSGD1AccumulateOp : public popart::VarUpdateWithUpdaterOp {
public:
  SparseSGD1AccumulateOp(const popart::OptimizerValue &factor,
                         const popart::Op::Settings &settings_)
      : popart::VarUpdateWithUpdaterOp(sparseSgd1Accumulate, settings_),
        factor_(factor) {}

  static popart::InIndex getFactorInIndex() { return 2; }
  static popart::InIndex getIndicesInIndex() { return 3; }
  const popart::OptimizerValue &factor() const { return factor_; }

  std::unique_ptr<popart::Op> clone() const override {
    return std::unique_ptr<popart::Op>(new SparseSGD1AccumulateOp(*this));
  }
  std::map<popart::InIndex, popart::TensorId> optimizerInputs() const override {
    std::map<popart::InIndex, popart::TensorId> inputs;
    if (!factor_.isConst())
      inputs[getFactorInIndex()] = inId(getFactorInIndex());
    return inputs;
  }
  void appendOutlineAttributes(popart::OpSerialiserBase &os) const override {
    popart::Op::appendOutlineAttributes(os);
    if (factor_.isConst())
      os.appendAttribute("factor", factor_.val());
  }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  popart::OptimizerValue factor_;
};

class SparseSGD1AccumulateOpx : public popart::popx::Opx {
public:
  SparseSGD1AccumulateOpx(popart::Op *op, popart::popx::Devicex *devicex)
      : popart::popx::Opx(op, devicex) {
    verifyOp<SparseSGD1AccumulateOp>(op, sparseSgd1Accumulate);
  }

  void grow(poplar::program::Sequence &prog) const override {
    using SparseOp = SparseSGD1AccumulateOp;
    const auto accumulator = getInTensor(SparseOp::getVarToUpdateInIndex());
    const auto gradient = getInTensor(SparseOp::getUpdaterInIndex());
    const auto indices = getInTensor(SparseOp::getIndicesInIndex()).flatten();
    checkShapes(accumulator, gradient, indices);
    const auto width = accumulator.dim(1);
    const auto rows =
        gradient.reshape({indices.numElements(), width}).expand({1});
    popops::multiUpdateAdd(graph(), accumulator, rows,
                           asUnsigned(indices, prog).expand({1}),
                           factor(accumulator.elementType(), prog), {0}, {1},
                           prog, popops::SlicePlan(), poplar::OptionFlags(),
                           debugContext("sparseAccumulate"));
    setOutTensor(SparseOp::getUpdatedVarOutIndex(), accumulator);
  }

private:
  static void checkShapes(const poplar::Tensor &accumulator,
                          const poplar::Tensor &gradient,
                          const poplar::Tensor &indices) {
    if (accumulator.rank() != 2)
      throw popart::error("SparseSGD1Accumulate updates a table of rank 2, was "
                          "given rank {}",
                          accumulator.rank());
    if (gradient.numElements() != indices.numElements() * accumulator.dim(1))
      throw popart::error("SparseSGD1Accumulate needs {} gradient rows of {} "
                          "elements, was given {} elements in all",
                          indices.numElements(), accumulator.dim(1),
                          gradient.numElements());
  }

  // A negative index becomes a huge one, which is skipped like any other
  // beyond the table.
  poplar::Tensor asUnsigned(const poplar::Tensor &indices,
                            poplar::program::Sequence &prog) const {
    if (indices.elementType() == poplar::INT)
      return indices.reinterpret(poplar::UNSIGNED_INT);
    return popops::cast(graph(), indices, poplar::UNSIGNED_INT, prog,
                        debugContext("indices"));
  }

  poplar::Tensor factor(const poplar::Type &type,
                        poplar::program::Sequence &prog) const {
    const auto &value = getOp<SparseSGD1AccumulateOp>().factor();
    if (value.isConst())
      return getConst(type, {}, static_cast<double>(value.val()), "factor");
    const auto tensor = getInTensor(SparseSGD1AccumulateOp::getFactorInIndex());
    // A half table takes either type, a float table only float.
    if (type == poplar::FLOAT && tensor.elementType() != poplar::FLOAT)
      return popops::cast(graph(), tensor, type, prog, debugContext("factor"));
    return tensor;
  }
};

// GatherGrad followed by Accumulate becomes SparseSGD1Accumulate, if nothing
// else reads the gradient table, lookups are along axis 0 and the table has
// rank 2. All else stays dense, which is slower and equally right.
class SparseSGDPattern : public popart::PreAliasPattern {
public:
  bool matches(popart::Op *op) const override {
    const auto *gather = dynamic_cast<popart::GatherGradOp *>(op);
    return gather && gather->getAxis() == 0 && accumulateOf(op) != nullptr;
  }

  std::vector<const popart::Tensor *> touches(popart::Op *op) const override {
    return {op->outTensor(popart::GatherGradOp::gradOutIndex())};
  }

  bool apply(popart::Op *op) const override {
    popart::AccumulateOp *dense = accumulateOf(op);
    popart::Graph &graph = op->getGraph();
    auto sparse = graph.createOp<SparseSGD1AccumulateOp>(
        factorOf(*dense),
        popart::Op::Settings(graph, dense->name() + "_sparse"));
    transferBaseProperties(dense, sparse);
    sparse->settings.executionContext = dense->settings.executionContext;
    sparse->settings.optimizerOp = dense->settings.optimizerOp;
    connectInputs(*op, *dense, *sparse);
    graph.topoCons->transfer(op, sparse);
    graph.topoCons->transfer(dense, sparse);

    const auto out = popart::AccumulateOp::getUpdatedVarOutIndex();
    const popart::TensorId updated = dense->outId(out);
    const popart::TensorId table =
        op->outId(popart::GatherGradOp::gradOutIndex());
    erase(*dense);
    erase(*op);
    graph.getTensors().remove(table);
    sparse->connectOutTensor(out, updated);
    sparse->setup();
    popart::logging::pattern::debug("SparseSGDPattern: {} is accumulated "
                                    "sparsely",
                                    updated);
    return true;
  }

private:
  // The accumulation that is the only reader of a gradient table.
  static popart::AccumulateOp *accumulateOf(popart::Op *gatherGrad) {
    const popart::Tensor *table =
        gatherGrad->outTensor(popart::GatherGradOp::gradOutIndex());
    const auto consumers = table->consumers.getOps();
    if (consumers.size() != 1 || table->info.rank() != 2)
      return nullptr;
    auto *accumulate = dynamic_cast<popart::AccumulateOp *>(consumers.front());
    if (accumulate == nullptr ||
        accumulate->inTensor(popart::AccumulateOp::getUpdaterInIndex()) !=
            table)
      return nullptr;
    const auto type = accumulate->getAccumulationType();
    const bool adds = type == popart::AccumulationType::Add ||
                      type == popart::AccumulationType::DampenedAdd;
    return adds ? accumulate : nullptr;
  }

  static popart::OptimizerValue factorOf(const popart::AccumulateOp &dense) {
    // Add ignores the factor.
    if (dense.getAccumulationType() == popart::AccumulationType::Add)
      return popart::OptimizerValue(1.0f, true);
    return dense.getFactor();
  }

  static void connectInputs(popart::Op &gather,
                            const popart::AccumulateOp &dense,
                            SparseSGD1AccumulateOp &sparse) {
    using SparseOp = SparseSGD1AccumulateOp;
    using Dense = popart::AccumulateOp;
    sparse.connectInTensor(SparseOp::getVarToUpdateInIndex(),
                           dense.inId(Dense::getVarToUpdateInIndex()));
    sparse.connectInTensor(SparseOp::getUpdaterInIndex(),
                           gather.inId(popart::GatherGradOp::gradInIndex()));
    if (!sparse.factor().isConst())
      sparse.connectInTensor(SparseOp::getFactorInIndex(),
                             dense.inId(Dense::getFactorInIndex()));
    sparse.connectInTensor(SparseOp::getIndicesInIndex(),
                           gather.inId(popart::GatherGradOp::indicesInIndex()));
  }

  static void erase(popart::Op &op) {
    op.disconnectAllInputs();
    op.disconnectAllOutputs();
    op.getGraph().eraseOp(op.id);
  }
};

popart::OpCreator<SparseSGD1AccumulateOp> sparseSgd1AccumulateCreator(
    popart::OpDefinitions({{sparseSgd1Accumulate, {}}}),
    [](const popart::OpCreatorInfo &info) {
      const float factor =
          info.attributes.getAttribute<popart::Attributes::Float>("factor",
                                                                  1.0f);
      const auto isConst =
          info.attributes.getAttribute<popart::Attributes::Int>("factor_const",
                                                                1);
      return std::unique_ptr<popart::Op>(new SparseSGD1AccumulateOp(
          popart::OptimizerValue(factor, isConst != 0), info.settings));
    },
    true);
popart::popx::OpxCreator<SparseSGD1AccumulateOpx>
    sparseSgd1AccumulateOpxCreator(sparseSgd1Accumulate);
popart::PatternCreator<SparseSGDPattern>
    sparseSgdPatternCreator("SparseSGDPattern", true);

} // namespace
