// popart::Op: connections, infos, defaults.
#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/op.hpp>
#include <popart/opserialiser.hpp>
#include <popart/patterns/pattern.hpp>
#include <popart/tensor.hpp>

#include <algorithm>
#include <ostream>

namespace popart {

bool POpCmp::operator()(const Op *a, const Op *b) const {
  return a->id < b->id;
}

bool PTensorCmp::operator()(const Tensor *a, const Tensor *b) const {
  return a->id < b->id;
}

std::ostream &operator<<(std::ostream &os, const RecomputeType &type) {
  static const char *const names[] = {"Undefined", "Checkpoint", "Recompute",
                                      "Recomputed"};
  return os << names[static_cast<int>(type)];
}

std::ostream &operator<<(std::ostream &os, const ExecutionContext &context) {
  return os << "ExecutionContext" << static_cast<int>(context);
}

std::ostream &operator<<(std::ostream &os, const GradOpInType &type) {
  static const char *const names[] = {"In", "Out", "GradOut"};
  return os << names[static_cast<int>(type)];
}

// TensorIndexMap

void TensorIndexMap::insert(int index, Tensor *tensor) {
  tensors_[index] = tensor;
}

Tensor *TensorIndexMap::tensor(int index) {
  const auto found = tensors_.find(index);
  if (found == tensors_.end())
    throw error("no tensor at index {}", index);
  return found->second;
}

const Tensor *TensorIndexMap::tensor(int index) const {
  return const_cast<TensorIndexMap *>(this)->tensor(index);
}

TensorId TensorIndexMap::id(int index) const { return tensor(index)->id; }

std::vector<int> TensorIndexMap::indices(Tensor *tensor) const {
  std::vector<int> result;
  for (const auto &entry : tensors_)
    if (entry.second == tensor)
      result.push_back(entry.first);
  return result;
}

const std::vector<Tensor *> TensorIndexMap::tensors() const {
  std::vector<Tensor *> result;
  for (const auto &entry : tensors_)
    result.push_back(entry.second);
  return result;
}

std::map<int, TensorId> TensorIndexMap::tensorIdMap() const {
  std::map<int, TensorId> result;
  for (const auto &entry : tensors_)
    result[entry.first] = entry.second->id;
  return result;
}

void TensorIndexMap::setInfoIfIndex(const TensorInfo &info, int index) {
  if (hasIndex(index))
    tensor(index)->info = info;
}

int TensorIndexMap::minIndex() const {
  return tensors_.empty() ? -1 : tensors_.begin()->first;
}

int TensorIndexMap::maxIndex() const {
  return tensors_.empty() ? -1 : tensors_.rbegin()->first;
}

// Op

void Op::Settings::setFromAttributes(const Attributes &attributes) {
  (void)attributes;
}

Ir &Op::Settings::getIr() const { return graph.get().getIr(); }

Op::Op(const OperatorIdentifier &opid_, const Op::Settings &settings_)
    : input(new TensorIndexMap), output(new TensorIndexMap), opid(opid_),
      settings(settings_) {}

// A copy is not connected, and belongs to no graph yet.
Op::Op(const Op &other)
    : Vertex(other), input(new TensorIndexMap), output(new TensorIndexMap),
      opid(other.opid), pruneable(other.pruneable), settings(other.settings) {}

Op::~Op() = default;

Ir &Op::getIr() { return getGraph().getIr(); }
const Ir &Op::getIr() const { return getGraph().getIr(); }

std::string Op::str() const { return logging::format("{} ({})", id, opid); }

std::string Op::debugName() const {
  std::vector<std::string> ins, outs;
  for (const auto &entry : input->tensorIdMap())
    ins.push_back(entry.second);
  for (const auto &entry : output->tensorIdMap())
    outs.push_back(entry.second);
  return logging::format("Op({}, id={}{}, inputs={}, outputs={})", opid, id,
                         name().empty() ? "" : ", name=" + name(), ins, outs);
}

bool Op::isExcludedFromPattern(const Pattern *pattern) const {
  return settings.excludePatterns.count(pattern->getPatternName()) > 0;
}

void Op::inheritPlacementAttributes(bool) {
  for (Tensor *tensor : input->tensors())
    if (tensor->hasProducer()) {
      const Settings &from = tensor->getProducer()->settings;
      settings.vgraphId = from.vgraphId;
      settings.pipelineStage = from.pipelineStage;
      settings.executionPhase = from.executionPhase;
      return;
    }
}

void Op::connectInTensor(InIndex index, TensorId tensorId) {
  Tensor *tensor = getGraph().getTensors().get(tensorId);
  if (input->hasIndex(index))
    disconnectInTensor(index);
  input->insert(index, tensor);
  tensor->consumers.increment(this);
}

void Op::connectOutTensor(OutIndex index, TensorId tensorId) {
  Tensor *tensor = getGraph().getTensors().get(tensorId);
  output->insert(index, tensor);
  tensor->setProducer(this);
}

void Op::createAndConnectOutTensor(OutIndex index, TensorId tensorId) {
  getGraph().getTensors().addActGrad(tensorId);
  connectOutTensor(index, tensorId);
}

void Op::disconnectInTensor(Tensor *tensor) {
  for (int index : input->indices(tensor))
    disconnectInTensor(index, tensor);
}

void Op::disconnectInTensor(InIndex index, Tensor *tensor) {
  tensor->consumers.decrement(this);
  input->erase(index);
}

void Op::disconnectInTensor(InIndex index) {
  disconnectInTensor(index, inTensor(index));
}

void Op::disconnectOutTensor(Tensor *tensor) {
  for (int index : output->indices(tensor)) {
    if (tensor->getProducerUnsafe() == this)
      tensor->resetProducer(nullptr);
    output->erase(index);
  }
}

void Op::disconnectAllInputs() {
  for (const auto &entry : std::map<int, Tensor *>(input->tensorMap()))
    disconnectInTensor(entry.first, entry.second);
}

void Op::disconnectAllOutputs() {
  for (Tensor *tensor : output->tensors())
    disconnectOutTensor(tensor);
}

void Op::setup() { throw error("No setup() for {}", opid); }

std::vector<std::unique_ptr<Op>> Op::getGradOps() { return {}; }

const std::vector<GradInOutMapper> &Op::gradInputInfo() const {
  throw error("{} is used as a gradient but has no gradInputInfo()", opid);
}

const std::map<int, int> &Op::gradOutToNonGradIn() const {
  throw error("{} is used as a gradient but has no gradOutToNonGradIn()", opid);
}

int Op::getNonGradInIndex(int gradOpOutIndex) const {
  return gradOutToNonGradIn().at(gradOpOutIndex);
}

std::unique_ptr<Op> Op::getInplaceVariant(const OperatorIdentifier &) const {
  throw error("{} has no in-place variant", opid);
}

poprithms::memory::inplace::Proposal
Op::mapInplaceProposal(const AliasModel &, OperatorIdentifier) const {
  throw error("{} has no in-place variant", opid);
}

poprithms::memory::inplace::Proposal
Op::mapInplaceProposalGate0(const AliasModel &, OperatorIdentifier) const {
  return poprithms::memory::inplace::Proposal(0);
}

view::Regions Op::modifies(InIndex) const { return {}; }

view::Regions Op::uses(InIndex index) const {
  return {view::Region::getFull(inShape(index))};
}

view::Regions Op::aliases(InIndex, OutIndex) const { return {}; }

view::RegMap Op::fwdRegMap(InIndex, OutIndex out) const {
  const Shape shape = outShape(out);
  return [shape](const view::Region &) {
    return view::Regions{view::Region::getFull(shape)};
  };
}

view::RegMap Op::bwdRegMap(InIndex in, OutIndex) const {
  const Shape shape = inShape(in);
  return [shape](const view::Region &) {
    return view::Regions{view::Region::getFull(shape)};
  };
}

bool Op::modifiesIndex(InIndex index) const {
  for (const auto &region : modifies(index))
    if (!region.isEmpty())
      return true;
  return false;
}

bool Op::hasInput(InIndex index) const { return input->hasIndex(index); }
bool Op::hasOutput(OutIndex index) const { return output->hasIndex(index); }

Tensor *Op::inTensor(InIndex index) {
  if (!hasInput(index))
    throw error("{} has no input at index {}; it has {} inputs", opid, index,
                inTensorCount());
  return input->tensor(index);
}

const Tensor *Op::inTensor(InIndex index) const {
  return const_cast<Op *>(this)->inTensor(index);
}

// An op that is not in a finished graph asks for outputs while it is set up.
Tensor *Op::outTensor(OutIndex index) {
  if (!hasOutput(index))
    throw error("{} has no output at index {}; it has {} outputs", opid, index,
                outTensorCount());
  return output->tensor(index);
}

const Tensor *Op::outTensor(OutIndex index) const {
  return const_cast<Op *>(this)->outTensor(index);
}

TensorId Op::inId(InIndex index) const { return inTensor(index)->id; }
TensorId Op::outId(OutIndex index) const { return outTensor(index)->id; }
TensorInfo &Op::inInfo(InIndex index) { return inTensor(index)->info; }
const TensorInfo &Op::inInfo(InIndex index) const {
  return inTensor(index)->info;
}
TensorInfo &Op::outInfo(OutIndex index) {
  if (!hasOutput(index) && getGraph().getIr().createsOutputsOnDemand())
    createAndConnectOutTensor(index,
                              getGraph().getIr().createIntermediateTensorId(
                                  opid.type + "_out" + std::to_string(index)));
  return outTensor(index)->info;
}
const TensorInfo &Op::outInfo(OutIndex index) const {
  return outTensor(index)->info;
}
const Shape &Op::inShape(InIndex index) const { return inInfo(index).shape(); }
const Shape &Op::outShape(OutIndex index) const {
  return outInfo(index).shape();
}
size_t Op::inTensorCount() const { return static_cast<size_t>(input->n()); }
size_t Op::outTensorCount() const { return static_cast<size_t>(output->n()); }
Rank Op::inRank(InIndex index) const { return inInfo(index).rank(); }
Rank Op::outRank(OutIndex index) const { return outInfo(index).rank(); }

InIndex Op::inIndex(Tensor *tensor) const {
  const auto indices = input->indices(tensor);
  if (indices.empty())
    throw error("{} is not an input of {}", tensor->id, debugName());
  return indices.front();
}

OutIndex Op::outIndex(Tensor *tensor) const {
  const auto indices = output->indices(tensor);
  if (indices.empty())
    throw error("{} is not an output of {}", tensor->id, debugName());
  return indices.front();
}

OpSerialiser::OpSerialiser(const Op *op, std::stringstream &text)
    : text_(text) {
  text_ << op->debugName() << "\n";
}

void OpSerialiser::appendText(const std::string &name,
                              const std::string &value) {
  text_ << "        " << name << ": " << value << "\n";
}

void Op::appendAttributes(OpSerialiserBase &os) const {
  appendOutlineAttributes(os);
}

void Op::appendOutlineAttributes(OpSerialiserBase &) const {}

Shape Op::prettyNpOut(const Shape &s0, const Shape &s1) const {
  return npOut(s0, s1, debugName());
}

TensorInfo Op::prettyNpOut(const TensorInfo &i0, const TensorInfo &i1,
                           bool checkDataType) const {
  return npOut(i0, i1, checkDataType, debugName());
}

bool Op::isParentOf(const Op *other) const {
  for (Tensor *tensor : other->input->tensors())
    if (tensor->getProducerUnsafe() == this)
      return true;
  return false;
}

Op *Op::getPrecedingOp(InIndex index) { return inTensor(index)->getProducer(); }

std::vector<Op *> Op::getFollowingOps(OutIndex index) {
  return outTensor(index)->consumers.getOps();
}

Op *Op::getFollowingOp(OutIndex index) {
  const auto ops = getFollowingOps(index);
  if (ops.size() != 1)
    throw internal_error("{} has {} following ops at output {}", debugName(),
                         ops.size(), index);
  return ops.front();
}

} // namespace popart
