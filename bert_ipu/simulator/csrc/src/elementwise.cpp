// popops::map: an expression becomes a list of operators, which runs over the
// elements block by block, so that intermediate values stay in the cache.
#include <popops/Cast.hpp>
#include <popops/ElementWise.hpp>
#include <popops/ScaledAdd.hpp>
#include <popops/Zero.hpp>
#include <poputil/Broadcast.hpp>
#include <poputil/exceptions.hpp>

#include <algorithm>
#include <cstring>

#include "core.hpp"
#include "cost.hpp"
#include "kernels.hpp"

namespace popemu {
namespace {

using poplar::Tensor;
using poplar::Type;
using namespace popops::expr;

constexpr std::size_t blockSize = 512;

enum class NodeKind { Input, Constant, Cast, Unary, Binary, Ternary };

struct Node {
  NodeKind kind;
  Type type;
  int op = 0;
  std::size_t arguments[3] = {0, 0, 0};
  double constant = 0;
};

struct Block512 {
  float floats[blockSize];
  std::int64_t ints[blockSize];
};

unsigned bitsOf(Type type) {
  return type == poplar::BOOL ? 1 : unsigned(8 * sizeOf(type));
}

void wrap(Type type, std::int64_t *values, std::size_t n) {
  if (type == poplar::INT) {
    for (std::size_t i = 0; i < n; ++i)
      values[i] = std::int32_t(values[i]);
    return;
  }
  char stored[blockSize * 8];
  fromInt(values, type, stored, n);
  toInt(stored, type, values, n);
}

// The operators of an expression, arguments before their users.
class Compiler {
public:
  explicit Compiler(const std::vector<Tensor> &inputs) : inputs_(inputs) {}

  std::size_t compile(const Expr &expr) {
    if (auto *e = expr.getAs<Const>())
      return add(
          {NodeKind::Constant, e->getType(), 0, {}, e->getDataAsDouble()});
    if (auto *e = expr.getAs<PlaceHolder>())
      return compileInput(e->getIndex());
    if (auto *e = expr.getAs<popops::expr::Cast>()) {
      const std::size_t a = compile(e->getLHS());
      return add({NodeKind::Cast, e->getRHSType(), 0, {a, 0, 0}, 0});
    }
    if (auto *e = expr.getAs<UnaryOp>())
      return compileUnary(*e);
    if (auto *e = expr.getAs<BinaryOp>())
      return compileBinary(*e);
    return compileTernary(*expr.getAs<TernaryOp>());
  }

  std::vector<Node> nodes;

private:
  std::size_t add(Node node) {
    nodes.push_back(node);
    return nodes.size() - 1;
  }

  std::size_t compileInput(unsigned index) {
    if (index == 0 || index > inputs_.size())
      throw poputil::poplibs_error("an expression uses input _" +
                                   std::to_string(index) + " of " +
                                   std::to_string(inputs_.size()));
    return add({NodeKind::Input,
                inputs_[index - 1].elementType(),
                0,
                {index - 1, 0, 0},
                0});
  }

  std::size_t compileUnary(const UnaryOp &e) {
    const std::size_t a = compile(e.getArg());
    const Type type = isPredicate(e.getOpType()) ? poplar::BOOL : nodes[a].type;
    return add({NodeKind::Unary, type, int(e.getOpType()), {a, 0, 0}, 0});
  }

  std::size_t compileBinary(const BinaryOp &e) {
    const std::size_t a = compile(e.getLHS());
    const std::size_t b = compile(e.getRHS());
    agree(a, b);
    const Type type =
        isComparison(e.getOpType()) ? poplar::BOOL : nodes[a].type;
    return add({NodeKind::Binary, type, int(e.getOpType()), {a, b, 0}, 0});
  }

  std::size_t compileTernary(const TernaryOp &e) {
    const std::size_t a = compile(e.getArg0());
    const std::size_t b = compile(e.getArg1());
    const std::size_t c = compile(e.getArg2());
    agree(a, b);
    if (e.getOpType() == TernaryOpType::CLAMP)
      agree(a, c);
    return add(
        {NodeKind::Ternary, nodes[a].type, int(e.getOpType()), {a, b, c}, 0});
  }

