// poplar::Tensor: every operation is arithmetic on an affine view.
#include <algorithm>
#include <numeric>
#include <set>
#include <sstream>

#include "core.hpp"

namespace popemu {

std::string shapeText(const std::vector<std::size_t> &shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::size_t View::size() const {
  return std::accumulate(shape.begin(), shape.end(), std::size_t(1),
                         std::multiplies<std::size_t>());
}

namespace {

[[noreturn]] void fail(const std::string &what, const View &view) {
  throw poplar::graph_construction_error(what + " of a tensor of shape " +
                                         shapeText(view.shape));
}

std::vector<std::int64_t> rowMajor(const std::vector<std::size_t> &shape) {
  std::vector<std::int64_t> strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= static_cast<std::int64_t>(shape[i]);
  }
  return strides;
}

// Appends a run, joined with the last one where they continue each other.
void append(std::vector<Run> &runs, Run run) {
  if (run.count == 0)
    return;
  if (!runs.empty()) {
    Run &last = runs.back();
    const bool same = last.variable == run.variable;
    const std::int64_t gap =
        run.start - (last.start + last.step * std::int64_t(last.count - 1));
    if (same && last.count == 1 && (run.count == 1 || run.step == gap)) {
      last.step = gap;
      last.count += run.count;
      return;
    }
    if (same && gap == last.step && (run.count == 1 || run.step == last.step)) {
      last.count += run.count;
      return;
    }
  }
  runs.push_back(run);
}

// `count` elements of a base, `step` apart.
void appendFromBase(std::vector<Run> &runs, const Base &base,
                    std::int64_t start, std::int64_t step, std::size_t count) {
  if (base.variable) {
    append(runs, {base.variable, start, step, count});
    return;
  }
  std::size_t done = 0;
  while (done < count) {
    const std::int64_t index = start + step * std::int64_t(done);
    const std::size_t piece =
        std::upper_bound(base.begins.begin(), base.begins.end(),
                         static_cast<std::size_t>(index)) -
        base.begins.begin() - 1;
    const Run &run = base.runs[piece];
    const std::int64_t within = index - std::int64_t(base.begins[piece]);
    std::size_t taken = count - done;
    if (step > 0)
      taken = std::min<std::size_t>(
          taken, (std::int64_t(run.count) - within + step - 1) / step);
    else if (step < 0)
      taken = std::min<std::size_t>(taken, within / -step + 1);
    append(runs, {run.variable, run.start + within * run.step, step * run.step,
                  taken});
    done += taken;
  }
}

// Shape and strides without dimensions that continue each other.
void collapse(const View &view, std::vector<std::size_t> &shape,
              std::vector<std::int64_t> &strides) {
  for (std::size_t i = 0; i < view.shape.size(); ++i) {
    if (view.shape[i] == 1)
      continue;
    if (!shape.empty() &&
        strides.back() == view.strides[i] * std::int64_t(view.shape[i])) {
      shape.back() *= view.shape[i];
      strides.back() = view.strides[i];
    } else {
      shape.push_back(view.shape[i]);
      strides.push_back(view.strides[i]);
    }
  }
}

std::shared_ptr<View> copyOf(const View &view) {
  return std::make_shared<View>(view);
}

// A view whose base lists the elements in this view's own order.
std::shared_ptr<View> materialise(const View &view,
                                  std::vector<std::size_t> shape) {
  auto base = std::make_shared<Base>();
  base->runs = runsOf(view);
  std::size_t begin = 0;
  for (const Run &run : base->runs) {
    base->begins.push_back(begin);
    begin += run.count;
  }
  auto result = std::make_shared<View>();
  result->graph = view.graph;
  result->type = view.type;
  result->strides = rowMajor(shape);
  result->shape = std::move(shape);
  result->base = std::move(base);
  return result;
}

// Strides of the same elements under another shape, if affine ones exist.
bool affineReshape(const View &view, const std::vector<std::size_t> &shape,
                   std::vector<std::int64_t> &strides) {
  std::vector<std::size_t> old;
  std::vector<std::int64_t> oldStrides;
  collapse(view, old, oldStrides);
  strides.assign(shape.size(), 0);
  std::size_t dim = shape.size();
  for (std::size_t group = old.size(); group-- > 0;) {
    std::size_t left = old[group];
    std::int64_t stride = oldStrides[group];
    while (left > 1) {
      if (dim == 0)
        return false;
      const std::size_t extent = shape[--dim];
      if (extent == 1)
        continue;
      if (left % extent != 0)
        return false;
      strides[dim] = stride;
      stride *= std::int64_t(extent);
      left /= extent;
    }
  }
  return true;
}

} // namespace

std::vector<Run> runsOf(const View &view) {
  std::vector<Run> runs;
  if (view.size() == 0)
    return runs;
  std::vector<std::size_t> shape;
  std::vector<std::int64_t> strides;
  collapse(view, shape, strides);
  if (shape.empty()) {
    appendFromBase(runs, *view.base, view.offset, 1, 1);
    return runs;
  }
  const std::size_t outer = shape.size() - 1;
  std::vector<std::size_t> index(outer, 0);
  std::int64_t start = view.offset;
  for (;;) {
    appendFromBase(runs, *view.base, start, strides.back(), shape.back());
    std::size_t d = outer;
    for (; d > 0; --d) {
      start += strides[d - 1];
      if (++index[d - 1] < shape[d - 1])
        break;
      start -= strides[d - 1] * std::int64_t(shape[d - 1]);
      index[d - 1] = 0;
    }
    if (d == 0)
      return runs;
  }
}

poplar::Tensor tensorOf(GraphCore &graph, Variable *variable,
                        std::vector<std::size_t> shape) {
  auto base = std::make_shared<Base>();
  base->variable = variable;
  auto view = std::make_shared<View>();
  view->graph = &graph;
  view->type = variable->type;
  view->strides = rowMajor(shape);
  view->shape = std::move(shape);
  view->base = std::move(base);
  return poplar::Tensor(std::move(view));
}

} // namespace popemu

