// Sparse SGD: add an embedding's gradient rows straight to the accumulator.
//
// The gradient of a lookup is a table of mostly zero rows. Instead of building
// that table and adding all of it, only the rows that were looked up are added.
// The optimizer stays dense: momentum and weight decay reach every row.
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/logging.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/op/accumulate.hpp>
#include <popart/op/add.hpp>
#include <popart/op/gather.hpp>
#include <popart/op/sum.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/optimizervalue.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/tensor.hpp>
#include <popart/tensorindex.hpp>
#include <popart/tensors.hpp>
#include <popart/topocons.hpp>
#include <popops/Cast.hpp>
#include <popops/DynamicSlice.hpp>
#include <popops/ElementWise.hpp>

namespace {

const popart::OperatorIdentifier
    sparseSgd1Accumulate("bert.ipu", "SparseSGD1Accumulate", 1, {3, 4}, 1);

constexpr int64_t noPadding = -1;

// accumulator[indices[k]] += factor * gradient[k], for k in order; the index of
// the padding row, and any beyond the table, is skipped. The factor is an
// attribute, or input 2 where it changes between steps. Indices may have any
// rank.
class SparseSGD1AccumulateOp : public popart::VarUpdateWithUpdaterOp {
public:
  SparseSGD1AccumulateOp(const popart::OptimizerValue &factor,
                         int64_t paddingIndex,
                         const popart::Op::Settings &settings_)
      : popart::VarUpdateWithUpdaterOp(sparseSgd1Accumulate, settings_),
        factor_(factor), paddingIndex_(paddingIndex) {}

