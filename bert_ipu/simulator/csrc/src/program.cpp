// Recorded programs, and how a step reads and writes tensors.
#include <algorithm>
#include <cstring>
#include <iostream>

#include "codelet.hpp"
#include "core.hpp"

namespace popemu {

Operand::Operand(const poplar::Tensor &tensor)
    : type_(tensor.elementType()), shape_(tensor.shape()),
      size_(tensor.numElements()), runs_(runsOf(tensor.view())) {
  contiguous_ =
      runs_.size() == 1 && (runs_[0].step == 1 || runs_[0].count == 1);
  uniform_ = runs_.size() == 1 && (runs_[0].step == 0 || runs_[0].count == 1);
  if (!contiguous_)
    scratch_.resize(size_ * sizeOf(type_));
}

std::vector<Variable *> Operand::variables() const {
  std::vector<Variable *> result;
  for (const Run &run : runs_)
    if (std::find(result.begin(), result.end(), run.variable) == result.end())
      result.push_back(run.variable);
  return result;
}

namespace {

// Moves elements between runs of variables and an array. `Width` is the
// element size; `Store` writes to the variables instead of reading them.
template <std::size_t Width, bool Store>
void transfer(const std::vector<Run> &runs, char *array) {
  for (const Run &run : runs) {
    char *memory = run.variable->data + run.start * std::int64_t(Width);
    if (run.step == 1) {
      std::memcpy(Store ? memory : array, Store ? array : memory,
                  run.count * Width);
      array += run.count * Width;
      continue;
    }
    const std::int64_t stride = run.step * std::int64_t(Width);
    for (std::size_t i = 0; i < run.count;
         ++i, memory += stride, array += Width)
      std::memcpy(Store ? memory : array, Store ? array : memory, Width);
  }
}

template <bool Store>
void transfer(std::size_t width, const std::vector<Run> &runs, char *array) {
  switch (width) {
  case 1:
    return transfer<1, Store>(runs, array);
  case 2:
    return transfer<2, Store>(runs, array);
  case 4:
    return transfer<4, Store>(runs, array);
  default:
    return transfer<8, Store>(runs, array);
  }
}

} // namespace

const char *Operand::read() {
  if (contiguous_)
    return runs_[0].variable->data +
           runs_[0].start * std::int64_t(sizeOf(type_));
  transfer<false>(sizeOf(type_), runs_, scratch_.data());
  return scratch_.data();
}

char *Operand::beginWrite() {
  if (contiguous_)
    return runs_[0].variable->data +
           runs_[0].start * std::int64_t(sizeOf(type_));
  return scratch_.data();
}

void Operand::commit() {
  if (!contiguous_)
    transfer<true>(sizeOf(type_), runs_, scratch_.data());
}

namespace {

void addVariables(const std::vector<poplar::Tensor> &tensors,
                  std::vector<Variable *> &variables) {
  for (const auto &tensor : tensors)
    for (const Run &run : runsOf(tensor.view()))
      if (std::find(variables.begin(), variables.end(), run.variable) ==
          variables.end())
        variables.push_back(run.variable);
}

struct CopyStep : Step {
  CopyStep(const poplar::Tensor &source, const poplar::Tensor &destination)
      : source(source), destination(destination) {}
  void run() override {
    const char *from = source.read();
    char *to = destination.beginWrite();
    std::memmove(to, from, source.size() * sizeOf(source.type()));
    destination.commit();
  }
  Operand source, destination;
};

struct RepeatStep : Step {
  RepeatStep(unsigned count, std::shared_ptr<Step> body)
      : count(count), body(std::move(body)) {}
  void run() override {
    for (unsigned i = 0; i < count; ++i)
      body->run();
  }
  void visit(const std::function<void(Step &)> &visitor) override {
    body->visit(visitor);
  }
  unsigned count;
  std::shared_ptr<Step> body;
};

struct WhileStep : Step {
  WhileStep(std::shared_ptr<Step> condition, const poplar::Tensor &predicate,
            std::shared_ptr<Step> body, bool wanted)
      : condition(std::move(condition)), body(std::move(body)),
        predicate(predicate), wanted(wanted) {}
  void run() override {
    for (;;) {
      condition->run();
      if ((loadDouble(predicate.read(), predicate.type()) != 0) != wanted)
        return;
      body->run();
    }
  }
  void visit(const std::function<void(Step &)> &visitor) override {
    visitor(*this);
    condition->visit(visitor);
    body->visit(visitor);
  }
  std::shared_ptr<Step> condition, body;
  Operand predicate;
  bool wanted;
};

struct IfStep : Step {
  IfStep(const poplar::Tensor &predicate, std::shared_ptr<Step> onTrue,
         std::shared_ptr<Step> onFalse)
      : predicate(predicate), onTrue(std::move(onTrue)),
        onFalse(std::move(onFalse)) {}
  void run() override {
    const bool taken = loadDouble(predicate.read(), predicate.type()) != 0;
    (taken ? onTrue : onFalse)->run();
  }
  void visit(const std::function<void(Step &)> &visitor) override {
    visitor(*this);
    onTrue->visit(visitor);
    onFalse->visit(visitor);
  }
  Operand predicate;
  std::shared_ptr<Step> onTrue, onFalse;
};

struct WriteUndefStep : Step {
  explicit WriteUndefStep(const poplar::Tensor &tensor) : tensor(tensor) {}
  void run() override {
    std::memset(tensor.beginWrite(), 0xff,
                tensor.size() * sizeOf(tensor.type()));
    tensor.commit();
  }
  Operand tensor;
};

struct PrintStep : Step {
  explicit PrintStep(const poplar::Tensor &tensor) : tensor(tensor) {}
  void run() override {
    std::cerr << name << " " << shapeText(tensor.shape()) << ":";
    const char *data = tensor.read();
    const std::size_t width = sizeOf(tensor.type());
    for (std::size_t i = 0; i < tensor.size(); ++i)
      std::cerr << " " << loadDouble(data + i * width, tensor.type());
    std::cerr << "\n";
  }
  Operand tensor;
};

struct ExecuteStep : Step {
  explicit ExecuteStep(std::shared_ptr<ComputeSetData> set)
      : set(std::move(set)) {
    runsVertices = true;
  }
  void prepare() override {
    set->bind();
    name = set->name;
    cost = set->cost();
    set->variables(reads, writes);
  }
  void run() override { set->run(); }
  std::shared_ptr<ComputeSetData> set;
};

std::shared_ptr<Step> emptyBlock() { return std::make_shared<Block>(); }

std::shared_ptr<Step> snapshotOf(const poplar::program::Program &program) {
  auto step = program.snapshot();
  return step ? step : emptyBlock();
}

std::shared_ptr<Step> reading(std::shared_ptr<Step> step,
                              const poplar::Tensor &tensor,
                              const poplar::DebugContext &context) {
  step->name = context.getPathName();
  addVariables({tensor}, step->reads);
  return step;
}

} // namespace

void record(poplar::program::Sequence &prog, std::shared_ptr<Step> step,
            const poplar::DebugContext &context,
            const std::vector<poplar::Tensor> &reads,
            const std::vector<poplar::Tensor> &writes, Cost cost) {
  const std::string path = context.getPathName();
  if (!path.empty())
    step->name = step->name.empty() ? path : path + "/" + step->name;
  step->cost = cost;
  addVariables(reads, step->reads);
  addVariables(writes, step->writes);
  for (Variable *variable : step->writes)
    if (variable->isConstant)
      throw poplar::graph_construction_error(
          step->name + " writes to the constant " + variable->name);
  prog.add(std::move(step));
}

} // namespace popemu