namespace poplar {

using popemu::copyOf;
using popemu::fail;
using popemu::View;

Tensor::Tensor() = default;
Tensor::Tensor(std::shared_ptr<const View> view) : view_(std::move(view)) {}

const View &Tensor::view() const {
  if (!view_)
    throw graph_construction_error("a default-constructed Tensor was used");
  return *view_;
}

Type Tensor::elementType() const { return view().type; }
unsigned Tensor::rank() const { return unsigned(view().shape.size()); }
std::vector<std::size_t> Tensor::shape() const { return view().shape; }
std::size_t Tensor::numElements() const { return view().size(); }

std::size_t Tensor::dim(unsigned i) const {
  if (i >= rank())
    fail("dim(" + std::to_string(i) + ")", view());
  return view().shape[i];
}

bool Tensor::isContiguous() const {
  const auto runs = popemu::runsOf(view());
  return runs.size() <= 1 &&
         (runs.empty() || runs[0].step == 1 || runs[0].count == 1);
}

bool Tensor::containsAliases() const {
  std::set<std::pair<popemu::Variable *, std::int64_t>> seen;
  for (const auto &run : popemu::runsOf(view()))
    for (std::size_t i = 0; i < run.count; ++i)
      if (!seen.emplace(run.variable, run.start + run.step * std::int64_t(i))
               .second)
        return true;
  return false;
}

bool Tensor::containsConstant() const {
  const auto runs = popemu::runsOf(view());
  return std::any_of(runs.begin(), runs.end(),
                     [](const auto &run) { return run.variable->isConstant; });
}

bool Tensor::isParallelWriteable() const {
  return !containsConstant() && !containsAliases();
}

bool Tensor::getConstantValue(float *value) const {
  const auto runs = popemu::runsOf(view());
  if (runs.size() != 1 || runs[0].count != 1 || !runs[0].variable->isConstant)
    return false;
  const auto &variable = *runs[0].variable;
  *value = float(popemu::loadDouble(
      variable.initial.data() + runs[0].start * popemu::sizeOf(variable.type),
      variable.type));
  return true;
}

bool Tensor::intersectsWith(const Tensor &other) const {
  std::set<std::pair<popemu::Variable *, std::int64_t>> mine;
  for (const auto &run : popemu::runsOf(view()))
    for (std::size_t i = 0; i < run.count; ++i)
      mine.emplace(run.variable, run.start + run.step * std::int64_t(i));
  for (const auto &run : popemu::runsOf(other.view()))
    for (std::size_t i = 0; i < run.count; ++i)
      if (mine.count({run.variable, run.start + run.step * std::int64_t(i)}))
        return true;
  return false;
}

std::string Tensor::shapeToString() const {
  return popemu::shapeText(view().shape);
}

std::string Tensor::getDebugStr() const {
  const auto runs = popemu::runsOf(view());
  return runs.empty() ? "" : runs[0].variable->name;
}

Tensor Tensor::operator[](std::size_t i) const {
  if (rank() == 0 || i >= dim(0))
    fail("index " + std::to_string(i), view());
  auto result = copyOf(view());
  result->offset += std::int64_t(i) * result->strides[0];
  result->shape.erase(result->shape.begin());
  result->strides.erase(result->strides.begin());
  return Tensor(std::move(result));
}

Tensor Tensor::slice(std::size_t begin, std::size_t end,
                     unsigned dimension) const {
  if (dimension >= rank() || begin > end || end > dim(dimension))
    fail("slice [" + std::to_string(begin) + ", " + std::to_string(end) +
             ") of dimension " + std::to_string(dimension),
         view());
  auto result = copyOf(view());
  result->offset += std::int64_t(begin) * result->strides[dimension];
  result->shape[dimension] = end - begin;
  return Tensor(std::move(result));
}

Tensor Tensor::slice(ArrayRef<std::size_t> begin,
                     ArrayRef<std::size_t> end) const {
  if (begin.size() != rank() || end.size() != rank())
    fail("slice by " + std::to_string(begin.size()) + " bounds", view());
  Tensor result = *this;
  for (unsigned d = 0; d < rank(); ++d)
    result = result.slice(begin[d], end[d], d);
  return result;
}

std::vector<Tensor> Tensor::slices(ArrayRef<Interval> intervals,
                                   unsigned dimension) const {
  std::vector<Tensor> result;
  for (const Interval &interval : intervals)
    result.push_back(slice(interval, dimension));
  return result;
}

Tensor Tensor::index(ArrayRef<std::size_t> indices) const {
  Tensor result = *this;
  for (std::size_t i : indices)
    result = result[i];
  return result;
}

Tensor Tensor::flatten() const { return reshape({numElements()}); }

Tensor Tensor::flatten(unsigned dimBegin, unsigned dimEnd) const {
  std::size_t n = 1;
  for (unsigned d = dimBegin; d < dimEnd; ++d)
    n *= dim(d);
  return reshapePartial(dimBegin, dimEnd, {n});
}

Tensor Tensor::reshape(ArrayRef<std::size_t> shape) const {
  auto extents = shape.cloneAsVector();
  std::size_t n = 1;
  for (std::size_t extent : extents)
    n *= extent;
  if (n != numElements())
    fail("reshape to " + popemu::shapeText(extents), view());
  std::vector<std::int64_t> strides;
  if (n != 0 && !popemu::affineReshape(view(), extents, strides))
    return Tensor(popemu::materialise(view(), std::move(extents)));
  auto result = copyOf(view());
  result->strides = n ? std::move(strides) : popemu::rowMajor(extents);
  result->shape = std::move(extents);
  return Tensor(std::move(result));
}

Tensor Tensor::reshapePartial(unsigned beginIndex, unsigned endIndex,
                              ArrayRef<std::size_t> newDims) const {
  if (beginIndex > endIndex || endIndex > rank())
    fail("reshapePartial of dimensions " + std::to_string(beginIndex) + " to " +
             std::to_string(endIndex),
         view());
  auto extents = shape();
  extents.erase(extents.begin() + beginIndex, extents.begin() + endIndex);
  extents.insert(extents.begin() + beginIndex, newDims.begin(), newDims.end());
  return reshape(extents);
}

Tensor Tensor::dimShuffle(ArrayRef<unsigned> permutation) const {
  std::vector<unsigned> sorted(permutation.begin(), permutation.end());
  std::sort(sorted.begin(), sorted.end());
  bool valid = sorted.size() == rank();
  for (unsigned d = 0; valid && d < rank(); ++d)
    valid = sorted[d] == d;
  if (!valid)
    fail("dimShuffle by an invalid permutation", view());
  auto result = copyOf(view());
  for (unsigned d = 0; d < rank(); ++d) {
    result->shape[d] = view().shape[permutation[d]];
    result->strides[d] = view().strides[permutation[d]];
  }
  return Tensor(std::move(result));
}

Tensor Tensor::dimShufflePartial(ArrayRef<unsigned> source,
                                 ArrayRef<unsigned> destination) const {
  constexpr unsigned open = ~0u;
  std::vector<unsigned> permutation(rank(), open);
  std::vector<bool> moved(rank(), false);
  if (source.size() != destination.size())
    fail("dimShufflePartial with lists of different lengths", view());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] >= rank() || destination[i] >= rank())
      fail("dimShufflePartial beyond the rank", view());
    permutation[destination[i]] = source[i];
    moved[source[i]] = true;
  }
  unsigned next = 0;
  for (unsigned &entry : permutation) {
    if (entry != open)
      continue;
    while (moved[next])
      ++next;
    entry = next++;
  }
  return dimShuffle(permutation);
}