  // A constant takes the type of what it is combined with.
  void agree(std::size_t a, std::size_t b) {
    if (nodes[a].type == nodes[b].type)
      return;
    if (nodes[b].kind == NodeKind::Constant)
      nodes[b].type = nodes[a].type;
    else if (nodes[a].kind == NodeKind::Constant)
      nodes[a].type = nodes[b].type;
    else
      throw poputil::poplibs_error("an elementwise operator combines " +
                                   nodes[a].type.toString() + " and " +
                                   nodes[b].type.toString());
  }

  const std::vector<Tensor> &inputs_;
};

struct MapStep : Step {
  MapStep(std::vector<Node> nodes, const std::vector<Tensor> &inputs,
          const Tensor &output)
      : nodes(std::move(nodes)), output(output), blocks(this->nodes.size()) {
    for (const Tensor &input : inputs)
      operands.emplace_back(input);
  }

  void run() override {
    std::vector<const char *> data;
    for (Operand &operand : operands)
      data.push_back(operand.read());
    char *out = output.beginWrite();
    const std::size_t width = sizeOf(output.type());
    for (std::size_t i = 0; i < nodes.size(); ++i)
      if (isUniform(nodes[i]))
        load(nodes[i], blocks[i], data, 0, blockSize);
    for (std::size_t at = 0; at < output.size(); at += blockSize) {
      const std::size_t n = std::min(blockSize, output.size() - at);
      for (std::size_t i = 0; i < nodes.size(); ++i)
        if (!isUniform(nodes[i]))
          evaluate(i, data, at, n);
      store(blocks.back(), out + at * width, n);
    }
    output.commit();
  }

private:
  bool isUniform(const Node &node) const {
    return node.kind == NodeKind::Constant ||
           (node.kind == NodeKind::Input &&
            operands[node.arguments[0]].size() == 1 && output.size() != 1);
  }

  void load(const Node &node, Block512 &block,
            const std::vector<const char *> &data, std::size_t at,
            std::size_t n) {
    if (node.kind == NodeKind::Constant) {
      char stored[8];
      storeDouble(node.constant, node.type, stored);
      fill(block, stored, node.type, n);
      return;
    }
    const char *source = data[node.arguments[0]];
    if (isUniform(node)) {
      fill(block, source, node.type, n);
      return;
    }
    source += at * sizeOf(node.type);
    if (isFloating(node.type))
      toFloat(source, node.type, block.floats, n);
    else
      toInt(source, node.type, block.ints, n);
  }

  static void fill(Block512 &block, const char *value, Type type,
                   std::size_t n) {
    if (isFloating(type)) {
      toFloat(value, type, block.floats, 1);
      std::fill_n(block.floats, n, block.floats[0]);
    } else {
      toInt(value, type, block.ints, 1);
      std::fill_n(block.ints, n, block.ints[0]);
    }
  }

  void evaluate(std::size_t index, const std::vector<const char *> &data,
                std::size_t at, std::size_t n) {
    const Node &node = nodes[index];
    Block512 &out = blocks[index];
    switch (node.kind) {
    case NodeKind::Input:
    case NodeKind::Constant:
      return load(node, out, data, at, n);
    case NodeKind::Cast:
      return cast(node, out, n);
    case NodeKind::Unary:
      unary(node, out, n);
      break;
    case NodeKind::Binary:
      binary(node, out, n);
      break;
    case NodeKind::Ternary:
      ternary(node, out, n);
      break;
    }
    if (node.type == poplar::HALF)
      roundToHalf(out.floats, n);
    else if (node.type != poplar::FLOAT)
      wrap(node.type, out.ints, n);
  }

  void cast(const Node &node, Block512 &out, std::size_t n) {
    const Node &from = nodes[node.arguments[0]];
    const Block512 &a = blocks[node.arguments[0]];
    char stored[blockSize * 8];
    if (isFloating(from.type))
      fromFloat(a.floats, node.type, stored, n);
    else
      fromInt(a.ints, node.type, stored, n);
    if (isFloating(node.type))
      toFloat(stored, node.type, out.floats, n);
    else
      toInt(stored, node.type, out.ints, n);
  }

  void unary(const Node &node, Block512 &out, std::size_t n) {
    const auto op = UnaryOpType(node.op);
    const Type from = nodes[node.arguments[0]].type;
    const Block512 &a = blocks[node.arguments[0]];
    if (!isFloating(from))
      applyUnary(op, bitsOf(from), from == poplar::BOOL, a.ints, out.ints, n);
    else if (isPredicate(op))
      applyPredicate(op, a.floats, out.ints, n);
    else
      applyUnary(op, a.floats, out.floats, n);
  }

