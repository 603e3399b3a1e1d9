#pragma once

#include <map>
#include <memory>
#include <vector>

#include <popart/tensor.hpp>

namespace popart {

// Owns the tensors of a graph.
class Tensors {
public:
  explicit Tensors(Graph &graph) : graph_(graph) {}

  Tensor *get(TensorId id) const;
  void remove(TensorId id);
  bool contains(TensorId id) const { return tensors_.count(id) > 0; }
  std::size_t n() const { return tensors_.size(); }
  void addVarInit(const TensorId &id, const TensorInfo &info, const void *data);
  void addConstInit(const TensorId &id, const TensorInfo &info,
                    const void *data);
  void addStream(TensorId id, const TensorInfo &info);
  void addActGrad(TensorId id);
  std::vector<TensorId> getIds(TensorType type) const;
  std::vector<Tensor *> getAll() const;
  std::vector<Tensor *> getOfType(TensorType type) const;
  std::vector<TensorId> getAllTensorIds() const;
  std::vector<TensorId> getNoProducerIds() const;

private:
  Tensor *insert(const TensorId &id, TensorType type);

  std::map<TensorId, std::unique_ptr<Tensor>> tensors_;
  Graph &graph_;
};

} // namespace popart
