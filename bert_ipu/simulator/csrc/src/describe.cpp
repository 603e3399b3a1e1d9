#include "describe.hpp"

#include <cstdio>

#include <popart/opserialiser.hpp>
#include <popart/tensor.hpp>

#include "lower.hpp"

namespace popemu {

using namespace popart;

std::string quoted(const std::string &text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += std::string("\\") + c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x",
                    static_cast<unsigned>(c));
      result += escape;
    } else {
      result += c;
    }
  }
  return result + "\"";
}

namespace {

class JsonSerialiser : public OpSerialiserBase {
public:
  std::string text = "{";

private:
  void appendText(const std::string &name, const std::string &value) override {
    text += (text.size() > 1 ? "," : "") + quoted(name) + ":" + quoted(value);
  }
};

std::string infoText(const TensorInfo &info) {
  return "\"dtype\":" + quoted(info.data_type()) + ",\"shape\":" +
         jsonList(info.shape(), [](int64_t d) { return std::to_string(d); });
}

std::string slot(int index, const Tensor &tensor) {
  return "{\"index\":" + std::to_string(index) +
         ",\"id\":" + quoted(tensor.id) + "," + infoText(tensor.info) + "}";
}

std::string connections(const TensorIndexMap &map) {
  std::string text = "{";
  for (const auto &entry : map.tensorMap())
    text += (text.size() > 1 ? "," : "") + quoted(std::to_string(entry.first)) +
            ":" + quoted(entry.second->id);
  return text + "}";
}

std::string attributesOf(const Op &op) {
  JsonSerialiser serialiser;
  op.appendAttributes(serialiser);
  return serialiser.text + "}";
}

std::string opInGraph(const Op &op) {
  const TopoCons &constraints = *op.getGraph().topoCons;
  const auto ids = [](const std::vector<Op *> &ops) {
    return jsonList(ops, [](Op *o) { return std::to_string(o->id); });
  };
  Op *self = const_cast<Op *>(&op);
  return "{\"id\":" + std::to_string(op.id) +
         ",\"domain\":" + quoted(op.opid.domain) +
         ",\"type\":" + quoted(op.opid.type) +
         ",\"version\":" + std::to_string(op.opid.version) +
         ",\"name\":" + quoted(op.name()) + ",\"outer\":" +
         (op.settings.executionContext ==
                  ExecutionContext::AccumulateOuterFragment
              ? "true"
              : "false") +
         ",\"inputs\":" + connections(*op.input) +
         ",\"outputs\":" + connections(*op.output) +
         ",\"attributes\":" + attributesOf(op) +
         ",\"after\":" + ids(constraints.getBefores(self)) +
         ",\"tied_after\":" + ids(constraints.getTiedBefores(self)) + "}";
}

} // namespace

std::string describeOp(const Op &op) {
  std::string inputs, outputs, updates;
  for (InIndex index : callerInputs(op))
    inputs +=
        (inputs.empty() ? "" : ",") + slot(index, *op.input->tensor(index));
  for (const auto &entry : op.output->tensorMap())
    outputs += (outputs.empty() ? "" : ",") + slot(entry.first, *entry.second);
  for (const auto &entry : inPlaceUpdates(op))
    updates += (updates.empty() ? "" : ",") +
               quoted(std::to_string(entry.first)) + ":" +
               std::to_string(entry.second);
  return "{\"title\":" + quoted(logging::format("{}", op.opid)) +
         ",\"inputs\":[" + inputs + "],\"outputs\":[" + outputs +
         "],\"updates\":{" + updates + "},\"requires_random_seed\":" +
         (op.requiresRandomSeed() ? "true" : "false") +
         ",\"attributes\":" + attributesOf(op) + "}";
}

std::string describeIr(const Ir &ir) {
  const Graph &graph = ir.getMainGraph();
  const auto tensors =
      jsonList(graph.getTensors().getAll(), [](const Tensor *tensor) {
        return "{\"id\":" + quoted(tensor->id) +
               ",\"kind\":" + quoted(tensor->tensor_type()) + "," +
               infoText(tensor->info) + "}";
      });
  return "{\"ops\":" +
         jsonList(graph.getOpSchedule(),
                  [](const Op *op) { return opInGraph(*op); }) +
         ",\"tensors\":" + tensors + "}";
}

std::string describeEdits(const std::vector<PatternEdit> &edits) {
  const auto id = [](OpId op) { return std::to_string(op); };
  return jsonList(edits, [&](const PatternEdit &edit) {
    return "{\"pattern\":" + quoted(edit.pattern) +
           ",\"matched\":" + id(edit.matched) +
           ",\"matched_type\":" + quoted(edit.matchedType) +
           ",\"removed\":" + jsonList(edit.removed, id) +
           ",\"added\":" + jsonList(edit.added, id) + "}";
  });
}

std::string describeCosts(const std::vector<StepCost> &costs) {
  return jsonList(costs, [](const StepCost &step) {
    return "[" + quoted(step.name) + "," + std::to_string(step.cost.cycles) +
           "," + std::to_string(step.cost.bytes) + "]";
  });
}

} // namespace popemu