namespace poplar {
namespace program {

using namespace popemu;

std::shared_ptr<Step> Program::snapshot() const {
  if (auto block = std::dynamic_pointer_cast<Block>(step_))
    return std::make_shared<Block>(*block);
  return step_;
}

Sequence::Sequence(const DebugContext &debugContext) {
  step_ = std::make_shared<Block>();
  step_->name = debugContext.getPathName();
}

Sequence::Sequence(std::initializer_list<Program> programs,
                   const DebugContext &debugContext)
    : Sequence(debugContext) {
  for (const Program &program : programs)
    add(program);
}

Sequence::Sequence(const Sequence &other) : Program(other.snapshot()) {}

Sequence &Sequence::operator=(const Sequence &other) {
  step_ = other.snapshot();
  return *this;
}

void Sequence::add(const Program &program) {
  if (auto step = program.snapshot())
    add(std::move(step));
}

void Sequence::add(std::shared_ptr<Step> step) {
  std::static_pointer_cast<Block>(step_)->steps.push_back(std::move(step));
}

Execute::Execute(ComputeSet cs, const DebugContext &)
    : Program(std::make_shared<ExecuteStep>(cs.data())) {}

Copy::Copy(Tensor source, Tensor destination, bool,
           const DebugContext &debugContext) {
  if (source.numElements() != destination.numElements() ||
      source.elementType() != destination.elementType())
    throw graph_construction_error(
        "Copy from " + source.elementType().toString() + " " +
        source.shapeToString() + " to " + destination.elementType().toString() +
        " " + destination.shapeToString());
  auto step = std::make_shared<CopyStep>(source, destination);
  step->name = debugContext.getPathName() + "/Copy";
  addVariables({source}, step->reads);
  addVariables({destination}, step->writes);
  // Each tile receives its share at the exchange rate.
  const Target &target = source.view().graph->target;
  const std::uint64_t bytes =
      source.numElements() * sizeOf(source.elementType());
  const std::uint64_t rate =
      std::uint64_t(target.getExchangeBytesPerCycle()) * target.getNumTiles();
  step->cost = {(bytes + rate - 1) / rate, bytes};
  step_ = step;
}

Repeat::Repeat(unsigned count, const Program &body, const DebugContext &)
    : Program(std::make_shared<RepeatStep>(count, snapshotOf(body))) {}

RepeatWhileTrue::RepeatWhileTrue(const Program &condition,
                                 const Tensor &predicate, const Program &body,
                                 const DebugContext &debugContext)
    : Program(
          reading(std::make_shared<WhileStep>(snapshotOf(condition), predicate,
                                              snapshotOf(body), true),
                  predicate, debugContext)) {}

RepeatWhileFalse::RepeatWhileFalse(const Program &condition,
                                   const Tensor &predicate, const Program &body,
                                   const DebugContext &debugContext)
    : Program(
          reading(std::make_shared<WhileStep>(snapshotOf(condition), predicate,
                                              snapshotOf(body), false),
                  predicate, debugContext)) {}

If::If(const Tensor &predicate, const Program &trueBody,
       const Program &falseBody, const DebugContext &debugContext)
    : Program(reading(std::make_shared<IfStep>(predicate, snapshotOf(trueBody),
                                               snapshotOf(falseBody)),
                      predicate, debugContext)) {}

Call::Call(Function function, const DebugContext &)
    : Program(function.body()) {}

WriteUndef::WriteUndef(Tensor tensor, const DebugContext &debugContext) {
  step_ = std::make_shared<WriteUndefStep>(tensor);
  step_->name = debugContext.getPathName() + "/WriteUndef";
  addVariables({tensor}, step_->writes);
}

PrintTensor::PrintTensor(Tensor tensor, const DebugContext &debugContext)
    : PrintTensor(tensor.getDebugStr(), tensor, debugContext) {}

PrintTensor::PrintTensor(const std::string &title, Tensor tensor,
                         const DebugContext &debugContext)
    : Program(
          reading(std::make_shared<PrintStep>(tensor), tensor, debugContext)) {
  step_->name = title;
}

} // namespace program
} // namespace poplar
