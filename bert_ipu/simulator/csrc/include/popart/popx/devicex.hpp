#pragma once

#include <map>
#include <string>

#include <popart/names.hpp>
#include <popart/popx/opx.hpp>
#include <popart/tensorinfo.hpp>
#include <poplar/Graph.hpp>
#include <poplar/Type.hpp>

namespace popart {

class Ir;

namespace popx {

poplar::Type popType(DataType type);
poplar::Type popType(const TensorInfo &info);

// The poplar tensors of the op that is being lowered. It outlives the Opx, and
// belongs to whoever lowers.
class Devicex {
public:
  Devicex(const Ir &ir, poplar::Graph &graph) : ir_(ir), graph_(graph) {}

  const Ir &ir() const { return ir_; }
  poplar::Graph &graph() const { return graph_; }
  const poplar::Tensor &get(const TensorId &id) const;
  void insert(const TensorId &id, const poplar::Tensor &tensor);
  bool contains(const TensorId &id) const { return tensors_.count(id) > 0; }

private:
  const Ir &ir_;
  poplar::Graph &graph_;
  std::map<TensorId, poplar::Tensor> tensors_;
};

} // namespace popx
} // namespace popart
