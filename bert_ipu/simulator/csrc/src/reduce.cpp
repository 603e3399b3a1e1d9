// popops::reduce.
#include <popops/Reduce.hpp>
#include <poputil/exceptions.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core.hpp"
#include "cost.hpp"

namespace popemu {
namespace {

using popops::Operation;

double identityOf(Operation op) {
  const double infinity = std::numeric_limits<double>::infinity();
  switch (op) {
  case Operation::MUL:
  case Operation::LOGICAL_AND:
    return 1;
  case Operation::MIN:
    return infinity;
  case Operation::MAX:
  case Operation::LOG_ADD:
    return -infinity;
  default:
    return 0;
  }
}

double combine(Operation op, double a, double b) {
  switch (op) {
  case Operation::ADD:
    return a + b;
  case Operation::MUL:
    return a * b;
  case Operation::MIN:
    return std::min(a, b);
  case Operation::MAX:
    return std::max(a, b);
  case Operation::LOGICAL_AND:
    return a != 0 && b != 0;
  case Operation::LOGICAL_OR:
    return a != 0 || b != 0;
  case Operation::SQUARE_ADD:
    return a + b * b;
  default: {
    const double high = std::max(a, b), low = std::min(a, b);
    return std::isinf(high) ? high : high + std::log1p(std::exp(low - high));
  }
  }
}

struct ReduceStep : Step {
  ReduceStep(const poplar::Tensor &rows, const poplar::Tensor &output,
             const popops::ReduceParams &params)
      : input(rows), output(output), operation(params.op),
        update(params.update), rowLength(rows.dim(1)) {
    if (params.useScale)
      scale = std::make_unique<Operand>(params.scale);
  }

  // Sums are kept in double: the device adds partials of each tile in float,
  // in an order of its own, and double is nearest to all such orders.
  void run() override {
    const char *data = input.read();
    const double factor =
        scale ? loadDouble(scale->read(), scale->type()) : 1.0;
    const char *old = update ? output.read() : nullptr;
    char *out = output.beginWrite();
    const std::size_t width = sizeOf(input.type());
    const std::size_t outWidth = sizeOf(output.type());
    for (std::size_t row = 0; row < output.size(); ++row) {
      double value = reduceRow(data + row * rowLength * width);
      if (scale)
        value *= factor;
      if (update)
        value = combine(operation,
                        loadDouble(old + row * outWidth, output.type()), value);
      storeDouble(value, output.type(), out + row * outWidth);
    }
    output.commit();
  }

  double reduceRow(const char *row) {
    constexpr std::size_t block = 512;
    float values[block];
    double result = identityOf(operation);
    if (!isFloating(input.type())) {
      const std::size_t width = sizeOf(input.type());
      for (std::size_t i = 0; i < rowLength; ++i)
        result = combine(operation, result,
                         loadDouble(row + i * width, input.type()));
      return result;
    }
    for (std::size_t at = 0; at < rowLength; at += block) {
      const std::size_t n = std::min(block, rowLength - at);
      toFloat(row + at * sizeOf(input.type()), input.type(), values, n);
      if (operation == Operation::ADD) {
        for (std::size_t i = 0; i < n; ++i)
          result += double(values[i]);
      } else {
        for (std::size_t i = 0; i < n; ++i)
          result = combine(operation, result, double(values[i]));
      }
    }
    return result;
  }

  Operand input, output;
  std::unique_ptr<Operand> scale;
  Operation operation;
  bool update;
  std::size_t rowLength;
};

struct Split {
  std::vector<unsigned> order; // kept dimensions, then reduced ones
  std::vector<std::size_t> kept;
  std::size_t rows = 1, rowLength = 1;
};

Split splitOf(const poplar::Tensor &in, const std::vector<std::size_t> &dims) {
  Split split;
  for (std::size_t d : dims)
    if (d >= in.rank())
      throw poputil::poplibs_error(
          "reduce over dimension " + std::to_string(d) +
          " of a tensor of shape " + in.shapeToString());
  std::vector<unsigned> reduced;
  for (unsigned d = 0; d < in.rank(); ++d) {
    if (std::find(dims.begin(), dims.end(), d) != dims.end()) {
      reduced.push_back(d);
      split.rowLength *= in.dim(d);
    } else {
      split.order.push_back(d);
      split.kept.push_back(in.dim(d));
      split.rows *= in.dim(d);
    }
  }
  split.order.insert(split.order.end(), reduced.begin(), reduced.end());
  return split;
}

} // namespace
} // namespace popemu

namespace popops {

using namespace popemu;
using poplar::Tensor;

void reduceWithOutput(poplar::Graph &graph, const Tensor &in, const Tensor &out,
                      const std::vector<std::size_t> &dims, ReduceParams params,
                      poplar::program::Sequence &prog,
                      const poplar::DebugContext &debugContext,
                      const poplar::OptionFlags &) {
  const Split split = splitOf(in, dims);
  if (out.numElements() != split.rows)
    throw poputil::poplibs_error("reduce writes " + shapeText(split.kept) +
                                 " to a tensor of shape " +
                                 out.shapeToString());
  if (params.useScale && params.scale.numElements() != 1)
    throw poputil::poplibs_error("the scale of a reduce must be a scalar");
  const Tensor rows =
      in.dimShuffle(split.order).reshape({split.rows, split.rowLength});
  std::vector<Tensor> reads = {in};
  if (params.useScale)
    reads.push_back(params.scale);
  const Cost cost{
      reduceCycles(graph.getTarget(), in.numElements(), in.elementType()),
      in.numElements() * sizeOf(in.elementType()) +
          out.numElements() * sizeOf(out.elementType())};
  record(prog, std::make_shared<ReduceStep>(rows, out, params), debugContext,
         reads, {out}, cost);
}

Tensor reduce(poplar::Graph &graph, const Tensor &in,
              const poplar::Type &outType, const std::vector<std::size_t> &dims,
              ReduceParams params, poplar::program::Sequence &prog,
              const poplar::DebugContext &debugContext,
              const poplar::OptionFlags &options) {
  if (params.update)
    throw poputil::poplibs_error(
        "reduce with update needs an output: use reduceWithOutput");
  Tensor out = addMapped(graph, outType, splitOf(in, dims).kept, debugContext);
  reduceWithOutput(graph, in, out, dims, params, prog, debugContext, options);
  return out;
}

Tensor reduce(poplar::Graph &graph, const Tensor &in,
              const std::vector<std::size_t> &dims, ReduceParams params,
              poplar::program::Sequence &prog,
              const poplar::DebugContext &debugContext,
              const poplar::OptionFlags &options) {
  return reduce(graph, in, in.elementType(), dims, params, prog, debugContext,
                options);
}

} // namespace popops
