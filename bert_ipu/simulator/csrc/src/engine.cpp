#include "engine.hpp"

#include <algorithm>
#include <cstring>

#include "crash_report.hpp"
#include "isolate.hpp"

namespace popemu {
namespace {

constexpr std::size_t guardBytes = 64;
constexpr char guardPattern = char(0xa5);

Variable *wholeVariable(const poplar::Tensor &tensor) {
  const auto runs = runsOf(tensor.view());
  const bool whole = runs.size() == 1 && runs[0].start == 0 &&
                     (runs[0].step == 1 || runs[0].count == 1) &&
                     runs[0].count == runs[0].variable->size;
  return whole ? runs[0].variable : nullptr;
}

bool contains(const std::vector<Variable *> &list, Variable *variable) {
  return std::find(list.begin(), list.end(), variable) != list.end();
}

} // namespace

char *Engine::Storage::data() { return bytes.data() + guardBytes; }

bool Engine::Storage::guardsIntact() const {
  const auto isGuard = [](char c) { return c == guardPattern; };
  return std::all_of(bytes.begin(), bytes.begin() + guardBytes, isGuard) &&
         std::all_of(bytes.end() - guardBytes, bytes.end(), isGuard);
}

Engine::Engine(Request request)
    : title_(std::move(request.title)), graph_(std::move(request.graph)),
      program_(request.program.snapshot()),
      updates_(std::move(request.updates)) {
  collect();
  rehearse_ = request.isolate && runsVertices_;
  for (const auto &seed : request.seeds)
    seeds_.push_back(wholeVariable(seed));
  for (const auto &input : request.inputs)
    inputs_.push_back(input.numElements() ? wholeVariable(input) : nullptr);
  for (Variable *variable : inputs_)
    inputWritten_.push_back(contains(written_, variable));
  std::vector<Variable *> taken;
  for (const auto &output : request.outputs) {
    Operand value(output);
    Variable *direct = wholeVariable(output);
    // The caller's memory can stand for a variable only if nothing else does,
    // and if no vertex could overrun it: own memory has guard bytes.
    if (direct && (runsVertices_ || direct->isConstant ||
                   !direct->initial.empty() || contains(inputs_, direct) ||
                   contains(taken, direct) || contains(seeds_, direct)))
      direct = nullptr;
    if (direct)
      taken.push_back(direct);
    for (Variable *variable : value.variables())
      if (!contains(used_, variable))
        used_.push_back(variable);
    outputs_.push_back({std::move(value), direct});
  }
  for (Variable *variable : used_) {
    requireMapped(*variable);
    if (!contains(inputs_, variable) && !contains(taken, variable))
      own(variable);
  }
  for (std::size_t i = 0; i < inputs_.size(); ++i)
    if (inputWritten_[i])
      own(inputs_[i]);
  for (Variable *variable : seeds_)
    if (!storageOf(variable))
      own(variable);
}

void Engine::collect() {
  program_->visit([this](Step &step) {
    step.prepare();
    runsVertices_ |= step.runsVertices;
    costs_.push_back({step.name, step.cost});
    for (Variable *variable : step.reads)
      if (!contains(used_, variable))
        used_.push_back(variable);
    for (Variable *variable : step.writes) {
      if (!contains(used_, variable))
        used_.push_back(variable);
      if (!contains(written_, variable))
        written_.push_back(variable);
    }
  });
}

void Engine::own(Variable *variable) {
  auto storage = std::make_unique<Storage>();
  storage->variable = variable;
  storage->bytes.assign(variable->bytes() + 2 * guardBytes, guardPattern);
  // All bits set is NaN in every floating type: a read of memory that was
  // never written shows.
  std::memset(storage->data(), 0xff, variable->bytes());
  if (!variable->initial.empty())
    std::memcpy(storage->data(), variable->initial.data(), variable->bytes());
  storageByVariable_[variable] = storage.get();
  storage_.push_back(std::move(storage));
}

Engine::Storage *Engine::storageOf(Variable *variable) {
  const auto found = storageByVariable_.find(variable);
  return found == storageByVariable_.end() ? nullptr : found->second;
}

void Engine::run(void *const *inputs, void *const *outputs, bool inPlace,
                 std::uint64_t seed) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const UserCode running(title_);
  if (rehearse_) {
    // Nothing of the caller's is written: inputs are copied, and with vertices
    // no output lies in the caller's memory.
    rehearse("it", [&] {
      bind(inputs, false, seed);
      program_->run();
    });
    rehearse_ = false;
  }
  bind(inputs, inPlace, seed);
  for (std::size_t i = 0; i < outputs_.size(); ++i)
    if (outputs_[i].direct)
      outputs_[i].direct->data = static_cast<char *>(outputs[i]);
  program_->run();
  deliver(outputs);
}

void Engine::bind(void *const *inputs, bool inPlace, std::uint64_t seed) {
  graph_.core()->seed = seed;
  for (auto &storage : storage_) {
    Variable &variable = *storage->variable;
    variable.data = storage->data();
    if (!variable.isConstant && !variable.initial.empty())
      std::memcpy(variable.data, variable.initial.data(), variable.bytes());
  }
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    if (!inputs_[i])
      continue;
    auto *given = static_cast<char *>(inputs[i]);
    if (inputWritten_[i] && !(inPlace && updates_.count(int(i)))) {
      char *copy = storageOf(inputs_[i])->data();
      std::memcpy(copy, given, inputs_[i]->bytes());
      given = copy;
    }
    inputs_[i]->data = given;
  }
  for (Variable *variable : seeds_) {
    const std::uint32_t words[2] = {std::uint32_t(seed),
                                    std::uint32_t(seed >> 32)};
    std::memcpy(variable->data, words,
                std::min(sizeof(words), variable->bytes()));
  }
}

void Engine::deliver(void *const *outputs) {
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    if (outputs_[i].direct || outputs_[i].value.size() == 0)
      continue;
    const char *value = outputs_[i].value.read();
    if (value != outputs[i])
      std::memcpy(outputs[i], value,
                  outputs_[i].value.size() * sizeOf(outputs_[i].value.type()));
  }
  for (const auto &storage : storage_)
    if (!storage->guardsIntact())
      throw poplar::runtime_error("a vertex wrote outside the buffer of " +
                                  storage->variable->name);
}

} // namespace popemu
