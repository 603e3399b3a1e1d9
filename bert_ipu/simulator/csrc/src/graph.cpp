// poplar::Graph: variables, constants, tile mapping, vertices.
#include <algorithm>
#include <cstring>
#include <map>
#include <sstream>

#include "codelet.hpp"
#include "core.hpp"

namespace popemu {

Variable *GraphCore::addVariable(poplar::Type type, std::size_t size,
                                 std::string name) {
  variables.push_back(std::make_unique<Variable>());
  Variable *variable = variables.back().get();
  variable->type = type;
  variable->size = size;
  variable->name = std::move(name);
  return variable;
}

void requireMapped(const Variable &variable) {
  auto intervals = variable.mapped;
  std::sort(intervals.begin(), intervals.end());
  std::size_t reached = 0;
  for (const auto &interval : intervals)
    if (interval.begin() <= reached)
      reached = std::max(reached, interval.end());
  if (reached >= variable.size)
    return;
  throw poplar::invalid_tile_mapping(
      "tensor " + (variable.name.empty() ? "(unnamed)" : variable.name) +
      " of " + std::to_string(variable.size) + " " + variable.type.toString() +
      " elements is used but element " + std::to_string(reached) +
      " is on no tile; call Graph::setTileMapping or "
      "poputil::mapTensorLinearly");
}

poplar::Tensor addMapped(poplar::Graph &graph, poplar::Type type,
                         const std::vector<std::size_t> &shape,
                         const poplar::DebugContext &context) {
  auto tensor = graph.addVariable(type, shape, context);
  const auto &core = *graph.core();
  Variable *variable = core.variables.back().get();
  const std::size_t tiles = core.target.getNumTiles();
  const std::size_t share =
      std::max<std::size_t>(1, (variable->size + tiles - 1) / tiles);
  for (std::size_t begin = 0; begin < variable->size; begin += share) {
    variable->mapped.emplace_back(begin,
                                  std::min(begin + share, variable->size));
    variable->mappedTile.push_back(unsigned(begin / share));
  }
  return tensor;
}

namespace {

void mapRun(const Run &run, unsigned tile) {
  Variable &variable = *run.variable;
  const std::size_t pieces = run.step == 1 || run.count == 1 ? 1 : run.count;
  for (std::size_t i = 0; i < pieces; ++i) {
    const auto begin = std::size_t(run.start + run.step * std::int64_t(i));
    variable.mapped.emplace_back(begin, begin + run.count / pieces);
    variable.mappedTile.push_back(tile);
  }
}

std::size_t productOf(poplar::ArrayRef<std::size_t> shape) {
  std::size_t n = 1;
  for (std::size_t extent : shape)
    n *= extent;
  return n;
}

// Tile of every element of a view, or -1. The last mapping wins.
std::vector<int> tilesOf(const View &view) {
  std::map<Variable *, std::vector<int>> tiles;
  std::vector<int> result;
  for (const Run &run : runsOf(view)) {
    auto &known = tiles[run.variable];
    if (known.empty()) {
      known.assign(run.variable->size, -1);
      for (std::size_t i = 0; i < run.variable->mapped.size(); ++i)
        for (std::size_t e = run.variable->mapped[i].begin();
             e < run.variable->mapped[i].end(); ++e)
          known[e] = int(run.variable->mappedTile[i]);
    }
    for (std::size_t i = 0; i < run.count; ++i)
      result.push_back(known[run.start + run.step * std::int64_t(i)]);
  }
  return result;
}

} // namespace
} // namespace popemu