Tensor Tensor::dimRoll(unsigned dimIdx, unsigned newIdx) const {
  return dimShufflePartial({dimIdx}, {newIdx});
}

Tensor Tensor::transpose() const {
  if (rank() != 2)
    fail("transpose", view());
  return dimShuffle({1, 0});
}

Tensor Tensor::reverse(unsigned dimension) const {
  if (dimension >= rank())
    fail("reverse of dimension " + std::to_string(dimension), view());
  auto result = copyOf(view());
  if (result->shape[dimension] > 0)
    result->offset +=
        result->strides[dimension] * std::int64_t(result->shape[dimension] - 1);
  result->strides[dimension] = -result->strides[dimension];
  return Tensor(std::move(result));
}

Tensor Tensor::expand(ArrayRef<std::size_t> indices) const {
  // Each index names a dimension of the tensor as it is now, before which a
  // dimension of extent 1 is inserted.
  std::vector<std::size_t> sorted(indices.begin(), indices.end());
  std::sort(sorted.rbegin(), sorted.rend());
  auto result = copyOf(view());
  for (std::size_t i : sorted) {
    if (i > rank())
      fail("expand at dimension " + std::to_string(i), view());
    result->shape.insert(result->shape.begin() + i, 1);
    result->strides.insert(result->strides.begin() + i, 0);
  }
  return Tensor(std::move(result));
}

