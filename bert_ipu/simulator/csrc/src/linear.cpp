// poplin, popnn and the layout helpers of poputil.
#include <poplin/ConvUtil.hpp>
#include <poplin/MatMul.hpp>
#include <popnn/NonLinearity.hpp>
#include <popops/ElementWise.hpp>
#include <popops/Reduce.hpp>
#include <popops/ScaledAdd.hpp>
#include <poputil/TileMapping.hpp>
#include <poputil/Util.hpp>

#include <algorithm>
#include <set>

#include "core.hpp"
#include "cost.hpp"

namespace popemu {
namespace {

using poplar::Tensor;

struct MatMulStep : Step {
  MatMulStep(const Tensor &a, const Tensor &b, const Tensor &out)
      : a(a), b(b), out(out), groups(a.dim(0)), m(a.dim(1)), k(a.dim(2)),
        n(b.dim(2)), left(a.numElements()), right(b.numElements()), row(n) {}

  void run() override {
    toFloat(a.read(), a.type(), left.data(), left.size());
    toFloat(b.read(), b.type(), right.data(), right.size());
    char *target = out.beginWrite();
    for (std::size_t g = 0; g < groups; ++g)
      for (std::size_t i = 0; i < m; ++i) {
        std::fill(row.begin(), row.end(), 0.0f);
        for (std::size_t j = 0; j < k; ++j) {
          const float factor = left[(g * m + i) * k + j];
          const float *line = &right[(g * k + j) * n];
          for (std::size_t c = 0; c < n; ++c)
            row[c] += factor * line[c];
        }
        fromFloat(row.data(), out.type(),
                  target + (g * m + i) * n * sizeOf(out.type()), n);
      }
    out.commit();
  }

  Operand a, b, out;
  std::size_t groups, m, k, n;
  std::vector<float> left, right, row;
};

} // namespace
} // namespace popemu

namespace poplin {

using namespace popemu;
using poplar::DebugContext;
using poplar::Graph;
using poplar::OptionFlags;
using poplar::Tensor;
using poplar::Type;
using poplar::program::Sequence;

Tensor matMulGrouped(Graph &graph, const Tensor &A, const Tensor &B,
                     Sequence &prog, const Type &outputType,
                     const DebugContext &debugContext, const OptionFlags &,
                     PlanningCache *) {
  const bool fits = A.rank() == 3 && B.rank() == 3 && A.dim(0) == B.dim(0) &&
                    A.dim(2) == B.dim(1) &&
                    A.elementType() == B.elementType() &&
                    isFloating(A.elementType());
  if (!fits)
    throw poputil::poplibs_error(
        "matMul of " + A.elementType().toString() + " " + A.shapeToString() +
        " and " + B.elementType().toString() + " " + B.shapeToString());
  Tensor out = addMapped(graph, outputType, {A.dim(0), A.dim(1), B.dim(2)},
                         debugContext);
  const std::size_t macs = A.numElements() * B.dim(2);
  record(prog, std::make_shared<MatMulStep>(A, B, out), debugContext, {A, B},
         {out},
         {matMulCycles(graph.getTarget(), macs, A.elementType()),
          (A.numElements() + B.numElements()) * sizeOf(A.elementType()) +
              out.numElements() * sizeOf(outputType)});
  return out;
}

Tensor matMul(Graph &graph, const Tensor &A, const Tensor &B, Sequence &prog,
              const Type &outputType, const DebugContext &debugContext,
              const OptionFlags &options, PlanningCache *cache) {
  return matMulGrouped(graph, A.expand({0}), B.expand({0}), prog, outputType,
                       debugContext, options, cache)[0];
}

Tensor matMul(Graph &graph, const Tensor &A, const Tensor &B, Sequence &prog,
              const DebugContext &debugContext, const OptionFlags &options,
              PlanningCache *cache) {
  return matMul(graph, A, B, prog, A.elementType(), debugContext, options,
                cache);
}

void matMulAcc(Graph &graph, const Tensor &C, float k, const Tensor &A,
               const Tensor &B, Sequence &prog,
               const DebugContext &debugContext, const OptionFlags &options,
               PlanningCache *cache) {
  const Tensor product =
      matMul(graph, A, B, prog, C.elementType(), debugContext, options, cache);
  popops::scaledAddTo(graph, C, product, k, prog, debugContext);
}

Tensor createMatMulInputLHS(Graph &graph, const Type &inputType, const Type &,
                            const std::vector<std::size_t> &aShape,
                            const std::vector<std::size_t> &,
                            const DebugContext &debugContext,
                            const OptionFlags &, PlanningCache *) {
  return addMapped(graph, inputType, aShape, debugContext);
}

Tensor createMatMulInputRHS(Graph &graph, const Type &inputType, const Type &,
                            const std::vector<std::size_t> &,
                            const std::vector<std::size_t> &bShape,
                            const DebugContext &debugContext,
                            const OptionFlags &, PlanningCache *) {
  return addMapped(graph, inputType, bShape, debugContext);
}

Tensor transposeGroupedMatrix(const Tensor &A) {
  return A.dimShuffle({0, 2, 1});
}

} // namespace poplin