namespace poplar {

using namespace popemu;

Graph::Graph(const Target &target) : core_(std::make_shared<GraphCore>()) {
  core_->target = target;
}

const Target &Graph::getTarget() const { return core_->target; }

Tensor Graph::addVariable(const Type &type, ArrayRef<std::size_t> shape,
                          const DebugContext &debugContext) {
  auto *variable =
      core_->addVariable(type, productOf(shape), debugContext.getPathName());
  return tensorOf(*core_, variable, shape.cloneAsVector());
}

Tensor Graph::addConstantFromDoubles(const Type &type,
                                     ArrayRef<std::size_t> shape,
                                     const std::vector<double> &values,
                                     const DebugContext &debugContext) {
  const std::size_t n = productOf(shape);
  if (values.size() != 1 && values.size() != n)
    throw graph_construction_error(
        "constant " + debugContext.getPathName() + " of shape " +
        shapeText(shape.cloneAsVector()) + " was given " +
        std::to_string(values.size()) + " values");
  Tensor tensor = addVariable(type, shape, debugContext);
  Variable &variable = *core_->variables.back();
  variable.isConstant = true;
  variable.initial.resize(variable.bytes());
  for (std::size_t i = 0; i < n; ++i)
    storeDouble(values[values.size() == 1 ? 0 : i], type,
                variable.initial.data() + i * sizeOf(type));
  return tensor;
}

Tensor Graph::addConstantHalf(const Type &type, ArrayRef<std::size_t> shape,
                              ArrayRef<std::uint16_t> values,
                              const DebugContext &debugContext) {
  std::vector<double> wide;
  for (std::uint16_t bits : values)
    wide.push_back(loadDouble(reinterpret_cast<const char *>(&bits), HALF));
  return addConstantFromDoubles(type, shape, wide, debugContext);
}

Tensor Graph::clone(const Type &type, const Tensor &t,
                    const DebugContext &debugContext, TensorCloneMethod) {
  Tensor copy = addVariable(type, t.shape(), debugContext);
  Variable &variable = *core_->variables.back();
  const auto tiles = tilesOf(t.view());
  for (std::size_t begin = 0; begin < tiles.size();) {
    std::size_t end = begin + 1;
    while (end < tiles.size() && tiles[end] == tiles[begin])
      ++end;
    if (tiles[begin] >= 0) {
      variable.mapped.emplace_back(begin, end);
      variable.mappedTile.push_back(unsigned(tiles[begin]));
    }
    begin = end;
  }
  return copy;
}

Tensor Graph::clone(const Tensor &t, const DebugContext &debugContext,
                    TensorCloneMethod method) {
  return clone(t.elementType(), t, debugContext, method);
}

void Graph::setTileMapping(const Tensor &t, unsigned tile) {
  if (tile >= core_->target.getNumTiles())
    throw invalid_tile_mapping("tensor " + t.getDebugStr() +
                               " is mapped to tile " + std::to_string(tile) +
                               " of " +
                               std::to_string(core_->target.getNumTiles()));
  for (const Run &run : runsOf(t.view()))
    mapRun(run, tile);
}

void Graph::setTileMapping(const Tensor &t,
                           const TileToTensorMapping &mapping) {
  const Tensor flat = t.flatten();
  for (unsigned tile = 0; tile < mapping.size(); ++tile)
    for (const Interval &interval : mapping[tile])
      setTileMapping(flat.slice(interval), tile);
}

Graph::TileToTensorMapping Graph::getTileMapping(const Tensor &t,
                                                 bool *isComplete) const {
  TileToTensorMapping mapping(core_->target.getNumTiles());
  const auto tiles = tilesOf(t.view());
  *isComplete = true;
  for (std::size_t begin = 0; begin < tiles.size();) {
    std::size_t end = begin + 1;
    while (end < tiles.size() && tiles[end] == tiles[begin])
      ++end;
    if (tiles[begin] >= 0)
      mapping[tiles[begin]].emplace_back(begin, end);
    else
      *isComplete = false;
    begin = end;
  }
  return mapping;
}

Graph::TileToTensorMapping Graph::getTileMapping(const Tensor &t,
                                                 bool requireComplete) const {
  bool isComplete = false;
  auto mapping = getTileMapping(t, &isComplete);
  if (requireComplete && !isComplete)
    throw invalid_tile_mapping("tensor " + t.getDebugStr() +
                               " is not completely mapped to tiles");
  return mapping;
}

void Graph::setTensorInitialValue(const Tensor &t,
                                  const std::vector<double> &values) {
  std::size_t i = 0;
  for (const Run &run : runsOf(t.view())) {
    Variable &variable = *run.variable;
    variable.initial.resize(variable.bytes());
    for (std::size_t k = 0; k < run.count; ++k, ++i)
      storeDouble(values.size() == 1 ? values[0] : values.at(i), variable.type,
                  variable.initial.data() +
                      (run.start + run.step * std::int64_t(k)) *
                          std::int64_t(sizeOf(variable.type)));
  }
}

std::vector<std::vector<Interval>>
Graph::getSortedContiguousRegions(const Tensor &t,
                                  ArrayRef<Interval> regions) const {
  std::vector<std::vector<Interval>> result;
  const Tensor flat = t.flatten();
  for (const Interval &region : regions)
    for (const Interval &piece : flat.slice(region).getContiguousRegions())
      result.push_back({Interval(region.begin() + piece.begin(),
                                 region.begin() + piece.end())});
  return result;
}

bool Graph::addCodelets(StringRef source, CodeletFileType, StringRef flags,
                        StringRef) {
  core_->codelets.push_back(loadCodelets(source, flags));
  return true;
}

void Graph::addCodelets(std::istream &source, StringRef flags, CodeletFileType,
                        StringRef) {
  std::ostringstream text;
  text << source.rdbuf();
  core_->codelets.push_back(loadCodeletText(text.str(), flags));
}

ComputeSet Graph::addComputeSet(const DebugContext &debugContext) {
  auto set = std::make_shared<ComputeSetData>();
  set->name = debugContext.getPathName();
  core_->computeSets.push_back(set);
  return ComputeSet(set);
}

VertexRef Graph::addVertex(ComputeSet cs, StringRef vertexType) {
  auto vertex = std::make_shared<VertexInstance>(
      findVertexType(core_->codelets, vertexType));
  cs.data()->vertices.push_back(vertex);
  return VertexRef(vertex);
}

VertexRef
Graph::addVertex(ComputeSet cs, StringRef vertexType,
                 ArrayRef<std::pair<std::string, Tensor>> connections) {
  VertexRef vertex = addVertex(cs, vertexType);
  for (const auto &connection : connections)
    connect(vertex, connection.first, connection.second);
  return vertex;
}

void Graph::connect(VertexRef vertex, StringRef field, const Tensor &tensor) {
  vertex.instance()->connect(field, tensor);
}

void Graph::connect(VertexRef vertex, StringRef field,
                    ArrayRef<Tensor> tensors) {
  vertex.instance()->connect(field, tensors.cloneAsVector());
}

void Graph::setInitialValues(VertexRef vertex, StringRef field,
                             const std::vector<double> &values, bool isArray) {
  vertex.instance()->setInitialValue(field, values, isArray);
}

void Graph::setFieldSize(VertexRef vertex, StringRef field, std::size_t size) {
  vertex.instance()->setInitialValue(field, std::vector<double>(size, 0.0),
                                     true);
}

void Graph::setPerfEstimate(const VertexRef &vertex, std::uint64_t cycles,
                            std::uint64_t) {
  vertex.instance()->estimatedCycles = cycles;
}

void Graph::setTileMapping(VertexRef vertex, unsigned tile) {
  if (tile >= core_->target.getNumTiles())
    throw invalid_tile_mapping("vertex mapped to tile " + std::to_string(tile) +
                               " of " +
                               std::to_string(core_->target.getNumTiles()));
  vertex.instance()->tile = int(tile);
}

} // namespace poplar
