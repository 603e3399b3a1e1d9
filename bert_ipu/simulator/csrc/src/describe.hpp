// Graphs, ops and costs as JSON text.
#pragma once

#include <string>
#include <vector>

#include <popart/ir.hpp>

#include "engine.hpp"
#include "pattern_runner.hpp"

namespace popemu {

std::string quoted(const std::string &text);
template <typename T, typename F>
std::string jsonList(const std::vector<T> &values, F &&item) {
  std::string text = "[";
  for (const T &value : values)
    text += (text.size() > 1 ? "," : "") + item(value);
  return text + "]";
}

std::string describeOp(const popart::Op &op);
std::string describeIr(const popart::Ir &ir);
std::string describeEdits(const std::vector<PatternEdit> &edits);
std::string describeCosts(const std::vector<StepCost> &costs);

} // namespace popemu