namespace popops {
namespace rearrange {

using poplar::Tensor;

// On the device the choice depends on how both tensors lie on the tiles. All
// tensors lie linearly here, so regrouping never pays, and never changes a
// value: what remains are the checks.
Tensor regroupIfBeneficial(poplar::Graph &, const Tensor &in, const Tensor &ref,
                           poplar::program::Sequence &,
                           const poplar::DebugContext &) {
  const std::set<poplar::Type> regroupable = {
      poplar::HALF,  poplar::FLOAT,        poplar::UNSIGNED_SHORT,
      poplar::SHORT, poplar::UNSIGNED_INT, poplar::INT};
  if (in.rank() <= 1 || ref.rank() <= 1 || !regroupable.count(in.elementType()))
    return in;
  if (in.shape() != ref.shape())
    throw poputil::poplibs_error(
        "regroupIfBeneficial: a tensor of shape " + in.shapeToString() +
        " cannot be grouped like one of shape " + ref.shapeToString());
  return in;
}

Tensor regroupIfBeneficial(poplar::Graph &, const Tensor &in, std::size_t,
                           poplar::program::Sequence &,
                           const poplar::DebugContext &) {
  return in;
}

} // namespace rearrange
} // namespace popops

namespace popnn {

using namespace popops::expr;
using poplar::DebugContext;
using poplar::Graph;
using poplar::OptionFlags;
using poplar::Tensor;
using poplar::program::Sequence;

namespace {

// The tanh approximation, which popnn calls GELU.
Any geluExpr() {
  return Mul(
      Mul(Const(0.5f), _1),
      Add(Const(1.0f),
          Tanh(Mul(Const(0.7978845608f),
                   Add(_1, Mul(Const(0.044715f), Mul(_1, Mul(_1, _1))))))));
}

Any elementwiseExpr(NonLinearityType type) {
  switch (type) {
  case NonLinearityType::SIGMOID:
    return Sigmoid(_1);
  case NonLinearityType::HARD_SIGMOID:
    return Clamp(Add(Mul(Const(0.2f), _1), Const(0.5f)), Const(0.0f),
                 Const(1.0f));
  case NonLinearityType::RELU:
    return Max(_1, Const(0.0f));
  case NonLinearityType::TANH:
    return Tanh(_1);
  case NonLinearityType::SWISH:
    return Mul(_1, Sigmoid(_1));
  case NonLinearityType::GELU_ERF:
    return GeluErf(_1);
  default:
    return geluExpr();
  }
}

bool isSoftmax(NonLinearityType type) {
  return type == NonLinearityType::SOFTMAX ||
         type == NonLinearityType::SOFTMAX_STABLE ||
         type == NonLinearityType::SOFTMAX_SCALED;
}

Tensor softmax(Graph &graph, const Tensor &t, Sequence &prog,
               const DebugContext &context) {
  const std::size_t last = t.rank() - 1;
  const Tensor wide =
      popops::map(graph, Cast(_1, poplar::FLOAT), {t}, prog, context);
  const Tensor high =
      popops::reduce(graph, wide, {last}, popops::Operation::MAX, prog, context)
          .expand({last});
  const Tensor shifted =
      popops::map(graph, Exp(Sub(_1, _2)), {wide, high}, prog, context);
  const Tensor sum = popops::reduce(graph, shifted, {last},
                                    popops::Operation::ADD, prog, context)
                         .expand({last});
  return popops::map(graph, Cast(Divide(_1, _2), t.elementType()),
                     {shifted, sum}, prog, context);
}

} // namespace

Tensor nonLinearity(Graph &graph, NonLinearityType type, Tensor t,
                    Sequence &prog, const DebugContext &debugContext,
                    const OptionFlags &) {
  if (isSoftmax(type))
    return softmax(graph, t, prog, debugContext);
  // One rounding at the end, as the vertices do.
  const Tensor wide =
      popops::map(graph, Cast(_1, poplar::FLOAT), {t}, prog, debugContext);
  return popops::map(graph, Cast(elementwiseExpr(type), t.elementType()),
                     {wide}, prog, debugContext);
}

void nonLinearityInPlace(Graph &graph, NonLinearityType type, Tensor t,
                         Sequence &prog, const DebugContext &debugContext,
                         const OptionFlags &options) {
  prog.add(poplar::program::Copy(
      nonLinearity(graph, type, t, prog, debugContext, options), t, false,
      debugContext));
}

Tensor nonLinearityInputGradient(Graph &graph, NonLinearityType type,
                                 Tensor act, Tensor outGradient, Sequence &prog,
                                 const DebugContext &debugContext,
                                 const OptionFlags &) {
  // `act` is the output, except for GELU, whose input is needed.
  switch (type) {
  case NonLinearityType::SIGMOID:
    return popops::map(graph, Mul(_2, Mul(_1, Sub(Const(1.0f), _1))),
                       {act, outGradient}, prog, debugContext);
  case NonLinearityType::TANH:
    return popops::map(graph, Mul(_2, Sub(Const(1.0f), Mul(_1, _1))),
                       {act, outGradient}, prog, debugContext);
  case NonLinearityType::RELU:
    return popops::map(graph, Select(_2, Const(0.0f), Gt(_1, Const(0.0f))),
                       {act, outGradient}, prog, debugContext);
  default:
    throw poputil::poplibs_error("nonLinearityInputGradient of non-linearity " +
                                 std::to_string(int(type)) +
                                 " is not in the simulator");
  }
}

} // namespace popnn

