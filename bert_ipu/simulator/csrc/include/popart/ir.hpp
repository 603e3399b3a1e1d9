#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <popart/graph.hpp>
#include <popart/names.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/sessionoptions.hpp>

namespace popart {

class Optimizer;

// One program: its main graph, and how far it has been compiled.
class Ir {
public:
  Ir();
  ~Ir();

  enum class ExecutionMode { Inference, Training };
  ExecutionMode getExecutionMode() const { return mode_; }
  void setExecutionMode(ExecutionMode mode) { mode_ = mode; }
  bool isTraining() const { return mode_ == ExecutionMode::Training; }
  bool isTesting() const { return mode_ == ExecutionMode::Inference; }
  bool canTrain() const { return isTraining(); }
  bool hasConstructedBackwards() const { return constructedBackwards_; }
  bool hasDecomposedOptimizers() const { return decomposedOptimizers_; }
  void setPhase(bool constructedBackwards, bool decomposedOptimizers);
  const SessionOptions &getSessionOptions() const { return options_; }
  SessionOptions &getSessionOptions() { return options_; }
  const Optimizer &getOptimizer() const;
  void setOptimizer(std::shared_ptr<Optimizer> optimizer);

  Graph &getMainGraph() { return *graph_; }
  const Graph &getMainGraph() const { return *graph_; }
  OpId getOpsCounter() const { return nextOpId_; }
  OpId getAndIncrOpsCounter() { return nextOpId_++; }
  TensorId createIntermediateTensorId(const TensorId &base);
  // While a single op is set up, asking for an output's info creates it: how
  // many outputs an op has is known only to its setup().
  bool createsOutputsOnDemand() const { return outputsOnDemand_; }
  void setCreatesOutputsOnDemand(bool on) { outputsOnDemand_ = on; }
  const std::set<TensorId> &getAnchors() const { return anchors_; }
  void setAnchors(std::set<TensorId> anchors) { anchors_ = std::move(anchors); }

private:
  ExecutionMode mode_ = ExecutionMode::Training;
  bool constructedBackwards_ = false;
  bool decomposedOptimizers_ = false;
  bool outputsOnDemand_ = false;
  OpId nextOpId_ = 100;
  int nextTensor_ = 0;
  SessionOptions options_;
  std::shared_ptr<Optimizer> optimizer_;
  std::set<TensorId> anchors_;
  std::unique_ptr<Graph> graph_;
};

} // namespace popart
