// Runs one recorded program on memory given from outside.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core.hpp"

namespace popemu {

struct StepCost {
  std::string name;
  Cost cost;
};

class Engine {
public:
  struct Request {
    std::string title; // for messages
    poplar::Graph graph;
    const poplar::program::Sequence &program;
    std::vector<poplar::Tensor> inputs; // each a whole variable
    std::vector<poplar::Tensor> outputs;
    // From an input that the op changes in place to the output that shows it.
    std::map<int, int> updates;
    std::vector<poplar::Tensor> seeds; // inputs filled with the run's seed
    // Whether the first run of vertices is tried in a forked child.
    bool isolate;
  };
  explicit Engine(Request request);

  // Inputs are read only, except with `inPlace` those in `updates`.
  void run(void *const *inputs, void *const *outputs, bool inPlace,
           std::uint64_t seed);

  const std::vector<StepCost> &costs() const { return costs_; }

private:
  struct Storage {
    Variable *variable;
    std::vector<char> bytes; // with guard bytes on both sides
    char *data();
    bool guardsIntact() const;
  };
  struct Output {
    Operand value;
    Variable *direct; // written to the caller's memory, or null
  };

  void collect();
  void own(Variable *variable);
  // What `run` does before and after the program.
  void bind(void *const *inputs, bool inPlace, std::uint64_t seed);
  void deliver(void *const *outputs);
  Storage *storageOf(Variable *variable);

  std::string title_;
  poplar::Graph graph_;
  std::shared_ptr<Step> program_;
  std::vector<Variable *> inputs_;
  std::vector<bool> inputWritten_;
  std::vector<Output> outputs_;
  std::map<int, int> updates_;
  std::vector<Variable *> seeds_;
  std::vector<std::unique_ptr<Storage>> storage_;
  std::map<Variable *, Storage *> storageByVariable_;
  std::vector<Variable *> used_;
  std::vector<Variable *> written_;
  std::vector<StepCost> costs_;
  bool runsVertices_ = false;
  bool rehearse_ = false; // the next run, because it is the first
  std::mutex mutex_;
};

} // namespace popemu
