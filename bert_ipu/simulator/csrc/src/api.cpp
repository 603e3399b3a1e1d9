// The C interface. No exception leaves it: a call that fails returns non-zero
// (or null, or a negative id) and keeps its message for popemu_last_error().
// Handles belong to the caller; an engine needs its graph to outlive it.
#include <cstdlib>
#include <cstring>
#include <cxxabi.h>
#include <dlfcn.h>
#include <regex>
#include <sstream>

#include <popart/attributes.hpp>
#include <popart/ir.hpp>
#include <popart/opmanager.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/tensornames.hpp>

#include "builtin_ops.hpp"
#include "codelet.hpp"
#include "crash_report.hpp"
#include "describe.hpp"
#include "engine.hpp"
#include "isolate.hpp"
#include "lower.hpp"
#include "pattern_runner.hpp"

namespace {

using namespace popart;

thread_local std::string lastError;

// Runs `action`; `failed` is returned when it throws.
template <typename R, typename F> R guarded(R failed, F &&action) {
  try {
    return action();
  } catch (const std::exception &e) {
    lastError = e.what();
  } catch (...) {
    lastError = "a custom op threw something that is not a std::exception";
  }
  return failed;
}

// Runs user code; says where an error, or a crash, came from.
template <typename F>
auto inContext(const std::string &where, F &&action) -> decltype(action()) {
  const popemu::UserCode running(where);
  try {
    return action();
  } catch (const std::exception &e) {
    throw error("{}", where + ": " + e.what());
  }
}

char *copyOf(const std::string &text) {
  auto *copy = static_cast<char *>(std::malloc(text.size() + 1));
  if (copy)
    std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

char *json(const std::function<std::string()> &make) {
  return guarded<char *>(nullptr, [&] { return copyOf(make()); });
}

Ir &irOf(void *handle) { return *static_cast<Ir *>(handle); }

Op &opOf(void *handle, std::int64_t id) {
  return *irOf(handle).getMainGraph().getOp(static_cast<OpId>(id));
}

std::string inputsText(const Op &op) {
  std::string text;
  for (const auto &entry : op.input->tensorMap())
    text +=
        (text.empty() ? "" : ", ") + logging::format("{}", entry.second->info);
  return "(" + text + ")";
}

std::string titleOf(const Op &op) {
  return logging::format("{}{}", op.opid, inputsText(op));
}

// A symbol that is missing, readable, and with what it means.
std::string explainLoadError(const std::string &message) {
  static const std::regex symbol("undefined symbol: (\\w+)");
  std::smatch match;
  if (!std::regex_search(message, match, symbol))
    return message;
  const std::string name = match[1];
  if (name.compare(0, 11, "popemu_api_") == 0)
    return message + " - the library was compiled for version " +
           name.substr(11) +
           " of the simulator's API, this is version 1: "
           "compile it again";
  int status = 0;
  char *readable = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string text = status == 0 ? readable : name;
  std::free(readable);
  return message + " (" + text +
         ") - the simulator's part of the API does not have it, or the library "
         "was linked without one of its own sources";
}

std::map<int, TensorId> connectionsOf(int count, const int *indices,
                                      const char *const *ids) {
  std::map<int, TensorId> result;
  for (int i = 0; i < count; ++i)
    result[indices[i]] = ids[i];
  return result;
}

void connectSeed(Op &op) {
  if (!op.requiresRandomSeed() || op.hasInput(op.getSeedInIndex()))
    return;
  const TensorId id = "randomSeed___" + std::to_string(op.id);
  op.getGraph().getTensors().addStream(id, TensorInfo(DataType::UINT32, {2}));
  op.connectInTensor(op.getSeedInIndex(), id);
}

void setUp(Op &op) {
  Ir &ir = op.getIr();
  ir.setCreatesOutputsOnDemand(true);
  try {
    op.setup();
  } catch (...) {
    ir.setCreatesOutputsOnDemand(false);
    throw;
  }
  ir.setCreatesOutputsOnDemand(false);
  for (const auto &entry : op.output->tensorMap())
    if (!entry.second->info.isSet())
      throw error("setup() did not set the info of output {}", entry.first);
}

struct NewOp {
  OperatorIdentifier opid;
  std::string name;
  const Attributes &attributes;
  std::map<int, TensorId> inputs, outputs;
};

// Only ops whose outputs are given may be unknown to the registry.
std::unique_ptr<Op> create(Ir &ir, const NewOp &request) {
  Graph &graph = ir.getMainGraph();
  std::vector<TensorId> inputIds;
  for (const auto &entry : request.inputs)
    inputIds.push_back(entry.second);
  if (auto op = OpManager::createOp(request.opid, graph, request.name,
                                    request.attributes, inputIds))
    return op;
  const Op::Settings settings(graph, request.name);
  if (auto op =
          popemu::createBuiltinOp(request.opid, request.attributes, settings))
    return op;
  if (request.outputs.empty())
    throw error("no op {} is registered", request.opid);
  return popemu::createGenericOp(request.opid, settings);
}

OpId addOp(Ir &ir, const NewOp &request) {
  Graph &graph = ir.getMainGraph();
  Op *op = graph.getOp(graph.moveIntoGraph(create(ir, request)));
  for (const auto &entry : request.inputs)
    op->connectInTensor(entry.first, entry.second);
  for (const auto &entry : request.outputs)
    op->connectOutTensor(entry.first, entry.second);
  if (request.outputs.empty()) {
    connectSeed(*op);
    inContext("setup() of " + titleOf(*op), [&] { setUp(*op); });
  }
  return op->id;
}

// Gradient ops

// The gradient of a forward output, which the caller will provide.
TensorId gradientOf(Graph &graph, const Tensor &output) {
  const TensorId id = getGradId(output.id);
  if (!graph.getTensors().contains(id))
    graph.getTensors().addStream(id, output.info);
  return id;
}

std::string connectGradInput(Op &grad, Op &fwd, const GradInOutMapper &mapper,
                             const std::vector<bool> &live) {
  Graph &graph = fwd.getGraph();
  const auto index = mapper.iNonGrad;
  switch (mapper.type) {
  case GradOpInType::In:
    if (!fwd.hasInput(index))
      return "";
    grad.connectInTensor(mapper.iGrad, fwd.inId(index));
    return "[\"in\"," + std::to_string(index) + "]";
  case GradOpInType::Out:
    grad.connectInTensor(mapper.iGrad, fwd.outId(index));
    return "[\"out\"," + std::to_string(index) + "]";
  default:
    // PopART leaves the gradient of an output off the loss path unconnected.
    if (index >= 0 && index < int(live.size()) && !live[size_t(index)])
      return "";
    grad.connectInTensor(mapper.iGrad,
                         gradientOf(graph, *fwd.outTensor(index)));
    return "[\"grad_out\"," + std::to_string(index) + "]";
  }
}

std::string growGradient(std::unique_ptr<Op> owned, Op &fwd,
                         const std::vector<bool> &live) {
  Graph &graph = fwd.getGraph();
  Op &grad = *graph.getOp(graph.moveIntoGraph(std::move(owned)));
  std::map<InIndex, std::string> sources;
  for (const auto &mapper : grad.gradInputInfo()) {
    const auto source = connectGradInput(grad, fwd, mapper, live);
    if (!source.empty())
      sources[mapper.iGrad] = source;
  }
  std::map<int, int> targets;
  int position = 0;
  for (const auto &entry : grad.gradOutToNonGradIn()) {
    grad.createAndConnectOutTensor(entry.first,
                                   graph.getIr().createIntermediateTensorId(
                                       getGradId(fwd.inId(entry.second))));
    targets[position++] = entry.second;
  }
  connectSeed(grad);
  inContext("setup() of " + titleOf(grad), [&] { setUp(grad); });
  std::string sourceList, targetList;
  for (const auto &source : sources)
    sourceList += (sourceList.empty() ? "" : ",") + source.second;
  for (const auto &target : targets)
    targetList += (targetList.empty() ? "" : ",") +
                  popemu::quoted(std::to_string(target.first)) + ":" +
                  std::to_string(target.second);
  return "{\"op\":" + std::to_string(grad.id) +
         ",\"title\":" + popemu::quoted(logging::format("{}", grad.opid)) +
         ",\"sources\":[" + sourceList + "],\"targets\":{" + targetList + "}}";
}

std::string growGradients(Op &fwd, const std::vector<bool> &live) {
  auto grads = fwd.getGradOps();
  std::string list;
  for (auto &grad : grads)
    list +=
        (list.empty() ? "" : ",") + growGradient(std::move(grad), fwd, live);
  return "[" + list + "]";
}

// Patterns

void setPhase(Ir &ir, const std::string &phase) {
  if (phase == "forward")
    ir.setPhase(false, false);
  else if (phase == "backward")
    ir.setPhase(true, false);
  else if (phase == "optimizer")
    ir.setPhase(true, true);
  else
    throw error("patterns run in phase forward, backward or optimizer, not {}",
                phase);
}

void addTensor(Ir &ir, const std::string &id, const std::string &kind,
               const TensorInfo &info) {
  Tensors &tensors = ir.getMainGraph().getTensors();
  if (kind == "variable") {
    tensors.addVarInit(id, info, nullptr);
  } else if (kind == "constant") {
    tensors.addConstInit(id, info, nullptr);
  } else if (kind == "stream") {
    tensors.addStream(id, info);
  } else if (kind == "activation") {
    tensors.addActGrad(id);
    tensors.get(id)->info = info;
  } else {
    throw error("a tensor is a variable, constant, stream or activation, not "
                "{}",
                kind);
  }
}

} // namespace

extern "C" {

int popemu_api_version() { return 1; }

const char *popemu_last_error() { return lastError.c_str(); }

void popemu_free(void *text) { std::free(text); }

int popemu_configure(const char *compiler, const char *include,
                     const char *cache) {
  return guarded(1, [&] {
    popemu::toolConfig() = {compiler, include, cache};
    return 0;
  });
}

int popemu_load(const char *path) {
  return guarded(1, [&] {
    const std::string what = "loading custom ops of " + std::string(path);
    const popemu::UserCode running(what); // its static objects
    // Never unloaded: registries point into the library.
    if (!dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE))
      throw error("{}",
                  "cannot load custom ops: " + explainLoadError(dlerror()));
    return 0;
  });
}

char *popemu_registered_ops() {
  return json([] {
    return popemu::jsonList(OpManager::registeredOps(),
                            [](const OperatorIdentifier &opid) {
                              return "[" + popemu::quoted(opid.domain) + "," +
                                     popemu::quoted(opid.type) + "," +
                                     std::to_string(opid.version) + "]";
                            });
  });
}

char *popemu_registered_patterns() {
  return json([] {
    return popemu::jsonList(
        PreAliasPatternManager::registered(),
        [](const PreAliasPatternManager::PatternInfo &info) {
          return "[" + popemu::quoted(info.name) + "," +
                 (info.enabledByDefault ? "true" : "false") + "]";
        });
  });
}

void *popemu_attributes_new() { return new Attributes; }

void popemu_attributes_free(void *attributes) {
  delete static_cast<Attributes *>(attributes);
}

int popemu_attributes_set_ints(void *attributes, const char *key,
                               const std::int64_t *values, int count,
                               int isList) {
  return guarded(1, [&] {
    auto &target = *static_cast<Attributes *>(attributes);
    Attributes::Ints list(values, values + count);
    if (isList)
      target.setAttribute(key, list);
    else
      target.setAttribute(key, list[0]);
    return 0;
  });
}

int popemu_attributes_set_floats(void *attributes, const char *key,
                                 const float *values, int count, int isList) {
  return guarded(1, [&] {
    auto &target = *static_cast<Attributes *>(attributes);
    Attributes::Floats list(values, values + count);
    if (isList)
      target.setAttribute(key, list);
    else
      target.setAttribute(key, list[0]);
    return 0;
  });
}

int popemu_attributes_set_strings(void *attributes, const char *key,
                                  const char *const *values, int count,
                                  int isList) {
  return guarded(1, [&] {
    auto &target = *static_cast<Attributes *>(attributes);
    Attributes::Strings list(values, values + count);
    if (isList)
      target.setAttribute(key, list);
    else
      target.setAttribute(key, list[0]);
    return 0;
  });
}

void *popemu_ir_new(int training) {
  return guarded<void *>(nullptr, [&]() -> void * {
    auto ir = std::make_unique<Ir>();
    ir->setExecutionMode(training ? Ir::ExecutionMode::Training
                                  : Ir::ExecutionMode::Inference);
    return ir.release();
  });
}

void popemu_ir_free(void *ir) { delete static_cast<Ir *>(ir); }

int popemu_ir_add_tensor(void *ir, const char *id, const char *kind,
                         const char *dtype, const std::int64_t *shape,
                         int rank) {
  return guarded(1, [&] {
    addTensor(
        irOf(ir), id, kind,
        TensorInfo(dataTypeFromString(dtype), Shape(shape, shape + rank)));
    return 0;
  });
}

std::int64_t popemu_ir_add_op(void *ir, const char *domain, const char *type,
                              int version, const char *name, void *attributes,
                              int inputCount, const int *inputIndices,
                              const char *const *inputIds, int outputCount,
                              const int *outputIndices,
                              const char *const *outputIds, int isolate) {
  return guarded<std::int64_t>(-1, [&]() -> std::int64_t {
    const NewOp request{
        OperatorIdentifier(domain, type, static_cast<OpVersion>(version)), name,
        *static_cast<Attributes *>(attributes),
        connectionsOf(inputCount, inputIndices, inputIds),
        connectionsOf(outputCount, outputIndices, outputIds)};
    const std::string title = logging::format("{}", request.opid);
    if (isolate)
      popemu::rehearse("creating " + title, [&] { addOp(irOf(ir), request); });
    return inContext("creating " + title,
                     [&] { return addOp(irOf(ir), request); });
  });
}

int popemu_ir_set_anchors(void *ir, const char *const *ids, int count) {
  return guarded(1, [&] {
    irOf(ir).setAnchors(std::set<TensorId>(ids, ids + count));
    return 0;
  });
}

int popemu_ir_set_accumulation(void *ir, std::int64_t factor) {
  return guarded(1, [&] {
    SessionOptions &options = irOf(ir).getSessionOptions();
    options.enableGradientAccumulation = factor > 1;
    options.accumulationFactor = factor;
    return 0;
  });
}

int popemu_ir_constrain(void *ir, std::int64_t before, std::int64_t after,
                        int tied) {
  return guarded(1, [&] {
    irOf(ir).getMainGraph().topoCons->insert(&opOf(ir, before),
                                             &opOf(ir, after), tied != 0);
    return 0;
  });
}

char *popemu_ir_describe(void *ir) {
  return json([&] { return popemu::describeIr(irOf(ir)); });
}

char *popemu_ir_describe_op(void *ir, std::int64_t op) {
  return json([&] { return popemu::describeOp(opOf(ir, op)); });
}

char *popemu_ir_run_patterns(void *ir, const char *phase,
                             const char *const *names, const int *enabled,
                             int count) {
  return json([&] {
    std::map<std::string, bool> settings;
    for (int i = 0; i < count; ++i)
      settings[names[i]] = enabled[i] != 0;
    setPhase(irOf(ir), phase);
    return popemu::describeEdits(
        popemu::runPatterns(irOf(ir).getMainGraph(), settings));
  });
}

char *popemu_ir_grow_gradients(void *ir, std::int64_t op,
                               const std::int64_t *liveOutputs, int count,
                               int isolate) {
  return json([&] {
    Op &fwd = opOf(ir, op);
    std::vector<bool> live(size_t(fwd.output->maxIndex() + 1), false);
    for (int i = 0; i < count; ++i)
      live.at(size_t(liveOutputs[i])) = true;
    const std::string title = "getGradOps() of " + titleOf(fwd);
    if (isolate)
      popemu::rehearse(title, [&] { growGradients(fwd, live); });
    return inContext(title, [&] { return growGradients(fwd, live); });
  });
}

void *popemu_compile(void *ir, std::int64_t op, int isolate) {
  return guarded<void *>(nullptr, [&]() -> void * {
    Op &target = opOf(ir, op);
    const std::string title = "grow() of " + titleOf(target);
    if (isolate)
      popemu::rehearse(title, [&] { popemu::lower(target, isolate); });
    return inContext(
        title, [&] { return popemu::lower(target, isolate != 0).release(); });
  });
}

void popemu_engine_free(void *engine) {
  delete static_cast<popemu::Engine *>(engine);
}

char *popemu_engine_cost(void *engine) {
  return json([&] {
    return popemu::describeCosts(
        static_cast<popemu::Engine *>(engine)->costs());
  });
}

int popemu_run(void *engine, void *const *inputs, void *const *outputs,
               int inPlace, std::uint64_t seed) {
  return guarded(1, [&] {
    static_cast<popemu::Engine *>(engine)->run(inputs, outputs, inPlace != 0,
                                               seed);
    return 0;
  });
}

} // extern "C"
