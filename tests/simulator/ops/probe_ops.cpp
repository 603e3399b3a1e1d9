// One op with many kinds, for the tests: each kind calls one part of the API.
// Attributes: kind, out_shape, out_dtype, ints, floats, path.
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <popart/alias/aliasmodel.hpp>
#include <popart/error.hpp>
#include <popart/op.hpp>
#include <popart/op/identity.hpp>
#include <popart/opmanager.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <poplar/Graph.hpp>
#include <poplin/MatMul.hpp>
#include <popnn/NonLinearity.hpp>
#include <popops/Cast.hpp>
#include <popops/DynamicSlice.hpp>
#include <popops/ElementWise.hpp>
#include <popops/Gather.hpp>
#include <popops/Reduce.hpp>
#include <popops/ScaledAdd.hpp>
#include <poprand/RandomGen.hpp>
#include <poputil/TileMapping.hpp>
#include <poputil/VarStructure.hpp>
#include <poputil/VertexTemplates.hpp>

namespace {

using Ints = popart::Attributes::Ints;
using poplar::Tensor;
using poplar::program::Sequence;

const popart::OperatorIdentifier probe("test.probe", "Probe", 1);
const popart::OperatorIdentifier doubled("test.probe", "Doubled", 1);
const popart::OperatorIdentifier l1("test.probe", "L1Distance", 1, 2, 1);
const popart::OperatorIdentifier l1Grad("test.probe", "L1DistanceGrad", 1);

class ProbeOp : public popart::Op {
public:
  ProbeOp(const popart::OperatorIdentifier &opid,
          const popart::Op::Settings &settings_,
          const popart::Attributes &attributes_)
      : popart::Op(opid, settings_),
        kind(attributes_.getAttribute<popart::Attributes::String>("kind")),
        attributes(attributes_) {}

  void setup() override {
    if (kind == "exit in setup")
      std::exit(1);
    if (kind == "crash in setup")
      std::abort();
    if (kind == "throw in setup")
      throw popart::error("the shape {} is not for me", inShape(0));
    const auto dtype = attributes.getAttribute<popart::Attributes::String>(
        "out_dtype", inInfo(0).data_type());
    outInfo(0) = popart::TensorInfo(
        dtype, attributes.getAttribute<Ints>("out_shape", inShape(0)));
  }
  std::unique_ptr<popart::Op> clone() const override {
    return std::unique_ptr<popart::Op>(new ProbeOp(*this));
  }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
  bool requiresRandomSeed() const override { return kind == "random"; }
  popart::InIndex getSeedInIndex() const override { return 1; }
  popart::view::Regions modifies(popart::InIndex index) const override {
    if (kind == "update" && index == 0)
      return {popart::view::Region::getFull(inShape(0))};
    return {};
  }
  popart::view::Regions aliases(popart::InIndex index,
                                popart::OutIndex) const override {
    return modifies(index);
  }

  void growAliasModel(popart::AliasModel &model) const override {
    model.insertUnaryModifier0(*this);
  }
  poprithms::memory::inplace::Proposal
  mapInplaceProposal(const popart::AliasModel &model,
                     popart::OperatorIdentifier id) const override {
    return mapInplaceProposalGate0(model, id);
  }
  popart::ReplicatedTensorShardingIndices
  getReplicatedTensorShardingIndices() const override {
    return {{{0}, {0}}};
  }

  std::string kind;
  popart::Attributes attributes;
};

class ProbeOpx : public popart::popx::Opx {
public:
  ProbeOpx(popart::Op *op, popart::popx::Devicex *devicex)
      : popart::popx::Opx(op, devicex) {
    verifyOp<ProbeOp>(op, probe);
  }

  void grow(Sequence &prog) const override {
    setOutTensor(0, result(getOp<ProbeOp>().kind, prog));
  }

private:
  Ints ints() const {
    return getOp<ProbeOp>().attributes.getAttribute<Ints>("ints", {});
  }
  float number(std::size_t i) const {
    return getOp<ProbeOp>()
        .attributes.getAttribute<popart::Attributes::Floats>("floats")
        .at(i);
  }
  std::string path() const {
    return getOp<ProbeOp>().attributes.getAttribute<popart::Attributes::String>(
        "path");
  }
  Tensor in(int i) const { return getInTensor(i); }