Tensor Tensor::squeeze(ArrayRef<std::size_t> dimensions) const {
  std::vector<std::size_t> sorted(dimensions.begin(), dimensions.end());
  std::sort(sorted.rbegin(), sorted.rend());
  auto result = copyOf(view());
  for (std::size_t d : sorted) {
    if (d >= result->shape.size() || result->shape[d] != 1)
      fail("squeeze of dimension " + std::to_string(d), view());
    result->shape.erase(result->shape.begin() + d);
    result->strides.erase(result->strides.begin() + d);
  }
  return Tensor(std::move(result));
}

Tensor Tensor::subSample(unsigned stride, unsigned dimension) const {
  if (dimension >= rank() || stride == 0)
    fail("subSample of dimension " + std::to_string(dimension), view());
  auto result = copyOf(view());
  result->shape[dimension] = (result->shape[dimension] + stride - 1) / stride;
  result->strides[dimension] *= stride;
  return Tensor(std::move(result));
}

Tensor Tensor::broadcast(unsigned n, unsigned dimension) const {
  if (dimension >= rank())
    fail("broadcast of dimension " + std::to_string(dimension), view());
  auto result = copyOf(view());
  if (result->shape[dimension] == 1) {
    result->shape[dimension] = n;
    result->strides[dimension] = 0;
    return Tensor(std::move(result));
  }
  // Repeats go outside the dimension: insert one, then fold the two.
  auto extents = shape();
  extents[dimension] *= n;
  result->shape.insert(result->shape.begin() + dimension, n);
  result->strides.insert(result->strides.begin() + dimension, 0);
  return Tensor(std::move(result)).reshape(extents);
}