namespace poputil {

using poplar::Graph;
using poplar::Interval;
using poplar::Tensor;

std::vector<std::vector<Interval>>
calcLinearTileMapping(const Graph &graph, std::vector<std::size_t> shape,
                      unsigned minElementsPerTile, unsigned grainSize,
                      unsigned offset, bool ascendingOrder) {
  const std::size_t tiles = graph.getTarget().getNumTiles();
  std::size_t n = 1;
  for (std::size_t extent : shape)
    n *= extent;
  std::size_t share = std::max<std::size_t>((n + tiles - 1) / tiles,
                                            std::max(1u, minElementsPerTile));
  share = (share + grainSize - 1) / grainSize * grainSize;
  std::vector<std::vector<Interval>> mapping(tiles);
  for (std::size_t begin = 0, i = 0; begin < n; begin += share, ++i) {
    const std::size_t tile = (offset + i) % tiles;
    mapping[ascendingOrder ? tile : tiles - 1 - tile].emplace_back(
        begin, std::min(begin + share, n));
  }
  return mapping;
}

std::vector<std::vector<Interval>> calcLinearTileMapping(const Graph &graph,
                                                         const Tensor &t,
                                                         unsigned offset,
                                                         bool ascendingOrder) {
  return calcLinearTileMapping(graph, t.shape(), 1, 1, offset, ascendingOrder);
}

void mapTensorLinearly(Graph &graph, const Tensor &t,
                       unsigned minElementsPerTile, unsigned grainSize) {
  graph.setTileMapping(t, calcLinearTileMapping(graph, t.shape(),
                                                minElementsPerTile, grainSize));
}

void mapTensorLinearly(Graph &graph, const Tensor &t) {
  mapTensorLinearly(graph, t, 1, 1);
}

void mapTensorLinearlyWithOffset(Graph &graph, const Tensor &t, unsigned offset,
                                 bool ascendingOrder) {
  graph.setTileMapping(t,
                       calcLinearTileMapping(graph, t, offset, ascendingOrder));
}

Tensor duplicate(Graph &graph, const Tensor &in,
                 poplar::program::Sequence &prog,
                 const poplar::DebugContext &debugContext,
                 poplar::TensorCloneMethod method) {
  Tensor copy = graph.clone(in, debugContext, method);
  prog.add(poplar::program::Copy(in, copy, false, debugContext));
  return copy;
}

} // namespace poputil
