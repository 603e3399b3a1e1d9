#pragma once

#include <cstddef>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include <poplar/ArrayRef.hpp>
#include <poplar/DebugContext.hpp>
#include <poplar/Interval.hpp>
#include <poplar/Type.hpp>

namespace popemu {
struct View;
}

namespace poplar {

enum class UpsampleMethod { REPEAT };

// A view of elements of a graph's variables. Copying it, slicing it or
// reshaping it copies no element.
class Tensor {
public:
  Tensor();
  // Wraps a view of the emulation; not part of the SDK.
  explicit Tensor(std::shared_ptr<const popemu::View> view);

  bool valid() const { return view_ != nullptr; }
  Type elementType() const;
  unsigned rank() const;
  std::size_t dim(unsigned i) const;
  std::vector<std::size_t> shape() const;
  std::size_t numElements() const;
  bool isContiguous() const;
  bool containsAliases() const;
  bool containsConstant() const;
  bool isParallelWriteable() const;
  bool getConstantValue(float *value) const;
  bool intersectsWith(const Tensor &other) const;
  std::string shapeToString() const;
  std::string getDebugStr() const;

  Tensor operator[](std::size_t i) const;
  Tensor slice(std::size_t begin, std::size_t end, unsigned dimension) const;
  Tensor slice(std::size_t begin, std::size_t end) const {
    return slice(begin, end, 0);
  }
  Tensor slice(const Interval &region, unsigned dimension = 0) const {
    return slice(region.begin(), region.end(), dimension);
  }
  Tensor slice(ArrayRef<std::size_t> begin, ArrayRef<std::size_t> end) const;
  std::vector<Tensor> slices(ArrayRef<Interval> intervals,
                             unsigned dimension = 0) const;
  Tensor index(ArrayRef<std::size_t> indices) const;
  Tensor flatten() const;
  Tensor flatten(unsigned dimBegin, unsigned dimEnd) const;
  Tensor reshape(ArrayRef<std::size_t> shape) const;
  Tensor reshapePartial(unsigned beginIndex, unsigned endIndex,
                        ArrayRef<std::size_t> newDims) const;
  Tensor dimShuffle(ArrayRef<unsigned> permutation) const;
  Tensor dimShufflePartial(ArrayRef<unsigned> source,
                           ArrayRef<unsigned> destination) const;
  Tensor dimRoll(unsigned dimIdx, unsigned newIdx = 0) const;
  Tensor transpose() const;
  Tensor reverse(unsigned dimension) const;
  Tensor expand(ArrayRef<std::size_t> indices) const;
  Tensor squeeze(ArrayRef<std::size_t> dimensions) const;
  Tensor subSample(unsigned stride, unsigned dimension) const;
  Tensor broadcast(unsigned n, unsigned dimension) const;
  Tensor upsample(unsigned scale, unsigned dimension,
                  UpsampleMethod method = UpsampleMethod::REPEAT) const;
  Tensor reinterpret(const Type &type) const;
  std::vector<Interval> getContiguousRegions() const;

  const popemu::View &view() const;
  const std::shared_ptr<const popemu::View> &sharedView() const {
    return view_;
  }

private:
  std::shared_ptr<const popemu::View> view_;
};

Tensor concat(ArrayRef<Tensor> tensors, unsigned dimension = 0);
Tensor concat(const Tensor &first, const Tensor &second,
              unsigned dimension = 0);
std::ostream &operator<<(std::ostream &os, const Tensor &tensor);

} // namespace poplar
