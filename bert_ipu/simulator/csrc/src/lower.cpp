#include "lower.hpp"

#include <algorithm>

#include <popart/ir.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/tensor.hpp>

namespace popemu {

using namespace popart;

namespace {

bool isSeed(const Op &op, InIndex index) {
  return op.requiresRandomSeed() && index == op.getSeedInIndex();
}

std::vector<OutIndex> outputsOf(const Op &op) {
  std::vector<OutIndex> indices;
  for (const auto &entry : op.output->tensorMap())
    indices.push_back(entry.first);
  return indices;
}

template <typename T>
int positionOf(const std::vector<T> &values, const T &value) {
  const auto found = std::find(values.begin(), values.end(), value);
  return found == values.end() ? -1 : int(found - values.begin());
}

} // namespace

std::vector<InIndex> callerInputs(const Op &op) {
  std::vector<InIndex> indices;
  for (const auto &entry : op.input->tensorMap())
    if (!isSeed(op, entry.first))
      indices.push_back(entry.first);
  return indices;
}

std::map<int, int> inPlaceUpdates(const Op &op) {
  std::map<int, int> updates;
  const auto inputs = callerInputs(op);
  const auto outputs = outputsOf(op);
  for (InIndex in : inputs) {
    if (!op.modifiesIndex(in))
      continue;
    for (OutIndex out : outputs) {
      const auto regions = op.aliases(in, out);
      const bool aliased =
          std::any_of(regions.begin(), regions.end(),
                      [](const view::Region &r) { return !r.isEmpty(); });
      if (aliased && op.inInfo(in) == op.outInfo(out))
        updates[positionOf(inputs, in)] = positionOf(outputs, out);
    }
  }
  return updates;
}

std::unique_ptr<Engine> lower(Op &op, bool isolate) {
  poplar::Graph graph;
  popx::Devicex device(op.getIr(), graph);
  std::vector<poplar::Tensor> inputs, seeds, outputs;
  for (const auto &entry : op.input->tensorMap()) {
    const Tensor &tensor = *entry.second;
    if (!device.contains(tensor.id))
      device.insert(tensor.id, addMapped(graph, popx::popType(tensor.info),
                                         tensor.info.shape_szt(), tensor.id));
    (isSeed(op, entry.first) ? seeds : inputs).push_back(device.get(tensor.id));
  }
  auto opx = popx::OpxManager::createOpx(&op, &device);
  poplar::program::Sequence program;
  opx->grow(program);
  for (const auto &entry : op.output->tensorMap()) {
    if (!device.contains(entry.second->id))
      throw error("grow() of {} did not set output {}", op.debugName(),
                  entry.first);
    outputs.push_back(device.get(entry.second->id));
  }
  return std::make_unique<Engine>(Engine::Request{
      logging::format("running {}", op.opid), std::move(graph), program, inputs,
      outputs, inPlaceUpdates(op), seeds, isolate});
}

} // namespace popemu