  void binary(const Node &node, Block512 &out, std::size_t n) {
    const auto op = BinaryOpType(node.op);
    const Type from = nodes[node.arguments[0]].type;
    const Block512 &a = blocks[node.arguments[0]];
    const Block512 &b = blocks[node.arguments[1]];
    if (!isFloating(from))
      applyBinary(op, bitsOf(from), a.ints, b.ints, out.ints, n);
    else if (isComparison(op))
      applyComparison(op, a.floats, b.floats, out.ints, n);
    else
      applyBinary(op, a.floats, b.floats, out.floats, n);
  }

  void ternary(const Node &node, Block512 &out, std::size_t n) {
    const Block512 &a = blocks[node.arguments[0]];
    const Block512 &b = blocks[node.arguments[1]];
    const Block512 &c = blocks[node.arguments[2]];
    const bool isSelect = TernaryOpType(node.op) == TernaryOpType::SELECT;
    if (isFloating(node.type)) {
      for (std::size_t i = 0; i < n; ++i)
        out.floats[i] = isSelect ? (c.ints[i] ? a.floats[i] : b.floats[i])
                                 : std::min(std::max(a.floats[i], b.floats[i]),
                                            c.floats[i]);
    } else {
      for (std::size_t i = 0; i < n; ++i)
        out.ints[i] = isSelect
                          ? (c.ints[i] ? a.ints[i] : b.ints[i])
                          : std::min(std::max(a.ints[i], b.ints[i]), c.ints[i]);
    }
  }

  void store(const Block512 &block, char *out, std::size_t n) {
    if (isFloating(nodes.back().type))
      fromFloat(block.floats, output.type(), out, n);
    else
      fromInt(block.ints, output.type(), out, n);
  }

  std::vector<Node> nodes;
  std::vector<Operand> operands;
  Operand output;
  std::vector<Block512> blocks;
};

Cost costOf(const std::vector<Node> &nodes, const std::vector<Tensor> &inputs,
            const Tensor &output) {
  const poplar::Target &target = output.view().graph->target;
  const std::size_t n = output.numElements();
  Cost cost;
  for (const Node &node : nodes) {
    // A comparison takes as long as its operands are wide. (Inputs and
    // constants have no argument, and no cost.)
    const Type from = nodes[node.arguments[0]].type;
    if (node.kind == NodeKind::Unary)
      cost.cycles += unaryCycles(target, n, from, UnaryOpType(node.op));
    else if (node.kind == NodeKind::Binary)
      cost.cycles += binaryCycles(target, n, from, BinaryOpType(node.op));
    else if (node.kind == NodeKind::Ternary)
      cost.cycles += binaryCycles(target, n, from, BinaryOpType::MAXIMUM);
    else if (node.kind == NodeKind::Cast)
      cost.cycles += castCycles(target, n, from, node.type);
  }
  for (const Tensor &input : inputs)
    cost.bytes += input.numElements() * sizeOf(input.elementType());
  cost.bytes += n * sizeOf(output.elementType());
  return cost;
}

std::vector<std::size_t> broadcastShape(const std::vector<Tensor> &tensors) {
  std::vector<std::size_t> shape;
  for (const Tensor &tensor : tensors) {
    auto other = tensor.shape();
    if (other.size() > shape.size())
      shape.insert(shape.begin(), other.size() - shape.size(), 1);
    const std::size_t lead = shape.size() - other.size();
    for (std::size_t d = 0; d < other.size(); ++d) {
      std::size_t &extent = shape[lead + d];
      if (extent != other[d] && extent != 1 && other[d] != 1)
        throw poputil::poplibs_error("shapes " + shapeText(shape) + " and " +
                                     shapeText(other) +
                                     " cannot be broadcast together");
      if (extent == 1)
        extent = other[d];
    }
  }
  return shape;
}

void recordMap(std::vector<Node> nodes, std::vector<Tensor> inputs,
               const Tensor &output, poplar::program::Sequence &prog,
               const poplar::DebugContext &context) {
  if (nodes.back().type != output.elementType())
    throw poputil::poplibs_error(
        "an elementwise result of type " + nodes.back().type.toString() +
        " is written to a tensor of type " + output.elementType().toString());
  const Cost cost = costOf(nodes, inputs, output);
  for (Tensor &input : inputs)
    if (input.numElements() != 1)
      poputil::broadcastToMatch(input, output.shape());
  auto step = std::make_shared<MapStep>(std::move(nodes), inputs, output);
  record(prog, step, context, inputs, {output}, cost);
}

} // namespace
} // namespace popemu