  Tensor result(const std::string &kind, Sequence &prog) const {
    using namespace popops::expr;
    if (kind == "unary")
      return popops::map(graph(), UnaryOpType(ints()[0]), in(0), prog);
    if (kind == "binary")
      return popops::map(graph(), BinaryOpType(ints()[0]), in(0), in(1), prog);
    if (kind == "select")
      return popops::select(graph(), in(0), in(1), in(2), prog);
    if (kind == "clamp")
      return popops::clamp(graph(), in(0), in(1), in(2), prog);
    if (kind == "fused")
      return popops::map(graph(), (_1 + 2) * _2 - Const(0.5f), {in(0), in(1)},
                         prog);
    if (kind == "reduce" || kind == "scaled reduce")
      return reduced(kind == "scaled reduce", prog);
    if (kind == "cast")
      return popops::cast(graph(), in(0), popart::popx::popType(outInfo(0)),
                          prog);
    if (kind == "gather")
      return popops::gather(graph(), in(0),
                            in(1).reinterpret(poplar::UNSIGNED_INT),
                            unsigned(ints()[0]), prog, popops::GatherParams());
    if (kind == "dynamic slice")
      return popops::dynamicSlice(graph(), in(0), in(1), {0},
                                  {std::size_t(outShape(0)[0])}, prog);
    if (kind == "update")
      return updated(prog);
    if (kind == "scaled add")
      return scaledAdd(prog);
    if (kind == "matmul")
      return poplin::matMul(graph(), in(0), in(1), prog);
    if (kind == "views")
      return views(prog);
    if (kind == "softmax")
      return popnn::nonLinearity(graph(), popnn::NonLinearityType::SOFTMAX,
                                 in(0), prog);
    if (kind == "random")
      return random(prog);
    if (kind == "loop")
      return loop(prog);
    if (kind == "groupings")
      return groupings();
    return vertexOrMistake(kind, prog);
  }

  Tensor reduced(bool scaled, Sequence &prog) const {
    const auto list = ints();
    const std::vector<std::size_t> dims(list.begin() + 1, list.end());
    popops::ReduceParams params{popops::Operation(list[0])};
    if (scaled)
      params = {popops::Operation(list[0]), false, in(1)};
    return popops::reduce(graph(), in(0), dims, params, prog);
  }

  Tensor updated(Sequence &prog) const {
    popops::multiUpdateAdd(graph(), in(0), in(1).expand({1}),
                           in(2).reinterpret(poplar::UNSIGNED_INT).expand({1}),
                           getConst(poplar::FLOAT, {}, number(0), "scale"), {0},
                           {1}, prog, popops::SlicePlan(),
                           poplar::OptionFlags());
    return in(0);
  }

  Tensor scaledAdd(Sequence &prog) const {
    const Tensor copy = cloneNcopy(prog, in(0));
    popops::scaledAddTo(graph(), copy, number(0), in(1), number(1), prog);
    return copy;
  }

  // [a, b] -> a transpose, a reversal, a slice and a concatenation, reshaped.
  Tensor views(Sequence &prog) const {
    const Tensor both = poplar::concat(in(0).transpose(), in(0).reverse(0), 0);
    const Tensor odd = both.subSample(2, 0).flatten();
    const Tensor out = poplar::concat(odd, in(0).slice(0, 1, 1).flatten());
    return cloneNcopy(prog, out);
  }

  Tensor random(Sequence &prog) const {
    const Tensor seed = in(1);
    switch (ints()[0]) {
    case 0:
      return poprand::dropout(graph(), &seed, 7u, in(0), in(0), 0.75, 1 / 0.75,
                              prog);
    case 1:
      return poprand::normal(graph(), &seed, 7u, in(0), poplar::FLOAT, 2.0, 3.0,
                             prog);
    case 2:
      return poprand::uniform(graph(), &seed, 7u, in(0), poplar::FLOAT, -1.0,
                              3.0, prog);
    default:
      return poprand::truncatedNormal(graph(), &seed, 7u, in(0), poplar::FLOAT,
                                      0.0, 1.0, 2.0, prog);
    }
  }

  // (dimension, size) of each grouping of a [3, 4, 8] variable whose dimensions
  // are shuffled as `ints` says after the number of neighbours on a tile.
  Tensor groupings() const {
    const auto list = ints();
    const Tensor whole = graph().addVariable(poplar::HALF, {3, 4, 8}, "whole");
    poputil::mapTensorLinearly(graph(), whole, unsigned(list[0]), 1);
    const std::vector<unsigned> order(list.begin() + 1, list.end());
    std::vector<int> flat;
    for (const auto &found :
         poputil::detectDimGroupings(graph(), whole.dimShuffle(order)))
      flat.insert(flat.end(), {int(found.first), int(found.second)});
    const Tensor out = graph().addConstant(
        poplar::INT, {flat.size()}, poplar::ArrayRef<int>(flat), "groupings");
    graph().setTileMapping(out, 0);
    return out;
  }

