#pragma once

#include <iosfwd>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <popart/names.hpp>
#include <popart/tensordata.hpp>
#include <popart/tensorinfo.hpp>
#include <popart/vertex.hpp>

namespace popart {

class Graph;
class Ir;

enum class TensorType { ActGrad = 0, Const, Stream, Unknown, Variable, N };
std::ostream &operator<<(std::ostream &os, const TensorType &type);

// The ops that read a tensor, in order of their ids, and how often.
class Consumers {
public:
  int n(Op *op) const;
  void increment(Op *op);
  void decrement(Op *op);
  int getTotal() const;
  const std::map<Op *, int, POpCmp> &getMap() const { return counts_; }
  std::vector<Op *> getOps() const;

private:
  std::map<Op *, int, POpCmp> counts_;
};

class Tensor : public Vertex {
public:
  Tensor(TensorId id_, TensorType type, Graph &graph);

  TensorId id;
  std::string str() const final { return id; }
  TensorType tensorType() const { return type_; }
  std::string tensor_type() const;
  void setTensorType(TensorType type) { type_ = type; }

  Consumers consumers;
  TensorInfo info;

  Op *getProducerUnsafe() const { return producer_; }
  Op *getProducer() const;
  void setProducer(Op *op);
  void resetProducer(Op *op) { producer_ = op; }
  bool hasProducer() const { return producer_ != nullptr; }
  bool isAnchored() const;
  bool isWeightTensor() const;
  bool isAccumulatorTensor() const;
  bool isOptimizerTensor() const;
  bool isOptimizerStateTensor() const;
  bool hasTensorData() const { return data_ != nullptr; }
  TensorData *tensorData();
  const TensorData *tensorData() const;
  void setTensorDataFromCopyOf(const void *source, std::size_t bytes);
  std::vector<Op *> associatedOps() const;
  bool hasVirtualGraphId() const;
  VGraphId getVirtualGraphId() const;

  Graph &getGraph() { return graph_; }
  const Graph &getGraph() const { return graph_; }
  Ir &getIr();
  const Ir &getIr() const;

private:
  Graph &graph_;
  Op *producer_ = nullptr;
  TensorType type_;
  std::shared_ptr<TensorData> data_;
};

} // namespace popart
