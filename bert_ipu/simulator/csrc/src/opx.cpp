// Opx: what an implementation sees of its op and of the device.
#include <popart/ir.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/tensor.hpp>

#include <poputil/Broadcast.hpp>
#include <poputil/TileMapping.hpp>

namespace popart {
namespace popx {

poplar::Type popType(DataType type) {
  switch (type) {
  case DataType::FLOAT:
  case DataType::DOUBLE:
    return poplar::FLOAT;
  case DataType::FLOAT16:
    return poplar::HALF;
  case DataType::INT32:
  case DataType::INT64:
    return poplar::INT;
  case DataType::UINT32:
  case DataType::UINT64:
    return poplar::UNSIGNED_INT;
  case DataType::INT16:
    return poplar::SHORT;
  case DataType::UINT16:
    return poplar::UNSIGNED_SHORT;
  case DataType::INT8:
    return poplar::SIGNED_CHAR;
  case DataType::UINT8:
    return poplar::UNSIGNED_CHAR;
  case DataType::BOOL:
    return poplar::BOOL;
  default:
    throw error("data type {} has no type on the device", type);
  }
}

poplar::Type popType(const TensorInfo &info) {
  return popType(info.dataType());
}

const poplar::Tensor &Devicex::get(const TensorId &id) const {
  const auto found = tensors_.find(id);
  if (found == tensors_.end())
    throw error("no poplar tensor for {}: it is not an input of the op, or was "
                "not created yet",
                id);
  return found->second;
}

void Devicex::insert(const TensorId &id, const poplar::Tensor &tensor) {
  tensors_[id] = tensor;
}

Opx::Opx(Op *op, Devicex *devicex) : op_p(op), dv_p(devicex) {}
Opx::~Opx() = default;

void Opx::grow(poplar::program::Sequence &) const {
  throw error("the Opx of {} has no grow()", op_p->opid);
}

poplar::Tensor Opx::createInput(InIndex index,
                                const poplar::DebugNameAndId &dnai) const {
  return createInput(index, dnai.getPathName());
}

poplar::Tensor Opx::createInput(int index, const std::string &) const {
  throw error("the Opx of {} cannot create input {}", op_p->opid, index);
}

view::RegMap Opx::unwindRegion(InIndex, OutIndex) const {
  throw error("the Opx of {} cannot unwind a region", op_p->opid);
}

poplar::Tensor Opx::unwindTensorLayout(poplar::Tensor, InIndex,
                                       OutIndex) const {
  throw error("the Opx of {} cannot unwind a layout", op_p->opid);
}

bool Opx::createsEquiv(int, const Opx *, int) const { return false; }

poplar::Graph &Opx::graph() const { return dv_p->graph(); }

int64_t Opx::getVirtualGraphId() const {
  return op_p->hasVirtualGraphId() ? op_p->getVirtualGraphId() : -1;
}

const poplar::Tensor &Opx::get(TensorId id) const { return dv_p->get(id); }

void Opx::insert(TensorId id, const poplar::Tensor &tensor) const {
  for (const auto &entry : op_p->output->tensorMap())
    if (entry.second->id == id)
      return setOutTensor(entry.first, tensor);
  dv_p->insert(id, tensor);
}

const poplar::Tensor &Opx::getInTensor(InIndex index) const {
  return dv_p->get(inId(index));
}

const poplar::Tensor &Opx::getOutTensor(OutIndex index) const {
  return dv_p->get(outId(index));
}

void Opx::setOutTensor(OutIndex index, const poplar::Tensor &tensor) const {
  const TensorInfo &info = outInfo(index);
  if (tensor.shape() != info.shape_szt())
    throw error("grow() of {} sets output {} to a tensor of shape {}, but "
                "setup() said {}",
                op_p->debugName(), index, tensor.shape(), info.shape());
  if (tensor.elementType() != popType(info))
    throw error("grow() of {} sets output {} to a tensor of type {}, but "
                "setup() said {}",
                op_p->debugName(), index, tensor.elementType(), popType(info));
  dv_p->insert(outId(index), tensor);
}

Tensor *Opx::inTensor(InIndex index) const { return op_p->inTensor(index); }
Tensor *Opx::outTensor(OutIndex index) const { return op_p->outTensor(index); }
const TensorInfo &Opx::inInfo(InIndex index) const {
  return inTensor(index)->info;
}
const Shape &Opx::inShape(InIndex index) const { return inInfo(index).shape(); }
const std::vector<size_t> Opx::inShapeSzt(InIndex index) const {
  return inInfo(index).shape_szt();
}
const TensorInfo &Opx::outInfo(OutIndex index) const {
  return outTensor(index)->info;
}
const Shape &Opx::outShape(OutIndex index) const {
  return outInfo(index).shape();
}
bool Opx::hasInput(InIndex index) const { return op_p->hasInput(index); }
bool Opx::hasOutput(OutIndex index) const { return op_p->hasOutput(index); }
TensorId Opx::inId(InIndex index) const { return op_p->inId(index); }
TensorId Opx::outId(OutIndex index) const { return op_p->outId(index); }

poplar::Tensor Opx::cloneNcopy(poplar::program::Sequence &prog,
                               TensorId id) const {
  return cloneNcopy(prog, get(id));
}

poplar::Tensor Opx::cloneNcopy(poplar::program::Sequence &prog,
                               const poplar::Tensor &tensor,
                               const std::string name) const {
  auto copy = graph().clone(tensor, debugContext(name + "[cloned]"));
  prog.add(poplar::program::Copy(tensor, copy, false, debugContext(name)));
  return copy;
}

poplar::Tensor Opx::broadcast(const std::vector<int64_t> &shape,
                              TensorId id) const {
  return broadcast(shape, get(id));
}

poplar::Tensor Opx::broadcast(const std::vector<int64_t> &shape,
                              poplar::Tensor tensor) const {
  poputil::broadcastToMatch(
      tensor, std::vector<std::size_t>(shape.begin(), shape.end()));
  return tensor;
}

poplar::Tensor Opx::getConst(const poplar::Type &type,
                             const std::vector<size_t> &shape, double val,
                             const std::string &name) const {
  auto tensor = graph().addConstant(type, shape, val, debugContext(name));
  graph().setTileMapping(tensor, 0);
  return tensor;
}

poplar::Tensor Opx::getScalarVariable(const poplar::Type &type,
                                      const std::string &name) const {
  auto tensor = graph().addVariable(type, {}, debugContext(name));
  graph().setTileMapping(tensor, 0);
  return tensor;
}

poplar::Tensor Opx::getZerosTensor(std::vector<std::size_t> shape,
                                   poplar::Type type, std::string name) const {
  auto tensor = graph().addConstant(type, shape, 0, debugContext(name));
  poputil::mapTensorLinearly(graph(), tensor);
  return tensor;
}

const poplar::DebugNameAndId
Opx::getDebugNameAndId(const std::string name, poplar::SourceLocation) const {
  return poplar::DebugNameAndId(debugPrefix(name));
}

poplar::DebugContext Opx::debugContext(const std::string name,
                                       poplar::SourceLocation loc) const {
  return poplar::DebugContext(debugPrefix(name), loc);
}

std::string Opx::debugPrefix(const std::string &name) const {
  const std::string base =
      op_p->name().empty() ? logging::format("{}", op_p->opid) : op_p->name();
  return name.empty() ? base : base + "/" + name;
}

} // namespace popx
} // namespace popart