namespace poputil {

void broadcastToMatch(poplar::Tensor &a,
                      const std::vector<std::size_t> &shape) {
  const auto lead =
      shape.size() - std::min<std::size_t>(shape.size(), a.rank());
  if (lead)
    a = a.expand(std::vector<std::size_t>(lead, 0));
  for (unsigned d = 0; d < shape.size(); ++d) {
    if (a.rank() == shape.size() && a.dim(d) == shape[d])
      continue;
    if (a.rank() != shape.size() || a.dim(d) != 1)
      throw poplibs_error("a tensor of shape " + a.shapeToString() +
                          " cannot be broadcast to " +
                          popemu::shapeText(shape));
    a = a.broadcast(unsigned(shape[d]), d);
  }
}

void broadcastToMatch(poplar::Tensor &a, poplar::Tensor &b) {
  const auto shape = popemu::broadcastShape({a, b});
  broadcastToMatch(a, shape);
  broadcastToMatch(b, shape);
}

void broadcastToMatch(poplar::Tensor &a, poplar::Tensor &b, poplar::Tensor &c) {
  const auto shape = popemu::broadcastShape({a, b, c});
  broadcastToMatch(a, shape);
  broadcastToMatch(b, shape);
  broadcastToMatch(c, shape);
}

} // namespace poputil

