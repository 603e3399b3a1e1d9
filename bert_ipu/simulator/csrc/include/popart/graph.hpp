#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include <popart/graphid.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>
#include <popart/tensors.hpp>
#include <popart/topocons.hpp>

namespace popart {

// Owns ops, tensors and the constraints on their order.
class Graph {
public:
  Graph(Ir &ir, const GraphId &id);
  ~Graph();
  Graph(const Graph &) = delete;

  const std::map<OpId, std::unique_ptr<Op>> &getOps() const { return ops_; }
  std::map<OpId, std::unique_ptr<Op>> &getOps() { return ops_; }
  std::vector<OpId> getOpIds() const;
  Op *getOp(OpId id) const;
  Op *getOpUnsafe(OpId id) const;
  const Tensors &getTensors() const { return *tensors_; }
  Tensors &getTensors() { return *tensors_; }
  Tensor *getTensor(const TensorId &id) { return tensors_->get(id); }
  const Ir &getIr() const { return ir_; }
  Ir &getIr() { return ir_; }
  const TensorId &getLoss() const { return loss_; }
  void setLoss(const TensorId &loss) { loss_ = loss; }

  OpId moveIntoGraph(std::unique_ptr<Op> op);
  template <typename OP, typename... Args> OP *createOp(Args &&...args) {
    auto id =
        moveIntoGraph(std::unique_ptr<Op>(new OP(std::forward<Args>(args)...)));
    return static_cast<OP *>(getOp(id));
  }
  template <typename OP, typename... Args>
  OP *createConnectedOp(const std::map<InIndex, TensorId> &in,
                        const std::map<OutIndex, TensorId> &out,
                        Args &&...args) {
    OP *op = createOp<OP>(std::forward<Args>(args)...);
    connect(op, in, out);
    return op;
  }
  std::map<int, std::unique_ptr<popart::Op>>::iterator eraseOp(OpId id);
  void replaceTensor(const TensorId &oldId, const TensorId &newId);
  // The ops in an order that respects tensors and constraints.
  std::vector<Op *> getOpSchedule() const;

  std::unique_ptr<TopoCons> topoCons;
  const GraphId id;

private:
  void connect(Op *op, const std::map<InIndex, TensorId> &in,
               const std::map<OutIndex, TensorId> &out);

  Ir &ir_;
  std::unique_ptr<Tensors> tensors_;
  std::map<OpId, std::unique_ptr<Op>> ops_;
  TensorId loss_;
};

} // namespace popart