Tensor Tensor::upsample(unsigned scale, unsigned dimension,
                        UpsampleMethod) const {
  if (dimension >= rank())
    fail("upsample of dimension " + std::to_string(dimension), view());
  auto extents = shape();
  extents[dimension] *= scale;
  auto result = copyOf(view());
  result->shape.insert(result->shape.begin() + dimension + 1, scale);
  result->strides.insert(result->strides.begin() + dimension + 1, 0);
  return Tensor(std::move(result)).reshape(extents);
}

Tensor Tensor::reinterpret(const Type &type) const {
  if (popemu::sizeOf(type) != popemu::sizeOf(elementType()))
    throw type_error("cannot reinterpret " + elementType().toString() + " as " +
                     type.toString() + ": the sizes differ");
  auto result = copyOf(view());
  result->type = type;
  return Tensor(std::move(result));
}

std::vector<Interval> Tensor::getContiguousRegions() const {
  std::vector<Interval> regions;
  std::size_t begin = 0;
  for (const auto &run : popemu::runsOf(view())) {
    const std::size_t pieces = run.step == 1 ? 1 : run.count;
    for (std::size_t i = 0; i < pieces; ++i) {
      regions.emplace_back(begin, begin + run.count / pieces);
      begin += run.count / pieces;
    }
  }
  return regions;
}

Tensor concat(ArrayRef<Tensor> tensors, unsigned dimension) {
  if (tensors.empty())
    throw graph_construction_error("concat of no tensors");
  const Tensor &first = tensors.front();
  if (dimension >= first.rank())
    fail("concat along dimension " + std::to_string(dimension), first.view());
  auto extents = first.shape();
  extents[dimension] = 0;
  auto base = std::make_shared<popemu::Base>();
  std::size_t begin = 0;
  for (const Tensor &tensor : tensors) {
    auto rest = tensor.shape();
    bool fits = rest.size() == extents.size() &&
                tensor.elementType() == first.elementType();
    for (std::size_t d = 0; fits && d < rest.size(); ++d)
      fits = d == dimension || rest[d] == extents[d];
    if (!fits)
      fail("concat along dimension " + std::to_string(dimension) + " with " +
               tensor.shapeToString(),
           first.view());
    extents[dimension] += rest[dimension];
    // With the dimension in front, parts simply follow one another.
    for (const auto &run :
         popemu::runsOf(tensor.dimRoll(dimension, 0).view())) {
      base->runs.push_back(run);
      base->begins.push_back(begin);
      begin += run.count;
    }
  }
  std::rotate(extents.begin(), extents.begin() + dimension,
              extents.begin() + dimension + 1);
  auto result = std::make_shared<View>();
  result->graph = first.view().graph;
  result->type = first.elementType();
  result->strides = popemu::rowMajor(extents);
  result->shape = std::move(extents);
  result->base = std::move(base);
  return Tensor(std::move(result)).dimRoll(0, dimension);
}

Tensor concat(const Tensor &first, const Tensor &second, unsigned dimension) {
  return concat(std::vector<Tensor>{first, second}, dimension);
}

std::ostream &operator<<(std::ostream &os, const Tensor &tensor) {
  return os << tensor.getDebugStr() << ": " << tensor.elementType() << " "
            << tensor.shapeToString();
}

} // namespace poplar