namespace popops {

using namespace popemu;
using poplar::Tensor;

Tensor map(poplar::Graph &graph, const expr::Expr &expr,
           const std::vector<Tensor> &ts, poplar::program::Sequence &prog,
           const poplar::DebugContext &debugContext,
           const poplar::OptionFlags &) {
  Compiler compiler(ts);
  compiler.compile(expr);
  Tensor out = addMapped(graph, compiler.nodes.back().type, broadcastShape(ts),
                         debugContext);
  recordMap(std::move(compiler.nodes), ts, out, prog, debugContext);
  return out;
}

void mapWithOutput(poplar::Graph &, const expr::Expr &expr,
                   const std::vector<Tensor> &ts, const Tensor &out,
                   poplar::program::Sequence &prog,
                   const poplar::DebugContext &debugContext,
                   const poplar::OptionFlags &) {
  Compiler compiler(ts);
  compiler.compile(expr);
  recordMap(std::move(compiler.nodes), ts, out, prog, debugContext);
}

void mapInPlace(poplar::Graph &graph, const expr::Expr &expr,
                const std::vector<Tensor> &ts, poplar::program::Sequence &prog,
                const poplar::DebugContext &debugContext,
                const poplar::OptionFlags &options) {
  if (ts.empty())
    throw poputil::poplibs_error("mapInPlace needs an input");
  mapWithOutput(graph, expr, ts, ts[0], prog, debugContext, options);
}

Tensor cast(poplar::Graph &graph, const Tensor &src,
            const poplar::Type &dstType, poplar::program::Sequence &prog,
            const poplar::DebugContext &debugContext) {
  return map(graph, expr::Cast(expr::_1, dstType), {src}, prog, debugContext);
}

void castWithOutput(poplar::Graph &graph, const Tensor &src, const Tensor &dst,
                    poplar::program::Sequence &prog,
                    const poplar::DebugContext &debugContext) {
  mapWithOutput(graph, expr::Cast(expr::_1, dst.elementType()), {src}, dst,
                prog, debugContext);
}

poplar::program::Program cast(poplar::Graph &graph, Tensor src, Tensor dst,
                              const poplar::DebugContext &debugContext) {
  poplar::program::Sequence prog;
  castWithOutput(graph, src, dst, prog, debugContext);
  return prog;
}

void zero(poplar::Graph &graph, const Tensor &t,
          poplar::program::Sequence &prog,
          const poplar::DebugContext &debugContext) {
  auto value = graph.addConstant(t.elementType(), {1}, 0, debugContext);
  graph.setTileMapping(value, 0);
  prog.add(poplar::program::Copy(value.broadcast(unsigned(t.numElements()), 0),
                                 t.flatten(), false, debugContext));
}

namespace {

// One rounding at the end, as the fused vertex does: the arithmetic is float.
void recordScaledAdd(poplar::Graph &graph, Tensor A, const expr::Expr &scaleA,
                     Tensor B, const expr::Expr &scaleB,
                     std::vector<Tensor> scales,
                     poplar::program::Sequence &prog,
                     const poplar::DebugContext &debugContext) {
  using namespace expr;
  const poplar::Type wide =
      isFloating(A.elementType()) ? poplar::FLOAT : A.elementType();
  std::vector<Tensor> inputs = {A, B};
  inputs.insert(inputs.end(), scales.begin(), scales.end());
  mapInPlace(graph,
             expr::Cast(Add(Mul(expr::Cast(_1, wide), scaleA),
                            Mul(expr::Cast(_2, wide), scaleB)),
                        A.elementType()),
             inputs, prog, debugContext, {});
}

poplar::Type wideType(const Tensor &A) {
  return isFloating(A.elementType()) ? poplar::FLOAT : A.elementType();
}

} // namespace

void scaledAddTo(poplar::Graph &graph, Tensor A, Tensor B, float scaleB,
                 poplar::program::Sequence &prog,
                 const poplar::DebugContext &debugContext,
                 const poplar::OptionFlags &) {
  recordScaledAdd(graph, A, expr::Const(1.0f), B, expr::Const(scaleB), {}, prog,
                  debugContext);
}

void scaledAddTo(poplar::Graph &graph, Tensor A, Tensor B, Tensor scaleB,
                 poplar::program::Sequence &prog,
                 const poplar::DebugContext &debugContext,
                 const poplar::OptionFlags &) {
  recordScaledAdd(graph, A, expr::Const(1.0f), B,
                  expr::Cast(expr::_3, wideType(A)), {scaleB}, prog,
                  debugContext);
}

void scaledSubtractFrom(poplar::Graph &graph, Tensor A, Tensor B, float scaleB,
                        poplar::program::Sequence &prog,
                        const poplar::DebugContext &debugContext,
                        const poplar::OptionFlags &options) {
  scaledAddTo(graph, A, B, -scaleB, prog, debugContext, options);
}

void scaledSubtractFrom(poplar::Graph &graph, Tensor A, Tensor B, Tensor scaleB,
                        poplar::program::Sequence &prog,
                        const poplar::DebugContext &debugContext,
                        const poplar::OptionFlags &) {
  recordScaledAdd(graph, A, expr::Const(1.0f), B,
                  expr::Neg(expr::Cast(expr::_3, wideType(A))), {scaleB}, prog,
                  debugContext);
}

void scaledAddTo(poplar::Graph &graph, Tensor A, Tensor scaleA, Tensor B,
                 Tensor scaleB, poplar::program::Sequence &prog,
                 const ScaledAddSpecialisation speciality,
                 const poplar::DebugContext &debugContext,
                 const poplar::OptionFlags &) {
  using namespace expr;
  const Any first = expr::Cast(_3, wideType(A));
  const Any factor = speciality == ScaledAddSpecialisation::DEFAULT
                         ? first
                         : Any(Sub(Const(1.0f), first));
  recordScaledAdd(graph, A, factor, B, expr::Cast(_4, wideType(A)),
                  {scaleA, scaleB}, prog, debugContext);
}

void scaledAddTo(poplar::Graph &graph, Tensor A, Tensor scaleA, Tensor B,
                 Tensor scaleB, poplar::program::Sequence &prog,
                 const poplar::DebugContext &debugContext,
                 const poplar::OptionFlags &options) {
  scaledAddTo(graph, A, scaleA, B, scaleB, prog,
              ScaledAddSpecialisation::DEFAULT, debugContext, options);
}

void scaledAddTo(poplar::Graph &graph, Tensor A, float scaleA, Tensor B,
                 float scaleB, poplar::program::Sequence &prog,
                 const ScaledAddSpecialisation speciality,
                 const poplar::DebugContext &debugContext,
                 const poplar::OptionFlags &) {
  const float factor =
      speciality == ScaledAddSpecialisation::DEFAULT ? scaleA : 1.0f - scaleA;
  recordScaledAdd(graph, A, expr::Const(factor), B, expr::Const(scaleB), {},
                  prog, debugContext);
}

void scaledAddTo(poplar::Graph &graph, Tensor A, float scaleA, Tensor B,
                 float scaleB, poplar::program::Sequence &prog,
                 const poplar::DebugContext &debugContext,
                 const poplar::OptionFlags &options) {
  scaledAddTo(graph, A, scaleA, B, scaleB, prog,
              ScaledAddSpecialisation::DEFAULT, debugContext, options);
}

} // namespace popops
