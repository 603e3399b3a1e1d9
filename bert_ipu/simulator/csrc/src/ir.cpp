// Graphs and tensors of PopART.
#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/optimizer.hpp>
#include <popart/tensornames.hpp>

#include <algorithm>
#include <cstring>
#include <functional>

namespace popart {

std::ostream &operator<<(std::ostream &os, const TensorType &type) {
  static const char *const names[] = {"ActGrad", "Const", "Stream", "Unknown",
                                      "Variable"};
  return os << names[static_cast<int>(type)];
}

// Consumers

int Consumers::n(Op *op) const {
  const auto found = counts_.find(op);
  return found == counts_.end() ? 0 : found->second;
}

void Consumers::increment(Op *op) { ++counts_[op]; }

void Consumers::decrement(Op *op) {
  if (--counts_[op] <= 0)
    counts_.erase(op);
}

int Consumers::getTotal() const {
  int total = 0;
  for (const auto &entry : counts_)
    total += entry.second;
  return total;
}

std::vector<Op *> Consumers::getOps() const {
  std::vector<Op *> ops;
  for (const auto &entry : counts_)
    ops.push_back(entry.first);
  return ops;
}

// Tensor

Tensor::Tensor(TensorId id_, TensorType type, Graph &graph)
    : id(std::move(id_)), graph_(graph), type_(type) {}

std::string Tensor::tensor_type() const { return logging::format("{}", type_); }

Op *Tensor::getProducer() const {
  if (!producer_)
    throw error("no producer for tensor {}", id);
  return producer_;
}

void Tensor::setProducer(Op *op) {
  if (producer_)
    throw error("tensor {} is already produced by {}", id,
                producer_->debugName());
  producer_ = op;
}

bool Tensor::isAnchored() const { return getIr().getAnchors().count(id) > 0; }

namespace {

bool hasPrefix(const TensorId &id, const char *prefix) {
  return id.compare(0, std::strlen(prefix), prefix) == 0;
}

} // namespace

bool Tensor::isAccumulatorTensor() const {
  return hasPrefix(id, reservedAcclPrefix()) ||
         hasPrefix(id, reservedAccumPrefix());
}

bool Tensor::isOptimizerStateTensor() const {
  return isAccumulatorTensor() || hasPrefix(id, reservedAccl1Prefix()) ||
         hasPrefix(id, reservedAccl2Prefix()) ||
         hasPrefix(id, reservedStepPrefix());
}

bool Tensor::isOptimizerTensor() const {
  return type_ == TensorType::Stream && !isOptimizerStateTensor();
}

bool Tensor::isWeightTensor() const {
  return type_ == TensorType::Variable && !isOptimizerStateTensor();
}

TensorData *Tensor::tensorData() {
  if (!data_)
    throw error("tensor {} has no data", id);
  return data_.get();
}

const TensorData *Tensor::tensorData() const {
  return const_cast<Tensor *>(this)->tensorData();
}

void Tensor::setTensorDataFromCopyOf(const void *source, std::size_t bytes) {
  data_ = std::make_shared<TensorData>(source, bytes);
}

std::vector<Op *> Tensor::associatedOps() const {
  auto ops = consumers.getOps();
  if (producer_)
    ops.insert(ops.begin(), producer_);
  return ops;
}

bool Tensor::hasVirtualGraphId() const {
  for (Op *op : associatedOps())
    if (op->hasVirtualGraphId())
      return true;
  return false;
}

VGraphId Tensor::getVirtualGraphId() const {
  for (Op *op : associatedOps())
    if (op->hasVirtualGraphId())
      return op->getVirtualGraphId();
  throw error("tensor {} has no virtual graph id", id);
}

Ir &Tensor::getIr() { return graph_.getIr(); }
const Ir &Tensor::getIr() const { return graph_.getIr(); }

// Tensors

Tensor *Tensors::get(TensorId id) const {
  const auto found = tensors_.find(id);
  if (found == tensors_.end())
    throw error("no tensor {} in the graph", id);
  return found->second.get();
}

Tensor *Tensors::insert(const TensorId &id, TensorType type) {
  if (contains(id))
    throw error("tensor {} is already in the graph", id);
  auto tensor = std::unique_ptr<Tensor>(new Tensor(id, type, graph_));
  Tensor *result = tensor.get();
  tensors_[id] = std::move(tensor);
  return result;
}

void Tensors::remove(TensorId id) {
  const Tensor *tensor = get(id);
  if (tensor->hasProducer() || tensor->consumers.getTotal() > 0)
    throw error("tensor {} is removed while ops still use it ({})", id,
                tensor->associatedOps().front()->debugName());
  tensors_.erase(id);
}

void Tensors::addVarInit(const TensorId &id, const TensorInfo &info,
                         const void *data) {
  Tensor *tensor = insert(id, TensorType::Variable);
  tensor->info = info;
  if (data)
    tensor->setTensorDataFromCopyOf(data, static_cast<size_t>(info.nbytes()));
}

void Tensors::addConstInit(const TensorId &id, const TensorInfo &info,
                           const void *data) {
  Tensor *tensor = insert(id, TensorType::Const);
  tensor->info = info;
  if (data)
    tensor->setTensorDataFromCopyOf(data, static_cast<size_t>(info.nbytes()));
}

void Tensors::addStream(TensorId id, const TensorInfo &info) {
  insert(id, TensorType::Stream)->info = info;
}

void Tensors::addActGrad(TensorId id) { insert(id, TensorType::ActGrad); }

std::vector<Tensor *> Tensors::getAll() const {
  std::vector<Tensor *> result;
  for (const auto &entry : tensors_)
    result.push_back(entry.second.get());
  return result;
}

std::vector<Tensor *> Tensors::getOfType(TensorType type) const {
  std::vector<Tensor *> result;
  for (const auto &entry : tensors_)
    if (entry.second->tensorType() == type)
      result.push_back(entry.second.get());
  return result;
}

std::vector<TensorId> Tensors::getIds(TensorType type) const {
  std::vector<TensorId> ids;
  for (const Tensor *tensor : getOfType(type))
    ids.push_back(tensor->id);
  return ids;
}

std::vector<TensorId> Tensors::getAllTensorIds() const {
  std::vector<TensorId> ids;
  for (const auto &entry : tensors_)
    ids.push_back(entry.first);
  return ids;
}

std::vector<TensorId> Tensors::getNoProducerIds() const {
  std::vector<TensorId> ids;
  for (const auto &entry : tensors_)
    if (!entry.second->hasProducer())
      ids.push_back(entry.first);
  return ids;
}

// TopoCons

namespace {

using Constraints = std::map<Op *, std::set<TopoOp>, POpCmp>;

void eraseFrom(Constraints &constraints, Op *key, Op *value) {
  const auto found = constraints.find(key);
  if (found == constraints.end())
    return;
  found->second.erase(TopoOp(value));
  if (found->second.empty())
    constraints.erase(found);
}

std::vector<Op *> opsOf(const Constraints &constraints, Op *key,
                        bool onlyTied) {
  std::vector<Op *> ops;
  const auto found = constraints.find(key);
  if (found != constraints.end())
    for (const TopoOp &entry : found->second)
      if (entry.tied || !onlyTied)
        ops.push_back(entry.op);
  return ops;
}

bool isTied(const Constraints &constraints, Op *key, Op *value) {
  const auto tied = opsOf(constraints, key, true);
  return std::find(tied.begin(), tied.end(), value) != tied.end();
}

} // namespace

void TopoCons::insert(Op *before, Op *after, bool tied) {
  tied = tied || isTied(afters_, before, after);
  afters_[before].erase(TopoOp(after));
  befores_[after].erase(TopoOp(before));
  afters_[before].insert(TopoOp(after, tied));
  befores_[after].insert(TopoOp(before, tied));
}

void TopoCons::remove(Op *before, Op *after) {
  eraseFrom(afters_, before, after);
  eraseFrom(befores_, after, before);
}

void TopoCons::remove(Op *op) {
  for (Op *after : getAfters(op))
    remove(op, after);
  for (Op *before : getBefores(op))
    remove(before, op);
}

void TopoCons::transfer(Op *from, Op *to, bool removeOld) {
  for (Op *after : getAfters(from))
    if (after != to)
      insert(to, after, isTied(afters_, from, after));
  for (Op *before : getBefores(from))
    if (before != to)
      insert(before, to, isTied(befores_, from, before));
  if (removeOld)
    remove(from);
}

bool TopoCons::hasConstraint(Op *op) {
  return afters_.count(op) > 0 || befores_.count(op) > 0;
}

bool TopoCons::contains(Op *before, Op *after) const {
  const auto afters = getAfters(before);
  return std::find(afters.begin(), afters.end(), after) != afters.end();
}

std::vector<Op *> TopoCons::getAfters(Op *before) const {
  return opsOf(afters_, before, false);
}
std::vector<Op *> TopoCons::getBefores(Op *after) const {
  return opsOf(befores_, after, false);
}
std::vector<Op *> TopoCons::getTiedAfters(Op *before) const {
  return opsOf(afters_, before, true);
}
std::vector<Op *> TopoCons::getTiedBefores(Op *after) const {
  return opsOf(befores_, after, true);
}

// Graph

const GraphId &GraphId::root() {
  static const GraphId id("");
  return id;
}

Graph::Graph(Ir &ir, const GraphId &id_)
    : topoCons(new TopoCons), id(id_), ir_(ir), tensors_(new Tensors(*this)) {}

Graph::~Graph() = default;

std::vector<OpId> Graph::getOpIds() const {
  std::vector<OpId> ids;
  for (const auto &entry : ops_)
    ids.push_back(entry.first);
  return ids;
}

Op *Graph::getOpUnsafe(OpId opId) const {
  const auto found = ops_.find(opId);
  return found == ops_.end() ? nullptr : found->second.get();
}

Op *Graph::getOp(OpId opId) const {
  Op *op = getOpUnsafe(opId);
  if (!op)
    throw error("no op {} in the graph", opId);
  return op;
}

OpId Graph::moveIntoGraph(std::unique_ptr<Op> op) {
  op->settings.graph = *this;
  op->id = ir_.getAndIncrOpsCounter();
  const OpId opId = op->id;
  ops_[opId] = std::move(op);
  return opId;
}

std::map<int, std::unique_ptr<popart::Op>>::iterator Graph::eraseOp(OpId opId) {
  Op *op = getOp(opId);
  topoCons->remove(op);
  op->disconnectAllInputs();
  op->disconnectAllOutputs();
  return ops_.erase(ops_.find(opId));
}

void Graph::replaceTensor(const TensorId &oldId, const TensorId &newId) {
  for (Op *consumer : tensors_->get(oldId)->consumers.getOps())
    for (int index : consumer->input->indices(tensors_->get(oldId))) {
      consumer->disconnectInTensor(index);
      consumer->connectInTensor(index, newId);
    }
}

void Graph::connect(Op *op, const std::map<InIndex, TensorId> &in,
                    const std::map<OutIndex, TensorId> &out) {
  for (const auto &entry : in)
    op->connectInTensor(entry.first, entry.second);
  for (const auto &entry : out) {
    if (!tensors_->contains(entry.second)) {
      op->createAndConnectOutTensor(entry.first, entry.second);
      continue;
    }
    Tensor *tensor = tensors_->get(entry.second);
    if (tensor->hasProducer())
      tensor->getProducer()->disconnectOutTensor(tensor);
    op->connectOutTensor(entry.first, entry.second);
  }
  op->setup();
}

// Depth first by op id, so that the order is the same in every run. Tied ops
// are visited directly after what they are tied to.
std::vector<Op *> Graph::getOpSchedule() const {
  std::vector<Op *> order;
  std::map<OpId, int> state; // 1 on the path, 2 done
  const std::function<void(Op *)> visit = [&](Op *op) {
    if (state[op->id] == 2)
      return;
    if (state[op->id] == 1)
      throw error("the graph has a cycle through {}", op->debugName());
    state[op->id] = 1;
    for (Tensor *tensor : op->input->tensors())
      if (tensor->hasProducer())
        visit(tensor->getProducer());
    for (Op *before : topoCons->getBefores(op))
      visit(before);
    state[op->id] = 2;
    order.push_back(op);
    for (Op *tied : topoCons->getTiedAfters(op))
      if (state[tied->id] == 0)
        visit(tied);
  };
  for (const auto &entry : ops_)
    visit(entry.second.get());
  return order;
}

// Ir

Ir::Ir() : graph_(new Graph(*this, GraphId::root())) {}
Ir::~Ir() = default;

void Ir::setPhase(bool constructedBackwards, bool decomposedOptimizers) {
  constructedBackwards_ = constructedBackwards;
  decomposedOptimizers_ = decomposedOptimizers;
}

const Optimizer &Ir::getOptimizer() const {
  if (!optimizer_)
    throw error("the graph has no optimizer");
  return *optimizer_;
}

void Ir::setOptimizer(std::shared_ptr<Optimizer> optimizer) {
  optimizer_ = std::move(optimizer);
}

TensorId Ir::createIntermediateTensorId(const TensorId &base) {
  return base + "__t" + std::to_string(nextTensor_++);
}

} // namespace popart