  // Doubles as often as an attribute says.
  Tensor loop(Sequence &prog) const {
    const Tensor copy = cloneNcopy(prog, in(0));
    Sequence body;
    popops::addInPlace(graph(), copy, copy, body);
    prog.add(poplar::program::Repeat(unsigned(ints()[0]), body));
    return copy;
  }

  Tensor vertexOrMistake(const std::string &kind, Sequence &prog) const {
    if (kind == "exit in grow")
      std::exit(3);
    if (kind == "wrong shape")
      return in(0).flatten();
    if (kind == "unmapped") {
      const Tensor scratch =
          graph().addVariable(in(0).elementType(), in(0).shape(), "scratch");
      prog.add(poplar::program::Copy(in(0), scratch));
      return scratch;
    }
    const Tensor out =
        graph().addVariable(poplar::FLOAT, outInfo(0).shape_szt(), "result");
    poputil::mapTensorLinearly(graph(), out);
    graph().addCodelets(path());
    const auto cs = graph().addComputeSet("probe");
    addVertices(kind, cs, out);
    prog.add(poplar::program::Execute(cs));
    return out;
  }

  void addVertices(const std::string &kind, poplar::ComputeSet cs,
                   const Tensor &out) const {
    if (kind == "unknown vertex") {
      graph().addVertex(cs, "RowSum");
    } else if (kind == "overrun") {
      const auto v = graph().addVertex(cs, "Overrun", {{"out", out}});
      graph().setTileMapping(v, 0);
    } else if (kind == "crash" || kind == "exit") {
      const auto v = graph().addVertex(cs, "Ending", {{"out", out}});
      graph().setInitialValue(v, "after", int(ints()[0]));
      graph().setInitialValue(v, "byExit", kind == "exit");
      graph().setTileMapping(v, 0);
    } else {
      const auto v =
          graph().addVertex(cs, "RowSums", {{"rows", in(0)}, {"sums", out}});
      if (kind == "race")
        graph().setTileMapping(
            graph().addVertex(cs, "RowSums", {{"rows", in(0)}, {"sums", out}}),
            1);
      if (kind != "unmapped vertex")
        graph().setTileMapping(v, 0);
    }
  }
};

// Twice its input, whose gradient is passed through by an op of PopART's.
class DoubledOp : public popart::Op {
public:
  using popart::Op::Op;
  void setup() override { outInfo(0) = inInfo(0); }
  std::unique_ptr<popart::Op> clone() const override {
    return std::unique_ptr<popart::Op>(new DoubledOp(*this));
  }
  std::vector<std::unique_ptr<popart::Op>> getGradOps() override {
    std::vector<std::unique_ptr<popart::Op>> ops;
    ops.emplace_back(new popart::IdentityGradOp(settings));
    return ops;
  }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
};

class DoubledOpx : public popart::popx::Opx {
public:
  using popart::popx::Opx::Opx;
  void grow(Sequence &prog) const override {
    setOutTensor(0, popops::add(graph(), getInTensor(0), getInTensor(0), prog,
                                debugContext("doubled")));
  }
};

// |a - b| by vertices, with a gradient by vertices.
class L1DistanceOp : public popart::Op {
public:
  L1DistanceOp(const popart::OperatorIdentifier &opid,
               const popart::Op::Settings &settings_, std::string path_)
      : popart::Op(opid, settings_), path(std::move(path_)) {}
  void setup() override { outInfo(0) = inInfo(0); }
  std::unique_ptr<popart::Op> clone() const override {
    return std::unique_ptr<popart::Op>(new L1DistanceOp(*this));
  }
  std::vector<std::unique_ptr<popart::Op>> getGradOps() override;
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
  std::string path;
};

class L1DistanceGradOp : public popart::Op {
public:
  L1DistanceGradOp(const L1DistanceOp &fwd)
      : popart::Op(l1Grad, fwd.settings), path(fwd.path) {}
  void setup() override {
    outInfo(0) = inInfo(1);
    outInfo(1) = inInfo(2);
  }
  std::unique_ptr<popart::Op> clone() const override {
    return std::unique_ptr<popart::Op>(new L1DistanceGradOp(*this));
  }
  const std::vector<popart::GradInOutMapper> &gradInputInfo() const override {
    static const std::vector<popart::GradInOutMapper> info = {
        {0, 0, popart::GradOpInType::GradOut},
        {1, 0, popart::GradOpInType::In},
        {2, 1, popart::GradOpInType::In}};
    return info;
  }
  const std::map<int, int> &gradOutToNonGradIn() const override {
    static const std::map<int, int> info = {{0, 0}, {1, 1}};
    return info;
  }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }
  std::string path;
};

