// Vertices at run time: fields bound to memory, races refused, compute called.
#include <algorithm>
#include <cstring>
#include <tuple>

#include "codelet.hpp"
#include "crash_report.hpp"

namespace popemu {

VertexInstance::VertexInstance(const VertexDescriptor &descriptor)
    : type(descriptor) {
  for (std::size_t i = 0; i < type.fieldCount; ++i)
    fields[type.fields[i].name].descriptor = &type.fields[i];
  memory_.resize(type.bytes / sizeof(std::max_align_t) + 1);
  type.construct(memory_.data());
}

VertexInstance::Field &VertexInstance::field(const std::string &name) {
  const auto found = fields.find(name);
  if (found != fields.end())
    return found->second;
  std::string known;
  for (const auto &entry : fields)
    known += (known.empty() ? "" : ", ") + entry.first;
  throw poplar::graph_construction_error("vertex " + std::string(type.name) +
                                         " has no field " + name +
                                         "; its fields are " + known);
}

void VertexInstance::connect(const std::string &name,
                             const poplar::Tensor &tensor) {
  Field &target = field(name);
  const FieldDescriptor &descriptor = *target.descriptor;
  if (descriptor.depth == 2) {
    std::vector<poplar::Tensor> rows;
    for (std::size_t i = 0; i < tensor.dim(0); ++i)
      rows.push_back(tensor[i]);
    return connect(name, rows);
  }
  const std::string where = "field " + name + " of vertex " + type.name;
  if (descriptor.direction == FieldDirection::State)
    throw poplar::graph_construction_error(
        where + " is state: use setInitialValue, not connect");
  if (tensor.elementType().id() != descriptor.type)
    throw poplar::graph_construction_error(
        where + " takes " + poplar::Type(descriptor.type).toString() +
        ", was connected to " + tensor.elementType().toString());
  if (descriptor.depth == 0 && tensor.numElements() != 1)
    throw poplar::graph_construction_error(
        where + " takes one element, was connected to " +
        tensor.shapeToString());
  if (descriptor.direction != FieldDirection::Input &&
      tensor.containsConstant())
    throw poplar::graph_construction_error(where +
                                           " would write to a constant");
  target.operands.clear();
  target.operands.emplace_back(tensor);
}

void VertexInstance::connect(const std::string &name,
                             const std::vector<poplar::Tensor> &tensors) {
  Field &target = field(name);
  if (target.descriptor->depth != 2)
    throw poplar::graph_construction_error("field " + name + " of vertex " +
                                           type.name +
                                           " is not a vector of vectors");
  target.operands.clear();
  for (const auto &tensor : tensors) {
    if (tensor.elementType().id() != target.descriptor->type)
      throw poplar::graph_construction_error(
          "field " + name + " of vertex " + type.name + " takes " +
          poplar::Type(target.descriptor->type).toString() +
          ", was connected to " + tensor.elementType().toString());
    target.operands.emplace_back(tensor);
  }
}

void VertexInstance::setInitialValue(const std::string &name,
                                     const std::vector<double> &values,
                                     bool isArray) {
  Field &target = field(name);
  const FieldDescriptor &descriptor = *target.descriptor;
  if (descriptor.direction != FieldDirection::State ||
      isArray != (descriptor.depth == 1))
    throw poplar::graph_construction_error(
        "field " + name + " of vertex " + type.name +
        " does not take an initial value of this form");
  const poplar::Type element(descriptor.type);
  target.state.assign(values.size() * sizeOf(element), 0);
  for (std::size_t i = 0; i < values.size(); ++i)
    storeDouble(values[i], element, target.state.data() + i * sizeOf(element));
  target.stateCount = values.size();
}

void VertexInstance::bind(const std::string &computeSet) {
  const std::string where =
      "vertex " + std::string(type.name) + " of compute set " + computeSet;
  title = where;
  if (tile < 0)
    throw poplar::invalid_tile_mapping(
        where + " is on no tile; call Graph::setTileMapping");
  for (auto &entry : fields) {
    Field &field = entry.second;
    const bool isState = field.descriptor->direction == FieldDirection::State;
    if (isState ? field.state.empty() && field.descriptor->depth == 0
                : field.operands.empty() && field.descriptor->depth != 2)
      throw poplar::graph_construction_error(
          where + ": field " + entry.first +
          (isState ? " has no initial value" : " is not connected"));
    const std::size_t count = isState ? 1 : field.operands.size();
    field.spans.resize(count);
    field.arena.resize(count * field.descriptor->elementBytes);
  }
}

void VertexInstance::run() {
  for (auto &entry : fields) {
    Field &field = entry.second;
    const FieldDirection direction = field.descriptor->direction;
    if (direction == FieldDirection::State)
      field.spans[0] = {field.state.data(), field.stateCount};
    for (std::size_t i = 0; i < field.operands.size(); ++i) {
      Operand &operand = field.operands[i];
      // An output's old value is read as well: a vertex need not write all.
      char *data = const_cast<char *>(operand.read());
      field.spans[i] = {data, operand.size()};
    }
    field.descriptor->bind(memory_.data(), field.spans.data(),
                           field.spans.size(), field.arena.data());
  }
  for (unsigned worker = 0; worker < type.workers; ++worker)
    type.compute(memory_.data(), worker);
  for (auto &entry : fields)
    if (entry.second.descriptor->direction != FieldDirection::Input)
      for (Operand &operand : entry.second.operands)
        operand.commit();
}

void ComputeSetData::bind() {
  if (bound_)
    return;
  for (auto &vertex : vertices)
    vertex->bind(name);
  refuseRaces();
  bound_ = true;
}

// On the device the vertices of a compute set run at the same time, so what
// one writes no other may touch.
void ComputeSetData::refuseRaces() const {
  struct Access {
    Variable *variable;
    std::int64_t begin, end;
    std::size_t vertex;
    bool write;
  };
  std::vector<Access> accesses;
  for (std::size_t v = 0; v < vertices.size(); ++v)
    for (const auto &entry : vertices[v]->fields)
      for (const Operand &operand : entry.second.operands)
        for (const Run &run : operand.runs()) {
          const std::size_t pieces =
              run.step == 1 || run.count == 1 ? 1 : run.count;
          for (std::size_t i = 0; i < pieces; ++i) {
            const std::int64_t begin = run.start + run.step * std::int64_t(i);
            accesses.push_back(
                {run.variable, begin, begin + std::int64_t(run.count / pieces),
                 v,
                 entry.second.descriptor->direction != FieldDirection::Input});
          }
        }
  std::sort(accesses.begin(), accesses.end(), [](const auto &a, const auto &b) {
    return std::tie(a.variable, a.begin) < std::tie(b.variable, b.begin);
  });
  for (std::size_t i = 0; i < accesses.size(); ++i)
    for (std::size_t k = i + 1;
         k < accesses.size() && accesses[k].variable == accesses[i].variable &&
         accesses[k].begin < accesses[i].end;
         ++k)
      if (accesses[i].vertex != accesses[k].vertex &&
          (accesses[i].write || accesses[k].write))
        throw poplar::graph_construction_error(
            "two vertices of compute set " + name + " race on element " +
            std::to_string(accesses[k].begin) + " of " +
            accesses[i].variable->name + " (" +
            vertices[accesses[i].vertex]->type.name + " and " +
            vertices[accesses[k].vertex]->type.name + ")");
}

void ComputeSetData::run() {
  for (auto &vertex : vertices) {
    UserCode::enter(vertex->title.c_str());
    vertex->run();
  }
  UserCode::enter(nullptr);
}

Cost ComputeSetData::cost() const {
  std::map<int, std::uint64_t> cyclesOfTile;
  Cost cost;
  for (const auto &vertex : vertices) {
    cyclesOfTile[vertex->tile] += vertex->estimatedCycles;
    for (const auto &entry : vertex->fields)
      for (const Operand &operand : entry.second.operands)
        cost.bytes += operand.size() * sizeOf(operand.type());
  }
  for (const auto &entry : cyclesOfTile)
    cost.cycles = std::max(cost.cycles, entry.second);
  return cost;
}

void ComputeSetData::variables(std::vector<Variable *> &reads,
                               std::vector<Variable *> &writes) const {
  for (const auto &vertex : vertices)
    for (const auto &entry : vertex->fields)
      for (const Operand &operand : entry.second.operands)
        for (Variable *variable : operand.variables()) {
          reads.push_back(variable);
          if (entry.second.descriptor->direction != FieldDirection::Input)
            writes.push_back(variable);
        }
}

} // namespace popemu
