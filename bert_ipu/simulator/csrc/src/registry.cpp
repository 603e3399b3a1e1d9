// What libraries register: ops, implementations, patterns, shape inference.
// The maps are created on first use, because static objects of libraries
// register before anything else runs, and are never destroyed, because
// libraries are never unloaded.
#include <popart/graph.hpp>
#include <popart/opmanager.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/shapeinference.hpp>

#include <algorithm>

#include "names.hpp"

extern "C" const int popemu_api_1 = 1;

namespace popart {
namespace {

struct OpEntry {
  bool isPublic;
  OpManager::OpFactoryFunc factory;
};

std::map<OperatorIdentifier, OpEntry> &ops() {
  static auto *map = new std::map<OperatorIdentifier, OpEntry>;
  return *map;
}

using OpxMap = std::map<OperatorIdentifier, popx::OpxManager::OpxFactoryFunc>;

OpxMap &opxs() {
  static auto *map = new OpxMap;
  return *map;
}

using PatternMap =
    std::map<std::type_index, PreAliasPatternManager::PatternInfo>;

PatternMap &patterns() {
  static auto *map = new PatternMap;
  return *map;
}

using ShapeMap = std::map<OperatorIdentifier, ShapeInferenceFunction>;

ShapeMap &shapeFunctions() {
  static auto *map = new ShapeMap;
  return *map;
}

} // namespace

// OpCreatorInfo

Tensor *OpCreatorInfo::getInputTensor(int index) const {
  return settings.graph.get().getTensors().get(
      inputIds_.at(static_cast<size_t>(index)));
}

TensorInfo &OpCreatorInfo::getInputTensorInfo(int index) const {
  return getInputTensor(index)->info;
}

TensorData *OpCreatorInfo::getInputTensorData(int index) const {
  return getInputTensor(index)->tensorData();
}

bool OpCreatorInfo::hasInputTensor(int index) const {
  return index >= 0 && static_cast<size_t>(index) < inputIds_.size() &&
         !inputIds_[static_cast<size_t>(index)].empty();
}

std::string OpCreatorInfo::debugName() const {
  return logging::format("{} ({})", settings.name, opid);
}

// OpManager

void OpManager::registerOp(const OperatorIdentifier &opid, bool isPublic,
                           OpFactoryFunc factory) {
  ops().insert({opid, {isPublic, std::move(factory)}});
}

std::unique_ptr<Op> OpManager::createOp(const OperatorIdentifier &opid,
                                        Graph &graph, const std::string &name,
                                        const Attributes &attributes,
                                        const std::vector<TensorId> &inputIds) {
  const OpEntry *chosen = nullptr;
  const OperatorIdentifier *chosenId = nullptr;
  for (const auto &entry : ops())
    if (entry.first.domain == opid.domain && entry.first.type == opid.type &&
        entry.first.version <= opid.version) {
      chosen = &entry.second;
      chosenId = &entry.first;
    }
  if (!chosen)
    return nullptr;
  Op::Settings settings(graph, name);
  settings.setFromAttributes(attributes);
  const std::vector<TensorId> outputIds;
  auto op = chosen->factory(
      OpCreatorInfo(*chosenId, settings, attributes, inputIds, outputIds));
  if (!op)
    throw error("the factory of {} returned nothing", opid);
  return op;
}

std::vector<OperatorIdentifier> OpManager::registeredOps() {
  std::vector<OperatorIdentifier> result;
  for (const auto &entry : ops())
    if (entry.second.isPublic)
      result.push_back(entry.first);
  return result;
}

// OpxManager

namespace popx {

void OpxManager::registerOpx(const OperatorIdentifier &opid,
                             OpxFactoryFunc func) {
  opxs().insert({opid, std::move(func)});
}

std::unique_ptr<Opx> OpxManager::createOpx(Op *op, Devicex *devicex) {
  const auto found = opxs().find(op->opid);
  if (found != opxs().end())
    return found->second(op, devicex);
  std::vector<std::string> known;
  for (const auto &entry : opxs())
    known.push_back(logging::format("{}", entry.first));
  throw error("no Opx is registered for {} ({}); add an OpxCreator", op->opid,
              popemu::nearestNames(logging::format("{}", op->opid), known));
}

} // namespace popx

// Patterns

void PreAliasPatternManager::registerPattern(const std::type_index &type,
                                             const std::string &name,
                                             bool enabled, bool mandatory,
                                             Factory factory) {
  patterns().insert({type, {name, enabled, mandatory, std::move(factory)}});
}

std::vector<PreAliasPatternManager::PatternInfo>
PreAliasPatternManager::registered() {
  std::vector<PatternInfo> result;
  for (const auto &entry : patterns())
    result.push_back(entry.second);
  std::sort(result.begin(), result.end(),
            [](const PatternInfo &a, const PatternInfo &b) {
              return a.name < b.name;
            });
  return result;
}

const std::string &PreAliasPatternManager::nameOf(const std::type_index &type) {
  const auto found = patterns().find(type);
  if (found == patterns().end())
    throw internal_error("a pattern of type {} is not registered", type.name());
  return found->second.name;
}

// ShapeInferenceFunctions

void ShapeInferenceFunctions::registerFunction(
    const OperatorIdentifier &opid, ShapeInferenceFunction function) {
  if (!shapeFunctions().insert({opid, std::move(function)}).second)
    throw error("{} has a function that says its shapes already", opid);
}

bool ShapeInferenceFunctions::hasFunction(const OperatorIdentifier &opid) {
  return shapeFunctions().count(opid) > 0;
}

ShapeInferenceFunction
ShapeInferenceFunctions::getFunction(const OperatorIdentifier &opid) {
  return shapeFunctions().at(opid);
}

} // namespace popart