std::vector<std::unique_ptr<popart::Op>> L1DistanceOp::getGradOps() {
  std::vector<std::unique_ptr<popart::Op>> ops;
  ops.emplace_back(new L1DistanceGradOp(*this));
  return ops;
}

// Cuts a tensor in as many parts as the test IPU has work for.
std::vector<poplar::Interval> parts(std::size_t n) {
  const std::size_t share = (n + 3) / 4;
  std::vector<poplar::Interval> list;
  for (std::size_t begin = 0; begin < n; begin += share)
    list.emplace_back(begin, std::min(begin + share, n));
  return list;
}

class L1DistanceOpx : public popart::popx::Opx {
public:
  L1DistanceOpx(popart::Op *op, popart::popx::Devicex *devicex)
      : popart::popx::Opx(op, devicex) {}
  void grow(Sequence &prog) const override {
    graph().addCodelets(getOp<L1DistanceOp>().path);
    const Tensor a = getInTensor(0), b = getInTensor(1);
    const Tensor out = graph().clone(a, debugContext("distance"));
    const auto cs = graph().addComputeSet("distance");
    const auto name =
        poputil::templateVertex("probe::AbsoluteDifference", a.elementType());
    unsigned tile = 0;
    for (const auto &part : parts(a.numElements())) {
      const auto v = graph().addVertex(cs, name,
                                       {{"a", a.flatten().slice(part)},
                                        {"b", b.flatten().slice(part)},
                                        {"out", out.flatten().slice(part)}});
      graph().setTileMapping(v, tile++);
      graph().setPerfEstimate(v, 12 + 3 * part.size());
    }
    prog.add(poplar::program::Execute(cs));
    setOutTensor(0, out);
  }
};

class L1DistanceGradOpx : public popart::popx::Opx {
public:
  L1DistanceGradOpx(popart::Op *op, popart::popx::Devicex *devicex)
      : popart::popx::Opx(op, devicex) {}
  void grow(Sequence &prog) const override {
    graph().addCodelets(getOp<L1DistanceGradOp>().path);
    const auto cs = graph().addComputeSet("distanceGrad");
    for (int side = 0; side < 2; ++side) {
      const Tensor a = getInTensor(1);
      const Tensor out = graph().clone(a, debugContext("gradient"));
      const auto v = graph().addVertex(
          cs, poputil::templateVertex("SignedGradient", a.elementType()),
          {{"a", a.flatten()},
           {"b", getInTensor(2).flatten()},
           {"gradient", getInTensor(0).flatten()},
           {"out", out.flatten()}});
      graph().setInitialValue(v, "sign", side == 0 ? 1.0f : -1.0f);
      graph().setTileMapping(v, unsigned(side));
      setOutTensor(side, out);
    }
    prog.add(poplar::program::Execute(cs));
  }
};

popart::OpCreator<ProbeOp> probeCreator(
    popart::OpDefinitions({{probe, {}}}),
    [](const popart::OpCreatorInfo &info) {
      return std::unique_ptr<popart::Op>(
          new ProbeOp(info.opid, info.settings, info.attributes));
    },
    true);
popart::OpCreator<DoubledOp>
    doubledCreator(popart::OpDefinitions({{doubled, {}}}), true);
popart::popx::OpxCreator<DoubledOpx> doubledOpxCreator(doubled);
popart::OpCreator<L1DistanceOp> l1Creator(
    popart::OpDefinitions({{l1, {}}}),
    [](const popart::OpCreatorInfo &info) {
      return std::unique_ptr<popart::Op>(new L1DistanceOp(
          info.opid, info.settings,
          info.attributes.getAttribute<popart::Attributes::String>("path")));
    },
    true);
popart::popx::OpxCreator<ProbeOpx> probeOpxCreator(probe);
popart::popx::OpxCreator<L1DistanceOpx> l1OpxCreator(l1);
popart::popx::OpxCreator<L1DistanceGradOpx> l1GradOpxCreator(l1Grad);

} // namespace
