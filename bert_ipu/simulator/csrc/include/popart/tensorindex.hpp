#pragma once

#include <map>
#include <vector>

#include <popart/names.hpp>
#include <popart/tensorinfo.hpp>

namespace popart {

// The inputs, or the outputs, of an op by index.
class TensorIndexMap {
public:
  void insert(int index, Tensor *tensor);
  void reset(int index, Tensor *tensor) { insert(index, tensor); }
  void erase(int index) { tensors_.erase(index); }
  void clear() { tensors_.clear(); }
  bool contains(Tensor *tensor) const { return !indices(tensor).empty(); }
  Tensor *tensor(int index);
  const Tensor *tensor(int index) const;
  TensorId id(int index) const;
  bool hasIndex(int index) const { return tensors_.count(index) > 0; }
  std::vector<int> indices(Tensor *tensor) const;
  const std::map<int, Tensor *> &tensorMap() const { return tensors_; }
  const std::vector<Tensor *> tensors() const;
  std::map<int, TensorId> tensorIdMap() const;
  int n() const { return static_cast<int>(tensors_.size()); }
  void setInfoIfIndex(const TensorInfo &info, int index);
  int minIndex() const;
  int maxIndex() const;

private:
  std::map<int, Tensor *> tensors_;
};

} // namespace popart
