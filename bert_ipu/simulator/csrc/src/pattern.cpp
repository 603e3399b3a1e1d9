// Helpers of patterns, and the loop that applies them.
#include "pattern_runner.hpp"

#include <popart/ir.hpp>
#include <popart/opmanager.hpp>
#include <popart/patterns/patterns.hpp>

#include <algorithm>
#include <set>

#include "crash_report.hpp"
#include "names.hpp"

namespace popart {

const std::string &Pattern::getPatternName() const {
  return PreAliasPatternManager::nameOf(std::type_index(typeid(*this)));
}

std::string Pattern::getReplacementOpName(Op *op,
                                          const std::string name) const {
  const std::string base =
      op->name().empty() ? "" : op->name() + ":" + getPatternName();
  return name.empty() ? base : base + "_" + name;
}

void Pattern::transferBaseProperties(const Op *from, Op *to) const {
  Op::Settings &copied = to->settings;
  const Op::Settings &base = from->settings;
  copied.scope = base.scope;
  copied.vgraphId = base.vgraphId;
  copied.pipelineStage = base.pipelineStage;
  copied.executionPhase = base.executionPhase;
  copied.batchSerializedPhase = base.batchSerializedPhase;
  copied.tensorLocation = base.tensorLocation;
  copied.recomputeType = base.recomputeType;
  copied.schedulePriority = base.schedulePriority;
  copied.debugInfoId = base.debugInfoId;
  to->fromLoss = from->fromLoss;
  to->toLoss = from->toLoss;
}

std::unique_ptr<Op>
PreAliasPattern::makeReplacementOp(const OperatorIdentifier &opid, Op *oldOp,
                                   const std::string name) const {
  auto op = OpManager::createOp(opid, oldOp->getGraph(),
                                getReplacementOpName(oldOp, name));
  if (!op)
    throw internal_error("pattern {} replaces {} by {}, which nobody "
                         "registered",
                         getPatternName(), oldOp->str(), opid);
  transferBaseProperties(oldOp, op.get());
  return op;
}

Op *PreAliasPattern::makeReplacementOpInIr(const OperatorIdentifier &opid,
                                           Op *oldOp,
                                           const std::string name) const {
  auto op = makeReplacementOp(opid, oldOp, name);
  Op *result = op.get();
  oldOp->getGraph().moveIntoGraph(std::move(op));
  return result;
}

bool PreAliasPattern::touchesAnchored(Op *op) const {
  for (const Tensor *tensor : touches(op))
    if (tensor->isAnchored())
      return true;
  return false;
}

} // namespace popart

namespace popemu {

using namespace popart;

namespace {

// A pattern that keeps saying it changed something would run for ever.
constexpr int maximalSweeps = 1000;

std::set<OpId> idsOf(const Graph &graph) {
  const auto ids = graph.getOpIds();
  return std::set<OpId>(ids.begin(), ids.end());
}

std::vector<OpId> difference(const std::set<OpId> &a, const std::set<OpId> &b) {
  std::vector<OpId> result;
  for (OpId id : a)
    if (!b.count(id))
      result.push_back(id);
  return result;
}

bool sweep(const PreAliasPattern &pattern, Graph &graph,
           std::vector<PatternEdit> &edits) {
  const std::string what = "pattern " + pattern.getPatternName();
  const UserCode running(what);
  bool changed = false;
  for (OpId id : graph.getOpIds()) {
    Op *op = graph.getOpUnsafe(id);
    if (!op || op->isExcludedFromPattern(&pattern) || !pattern.matches(op) ||
        pattern.touchesAnchored(op))
      continue;
    const auto before = idsOf(graph);
    PatternEdit edit{pattern.getPatternName(), id, op->opid.type, {}, {}};
    if (!pattern.apply(op))
      continue;
    const auto after = idsOf(graph);
    edit.removed = difference(before, after);
    edit.added = difference(after, before);
    edits.push_back(std::move(edit));
    changed = true;
  }
  return changed;
}

} // namespace

std::vector<PatternEdit>
runPatterns(Graph &graph, const std::map<std::string, bool> &settings) {
  const auto registered = PreAliasPatternManager::registered();
  std::vector<std::string> names;
  for (const auto &info : registered)
    names.push_back(info.name);
  for (const auto &setting : settings)
    if (std::find(names.begin(), names.end(), setting.first) == names.end())
      throw error("Unknown pattern {}. ({})", setting.first,
                  nearestNames(setting.first, names));
  std::vector<std::unique_ptr<PreAliasPattern>> enabled;
  for (const auto &info : registered) {
    const auto setting = settings.find(info.name);
    if (info.mandatory ||
        (setting == settings.end() ? info.enabledByDefault : setting->second))
      enabled.push_back(info.factory());
  }
  std::vector<PatternEdit> edits;
  for (int sweeps = 0;; ++sweeps) {
    bool changed = false;
    for (const auto &pattern : enabled)
      changed |= sweep(*pattern, graph, edits);
    if (!changed)
      return edits;
    if (sweeps == maximalSweeps)
      throw error("pattern {} still changes the graph after {} sweeps",
                  edits.back().pattern, maximalSweeps);
  }
}

} // namespace popemu
