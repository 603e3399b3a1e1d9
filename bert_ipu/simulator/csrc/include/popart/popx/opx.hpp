#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <poplar/Graph.hpp>
#include <poplar/OptionFlags.hpp>
#include <poplar/Program.hpp>
#include <poplar/Tensor.hpp>
#include <popops/ExprOp.hpp>

#include <popart/error.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/popx/inputcreatortype.hpp>
#include <popart/region.hpp>

// Which SDK's declarations to offer where two cannot coexist, as 100 * major +
// 10 * minor. Sources written for SDK 1 are compiled with -DPOPEMU_SDK=100.
#ifndef POPEMU_SDK
#define POPEMU_SDK 330
#endif

namespace popart {

class Tensor;
class TensorInfo;

namespace popx {

class Devicex;
class Opx;

#if POPEMU_SDK < 200
using MustExist = std::vector<TensorId>;
#else
using MustExist = std::set<TensorId>;
#endif

// The implementation of an op: grow() records its program.
class Opx {
public:
  Opx(Op *op, Devicex *devicex);
  virtual ~Opx();

  virtual void grow(poplar::program::Sequence &prog) const;

  // Layout; asked only for tensors an op creates itself.
  virtual poplar::Tensor createInput(InIndex index,
                                     const poplar::DebugNameAndId &dnai) const;
  virtual poplar::Tensor createInput(int index, const std::string &name) const;
  virtual InputCreatorType getInputCreatorType(InIndex) const {
    return InputCreatorType::Deadend;
  }
  virtual bool canUnwind(InIndex, OutIndex) const { return false; }
  virtual view::RegMap unwindRegion(InIndex, OutIndex) const;
  virtual poplar::Tensor unwindTensorLayout(poplar::Tensor tensor, InIndex,
                                            OutIndex) const;
  virtual bool createsEquiv(int index0, const Opx *opx1, int index1) const;
  virtual bool outputCreatedExternally(OutIndex) const { return false; }
  virtual MustExist mustExistBeforeCreate(int) const { return {}; }

  poplar::Graph &graph() const;
  poplar::Graph &topLevelGraph() const { return graph(); }
  poplar::Graph &inGraph(InIndex) const { return graph(); }
  poplar::Graph &outGraph(OutIndex) const { return graph(); }
  poplar::Graph &srcGraph(InIndex) const { return graph(); }
  poplar::Graph &dstGraph(OutIndex) const { return graph(); }
  const Devicex *getDevicex() const { return dv_p; }
  int64_t getVirtualGraphId() const;

  const poplar::Tensor &get(TensorId id) const;
  const poplar::Tensor &getView(TensorId id) const { return get(id); }
  void insert(TensorId id, const poplar::Tensor &tensor) const;
  const poplar::Tensor &getInTensor(InIndex index) const;
  const poplar::Tensor &getOutTensor(OutIndex index) const;
  const poplar::Tensor &getInView(InIndex index) const {
    return getInTensor(index);
  }
  const poplar::Tensor &getOutView(OutIndex index) const {
    return getOutTensor(index);
  }
  // Throws unless shape and type are those of the op's outInfo.
  void setOutTensor(OutIndex index, const poplar::Tensor &tensor) const;
  Tensor *inTensor(InIndex index) const;
  Tensor *outTensor(OutIndex index) const;
  const TensorInfo &inInfo(InIndex index) const;
  const Shape &inShape(InIndex index) const;
  const std::vector<size_t> inShapeSzt(InIndex index) const;
  const TensorInfo &outInfo(OutIndex index) const;
  const Shape &outShape(OutIndex index) const;
  bool hasInput(InIndex index) const;
  bool hasOutput(OutIndex index) const;
  TensorId inId(InIndex index) const;
  TensorId outId(OutIndex index) const;

  poplar::Tensor cloneNcopy(poplar::program::Sequence &prog, TensorId id) const;
  poplar::Tensor cloneNcopy(poplar::program::Sequence &prog,
                            const poplar::Tensor &tensor,
                            const std::string name = "") const;
  poplar::Tensor broadcast(const std::vector<int64_t> &shape,
                           TensorId id) const;
  poplar::Tensor broadcast(const std::vector<int64_t> &shape,
                           poplar::Tensor tensor) const;
  poplar::Tensor getConst(const poplar::Type &type,
                          const std::vector<size_t> &shape, double val,
                          const std::string &name) const;
  poplar::Tensor getScalarVariable(const poplar::Type &type,
                                   const std::string &name) const;
  poplar::Tensor getZerosTensor(std::vector<std::size_t> shape,
                                poplar::Type type, std::string name) const;

  const poplar::DebugNameAndId getDebugNameAndId(
      const std::string name = "",
      poplar::SourceLocation loc = poplar::SourceLocation::Current()) const;
  poplar::DebugContext debugContext(
      const std::string name = "",
      poplar::SourceLocation loc = poplar::SourceLocation::Current()) const;
  std::string debugPrefix(const std::string &name = "") const;

  template <class OP> OP &getOp() const {
    OP *op = dynamic_cast<OP *>(op_p);
    if (op == nullptr)
      throw error("the op of this Opx, {}, is of another class", op_p->opid);
    return *op;
  }
  template <class OP> void verifyOp(Op *op, const OperatorIdentifier &opid) {
    if (op->opid.domain != opid.domain || op->opid.type != opid.type)
      throw error("an Opx of {} was given {}", opid, op->opid);
  }
  template <class OP>
  void verifyOp(Op *op, std::vector<OperatorIdentifier> opids) {
    for (const auto &opid : opids)
      if (op->opid == opid)
        return;
    throw error("an Opx of {} was given {}", opids, op->opid);
  }
  template <class OP> void verifyOp(Op *op) {
    if (!op->isConvertibleTo<OP>())
      throw error("an Opx was given {}, an op of another class", op->opid);
  }

  double inputCreatorPriority{0.0};
  Op *op_p;

protected:
  Devicex *dv_p;
};

} // namespace popx
} // namespace popart