  static popart::InIndex getFactorInIndex() { return 2; }
  static popart::InIndex getIndicesInIndex() { return 3; }
  const popart::OptimizerValue &factor() const { return factor_; }
  int64_t paddingIndex() const { return paddingIndex_; }

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
    os.appendAttribute("padding_idx", paddingIndex_);
  }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

private:
  popart::OptimizerValue factor_;
  int64_t paddingIndex_;
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
    auto rows = gradient.reshape({indices.numElements(), width}).expand({1});
    if (rows.elementType() != accumulator.elementType())
      rows = popops::cast(graph(), rows, accumulator.elementType(), prog,
                          debugContext("updates"));
    popops::multiUpdateAdd(graph(), accumulator, rows,
                           rowsToUpdate(indices, prog).expand({1}),
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
  // beyond the table; so does that of the padding row.
  poplar::Tensor rowsToUpdate(const poplar::Tensor &indices,
                              poplar::program::Sequence &prog) const {
    using namespace popops::expr;
    const poplar::Tensor rows =
        indices.elementType() == poplar::INT
            ? indices.reinterpret(poplar::UNSIGNED_INT)
            : popops::cast(graph(), indices, poplar::UNSIGNED_INT, prog,
                           debugContext("indices"));
    const int64_t padding = getOp<SparseSGD1AccumulateOp>().paddingIndex();
    if (padding == noPadding)
      return rows;
    const Const beyondAnyTable(std::numeric_limits<unsigned>::max());
    return popops::map(
        graph(),
        Select(beyondAnyTable, _1, Equal(_1, Const(unsigned(padding)))), {rows},
        prog, debugContext("padding"));
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

// The gradient of a lookup: PopART's, or PopTorch's own of an embedding with a
// padding row, whose inputs and outputs have the same indices.
bool isEmbeddingGrad(const popart::Op *op) {
  return op->opid.domain == "poptorch.custom_ops" &&
         op->opid.type == "EmbeddingGrad";
}

bool isTableOfRows(const popart::Op *op) {
  const auto *gather = dynamic_cast<const popart::GatherGradOp *>(op);
  return gather ? gather->getAxis() == 0 : isEmbeddingGrad(op);
}

// PopTorch's class has no public header, but ops tell their attributes as
// text, to be compared by.
int64_t paddingIndexOf(const popart::Op &op) {
  if (!isEmbeddingGrad(&op))
    return noPadding;
  std::stringstream attributes;
  popart::OpSerialiser serialiser(&op, attributes);
  op.appendOutlineAttributes(serialiser);
  const std::string text = attributes.str(), key = "padding_idx: ";
  const auto at = text.find(key);
  return at == std::string::npos ? noPadding
                                 : std::stoll(text.substr(at + key.size()));
}

// A gradient table that is accumulated, by itself or within the sum that is a
// tied weight's gradient, is never built: its rows are accumulated instead. All
// else stays dense, which is slower and equally right: tables that something
// else reads too, of another rank than 2, or of lookups along another axis.
class SparseSGDPattern : public popart::PreAliasPattern {
public:
  bool matches(popart::Op *op) const override {
    return isTableOfRows(op) && tableOf(op)->info.rank() == 2 &&
           accumulateOf(tableOf(op)) != nullptr;
  }

  // The table goes, and so do its rows from the sums it is part of.
  std::vector<const popart::Tensor *> touches(popart::Op *op) const override {
    std::vector<const popart::Tensor *> changed;
    popart::Tensor *gradient = tableOf(op);
    for (; isSum(readerOf(gradient)); gradient = sumOf(readerOf(gradient)))
      changed.push_back(gradient);
    changed.push_back(gradient);
    return changed;
  }

  bool apply(popart::Op *op) const override {
    popart::Op *reader = readerOf(tableOf(op));
    popart::AccumulateOp *dense = accumulateOf(tableOf(op));
    SparseSGD1AccumulateOp *sparse = createSparse(*op, *dense);
    if (reader == dense)
      replace(*dense, *sparse);
    else
      accumulateBefore(*dense, *sparse, *reader, *tableOf(op));
    erase(*op);
    popart::logging::pattern::debug(
        "SparseSGDPattern: {} is accumulated sparsely",
        sparse->outId(SparseSGD1AccumulateOp::getUpdatedVarOutIndex()));
    return true;
  }

private:
  using Dense = popart::AccumulateOp;
  using Sparse = SparseSGD1AccumulateOp;

  static popart::Tensor *tableOf(popart::Op *gather) {
    return gather->outTensor(popart::GatherGradOp::gradOutIndex());
  }

  static popart::Tensor *sumOf(popart::Op *sum) { return sum->outTensor(0); }

  // The only reader of a gradient, which reads it once.
  static popart::Op *readerOf(const popart::Tensor *gradient) {
    if (gradient->consumers.getTotal() != 1)
      return nullptr;
    return gradient->consumers.getOps().front();
  }

  // The sum of two gradients of one weight.
  static bool isSum(const popart::Op *op) {
    return op &&
           (op->isConvertibleTo<popart::SumOp>() ||
            op->isConvertibleTo<popart::AddOp>()) &&
           op->input->n() == 2 && op->inInfo(0) == op->inInfo(1);
  }

  // The accumulation at the end of a gradient's way, if there are only sums
  // before it.
  static Dense *accumulateOf(popart::Tensor *gradient) {
    popart::Op *reader = readerOf(gradient);
    for (; isSum(reader); reader = readerOf(gradient))
      gradient = sumOf(reader);
    auto *accumulate = dynamic_cast<Dense *>(reader);
    if (accumulate == nullptr ||
        accumulate->inTensor(Dense::getUpdaterInIndex()) != gradient)
      return nullptr;
    const auto type = accumulate->getAccumulationType();
    const bool adds = type == popart::AccumulationType::Add ||
                      type == popart::AccumulationType::DampenedAdd;
    return adds ? accumulate : nullptr;
  }

  static popart::OptimizerValue factorOf(const Dense &dense) {
    // Add ignores the factor.
    if (dense.getAccumulationType() == popart::AccumulationType::Add)
      return popart::OptimizerValue(1.0f, true);
    return dense.getFactor();
  }

  // Adds the rows to what `dense` adds its gradient to; the result is not
  // connected yet.
  Sparse *createSparse(popart::Op &gather, Dense &dense) const {
    popart::Graph &graph = dense.getGraph();
    auto sparse = graph.createOp<Sparse>(
        factorOf(dense), paddingIndexOf(gather),
        popart::Op::Settings(graph, dense.name() + "_sparse"));
    transferBaseProperties(&dense, sparse);
    sparse->settings.executionContext = dense.settings.executionContext;
    sparse->settings.optimizerOp = dense.settings.optimizerOp;
    sparse->connectInTensor(Sparse::getVarToUpdateInIndex(),
                            dense.inId(Dense::getVarToUpdateInIndex()));
    sparse->connectInTensor(Sparse::getUpdaterInIndex(),
                            gather.inId(popart::GatherGradOp::gradInIndex()));
    if (!sparse->factor().isConst())
      sparse->connectInTensor(Sparse::getFactorInIndex(),
                              dense.inId(Dense::getFactorInIndex()));
    sparse->connectInTensor(
        Sparse::getIndicesInIndex(),
        gather.inId(popart::GatherGradOp::indicesInIndex()));
    graph.topoCons->transfer(&gather, sparse);
    return sparse;
  }

  // The table was all there was to accumulate.
  static void replace(Dense &dense, Sparse &sparse) {
    const auto out = Dense::getUpdatedVarOutIndex();
    const popart::TensorId updated = dense.outId(out);
    dense.getGraph().topoCons->transfer(&dense, &sparse);
    dense.disconnectAllOutputs();
    erase(dense);
    sparse.connectOutTensor(out, updated);
    sparse.setup();
  }

  // The rows first, then the sum without them. Reading the accumulator that
  // holds the rows, `dense` cannot run before `sparse`.
  static void accumulateBefore(Dense &dense, Sparse &sparse, popart::Op &sum,
                               popart::Tensor &table) {
    const auto variable = Dense::getVarToUpdateInIndex();
    sparse.createAndConnectOutTensor(
        Sparse::getUpdatedVarOutIndex(),
        dense.getIr().createIntermediateTensorId(dense.inId(variable)));
    sparse.setup();
    reconnect(dense, variable, sparse.outId(Sparse::getUpdatedVarOutIndex()));

    popart::Op *reader = readerOf(sumOf(&sum));
    const auto index = reader->input->indices(sumOf(&sum)).front();
    const bool tableIsFirst = sum.inTensor(0) == &table;
    reconnect(*reader, index, sum.inId(tableIsFirst ? 1 : 0));
    erase(sum);
  }

  static void reconnect(popart::Op &op, popart::InIndex index,
                        const popart::TensorId &id) {
    op.disconnectInTensor(index, op.inTensor(index));
    op.connectInTensor(index, id);
  }

  // Removes an op with the tensors it makes.
  static void erase(popart::Op &op) {
    popart::Graph &graph = op.getGraph();
    const auto made = op.output->tensorIdMap();
    op.disconnectAllInputs();
    op.disconnectAllOutputs();
    graph.eraseOp(op.id);
    for (const auto &output : made)
      graph.getTensors().remove(output.second);
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
      const auto padding =
          info.attributes.getAttribute<popart::Attributes::Int>("padding_idx",
                                                                noPadding);
      return std::unique_ptr<popart::Op>(new SparseSGD1AccumulateOp(
          popart::OptimizerValue(factor, isConst != 0), padding,
          info.settings));
    },
    true);
popart::popx::OpxCreator<SparseSGD1AccumulateOpx>
    sparseSgd1AccumulateOpxCreator(sparseSgd1Accumulate);
popart::PatternCreator<SparseSGDPattern>
    sparseSgdPatternCreator("SparseSGDPattern", true);

} // namespace
