// A moving average of a weight, as an op of the forward that its pattern turns
// into PopART's accumulation after the micro-batches.
#include <memory>
#include <vector>

#include <popart/graph.hpp>
#include <popart/op.hpp>
#include <popart/op/accumulate.hpp>
#include <popart/opmanager.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/tensor.hpp>

namespace {

const popart::OperatorIdentifier averaged("test.average", "Averaged", 1);

// Inputs: the average, the weight, and how much of the average stays.
class AveragedOp : public popart::Op {
public:
  AveragedOp(const popart::OperatorIdentifier &opid,
             const popart::Op::Settings &settings_)
      : popart::Op(opid, settings_) {}
  void setup() override { outInfo(0) = inInfo(0); }
  std::unique_ptr<popart::Op> clone() const override {
    return std::unique_ptr<popart::Op>(new AveragedOp(*this));
  }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
  bool hasSideEffect() const override { return true; }
};

class AverageAfterMicroBatches : public popart::PreAliasPattern {
public:
  bool matches(popart::Op *op) const override {
    return op->isConvertibleTo<AveragedOp>();
  }
  std::vector<const popart::Tensor *> touches(popart::Op *) const override {
    return {};
  }
  bool apply(popart::Op *op) const override {
    popart::Graph &graph = op->getGraph();
    std::unique_ptr<popart::Op> made(
        new popart::AccumulateOp(popart::AccumulationType::MovingAverage,
                                 popart::OptimizerValue(0, false),
                                 popart::Op::Settings(graph, "average")));
    popart::Op *accumulate = made.get();
    transferBaseProperties(op, accumulate);
    graph.moveIntoGraph(std::move(made));
    const popart::TensorId average = op->inId(0), weight = op->inId(1),
                           factor = op->inId(2), out = op->outId(0);
    op->disconnectAllInputs();
    op->disconnectAllOutputs();
    graph.eraseOp(op->id);
    using popart::AccumulateOp;
    accumulate->connectInTensor(AccumulateOp::getVarToUpdateInIndex(), average);
    accumulate->connectInTensor(AccumulateOp::getUpdaterInIndex(), weight);
    accumulate->connectInTensor(AccumulateOp::getFactorInIndex(), factor);
    accumulate->connectOutTensor(AccumulateOp::getUpdatedVarOutIndex(), out);
    accumulate->settings.executionContext =
        popart::ExecutionContext::AccumulateOuterFragment;
    accumulate->setup();
    return true;
  }
};

popart::OpDefinition definition({popart::OpDefinition::Inputs({}),
                                 popart::OpDefinition::Outputs({}),
                                 popart::OpDefinition::Attributes({})});
popart::OpCreator<AveragedOp>
    creator(popart::OpDefinitions({{averaged, definition}}));
popart::PatternCreator<AverageAfterMicroBatches>
    pattern("AverageAfterMicroBatches", true);

} // namespace
