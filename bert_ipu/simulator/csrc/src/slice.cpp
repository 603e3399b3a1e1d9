// Slices whose place is known only at run time: dynamicSlice, multiSlice,
// multiUpdate and multiUpdateAdd, gather.
#include <popops/DynamicSlice.hpp>
#include <popops/Gather.hpp>
#include <poputil/exceptions.hpp>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core.hpp"
#include "cost.hpp"

namespace popemu {
namespace {

using poplar::Tensor;

// The table as rows of `width` elements, sliced dimension in front.
struct Rows {
  Tensor table;
  std::size_t count, width;
};

Rows rowsOf(const Tensor &t, std::size_t dim) {
  const Tensor front = t.dimRoll(unsigned(dim), 0);
  const std::size_t count = t.dim(unsigned(dim));
  const std::size_t width = count ? t.numElements() / count : 0;
  return {front.reshape({count, width}), count, width};
}

void require(bool ok, const std::string &message) {
  if (!ok)
    throw poputil::poplibs_error(message);
}

void checkMulti(const char *name, const Tensor &t, const Tensor &offsets,
                const std::vector<std::size_t> &dims,
                const std::vector<std::size_t> &sizes) {
  const std::string who(name);
  require(offsets.rank() == 2, who + " expects offset.rank() == 2 but it is " +
                                   std::to_string(offsets.rank()));
  require(dims.size() == 1 && sizes.size() == 1 && sizes[0] == 1,
          who + " slices one dimension by slices of size 1");
  require(offsets.dim(1) == dims.size(),
          who + " expects offset.dim(1) == 1 but it is " +
              std::to_string(offsets.dim(1)));
  require(offsets.elementType() == poplar::UNSIGNED_INT ||
              offsets.elementType() == poplar::INT,
          who + " expects integer offsets, was given " +
              offsets.elementType().toString());
  require(dims[0] < t.rank(), who + " slices dimension " +
                                  std::to_string(dims[0]) +
                                  " of a tensor of shape " + t.shapeToString());
}

// [n, ..., 1, ...] of an update as [n, width].
Tensor updateRows(const char *name, const Tensor &t, const Tensor &s,
                  const Tensor &offsets, std::size_t dim) {
  auto expected = t.shape();
  expected[dim] = 1;
  expected.insert(expected.begin(), offsets.dim(0));
  require(s.shape() == expected && s.elementType() == t.elementType(),
          std::string(name) + " of " + t.elementType().toString() + " " +
              t.shapeToString() + " expects updates of shape " +
              shapeText(expected) + " and the same type, was given " +
              s.elementType().toString() + " " + s.shapeToString());
  return s.dimRoll(unsigned(dim + 1), 1)
      .reshape({offsets.dim(0),
                s.numElements() / std::max<std::size_t>(1, offsets.dim(0))});
}

struct MultiSliceStep : Step {
  MultiSliceStep(const Rows &rows, const Tensor &offsets, const Tensor &out)
      : table(rows.table), offsets(offsets.flatten()), out(out),
        count(rows.count), width(rows.width) {}
  void run() override {
    const char *source = table.read();
    const auto *index = offsets.read<std::uint32_t>();
    char *target = out.beginWrite();
    const std::size_t bytes = width * sizeOf(table.type());
    for (std::size_t i = 0; i < offsets.size(); ++i, target += bytes) {
      // What a row out of range holds is undefined on the device; here it is
      // NaN, so that nobody relies on it.
      if (index[i] < count)
        std::memcpy(target, source + index[i] * bytes, bytes);
      else
        std::memset(target, 0xff, bytes);
    }
    out.commit();
  }
  Operand table, offsets, out;
  std::size_t count, width;
};

enum class UpdateKind { Replace, Add, Max };

// Updates are applied in order; each addition is rounded to the table's type,
// and rows out of range are skipped (poplibs lib/popops/codelets/
// MultiUpdateOp.cpp: the product is made in float, rounded, then added).
struct MultiUpdateStep : Step {
  MultiUpdateStep(UpdateKind kind, const Rows &rows, const Tensor &updates,
                  const Tensor &offsets)
      : kind(kind), table(rows.table), updates(updates),
        offsets(offsets.flatten()), count(rows.count), width(rows.width),
        sum(rows.width), addend(rows.width) {}

  void run() override {
    // Reading first brings a table that is not contiguous into scratch.
    char *target = const_cast<char *>(table.read());
    const char *source = updates.read();
    const auto *index = offsets.read<std::uint32_t>();
    const std::size_t bytes = width * sizeOf(table.type());
    const float factor =
        scale ? float(loadDouble(scale->read(), scale->type())) : 1.0f;
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      if (index[i] >= count)
        continue;
      char *row = target + index[i] * bytes;
      const char *update = source + i * bytes;
      if (kind == UpdateKind::Replace)
        std::memcpy(row, update, bytes);
      else if (table.type() == poplar::FLOAT && kind == UpdateKind::Add)
        addFloat(reinterpret_cast<float *>(row),
                 reinterpret_cast<const float *>(update), factor);
      else
        combine(row, update, factor);
    }
    table.commit();
  }

  void addFloat(float *row, const float *update, float factor) const {
    for (std::size_t d = 0; d < width; ++d)
      row[d] += factor * update[d];
  }

  void combine(char *row, const char *update, float factor) {
    toFloat(row, table.type(), sum.data(), width);
    toFloat(update, table.type(), addend.data(), width);
    if (kind == UpdateKind::Max) {
      for (std::size_t d = 0; d < width; ++d)
        sum[d] = std::max(sum[d], addend[d]);
    } else {
      for (std::size_t d = 0; d < width; ++d)
        addend[d] *= factor;
      roundToHalf(addend.data(), width);
      for (std::size_t d = 0; d < width; ++d)
        sum[d] += addend[d];
    }
    fromFloat(sum.data(), table.type(), row, width);
  }

  UpdateKind kind;
  Operand table, updates, offsets;
  std::unique_ptr<Operand> scale;
  std::size_t count, width;
  std::vector<float> sum, addend;
};

void recordMultiUpdate(UpdateKind kind, const char *name, poplar::Graph &graph,
                       const Tensor &t, const Tensor &s, const Tensor &offsets,
                       const Tensor *scale,
                       const std::vector<std::size_t> &dims,
                       const std::vector<std::size_t> &sizes,
                       poplar::program::Sequence &prog,
                       const poplar::DebugContext &context) {
  checkMulti(name, t, offsets, dims, sizes);
  if (kind != UpdateKind::Replace)
    require(isFloating(t.elementType()),
            std::string(name) + " does not take " + t.elementType().toString());
  const Tensor updates = updateRows(name, t, s, offsets, dims[0]);
  const Rows rows = rowsOf(t, dims[0]);
  auto step = std::make_shared<MultiUpdateStep>(kind, rows, updates, offsets);
  std::vector<Tensor> reads = {s, offsets, t};
  if (scale) {
    require(scale->numElements() == 1,
            std::string(name) + " expects a scalar scale");
    require(scale->elementType() == poplar::FLOAT ||
                scale->elementType() == t.elementType(),
            std::string(name) + " of " + t.elementType().toString() +
                " expects a scale of type float or of the table's type, was "
                "given " +
                scale->elementType().toString());
    step->scale = std::make_unique<Operand>(*scale);
    reads.push_back(*scale);
  }
  const std::size_t n = offsets.dim(0);
  const Cost cost{
      multiUpdateAddCycles(graph.getTarget(), n, rows.width, t.elementType(),
                           scale ? scale->elementType() : t.elementType()),
      (2 * n * rows.width) * sizeOf(t.elementType()) + n * 4};
  record(prog, step, context, reads, {t}, cost);
}

struct DynamicStep : Step {
  DynamicStep(const Tensor &table, const Tensor &slice, const Tensor &offset,
              std::vector<std::size_t> dims, bool update)
      : table(table), slice(slice), offset(offset.flatten()),
        dims(std::move(dims)), update(update) {}

  void run() override {
    char *whole = const_cast<char *>(table.read());
    char *part = update ? const_cast<char *>(slice.read()) : slice.beginWrite();
    std::vector<std::size_t> begin(table.shape().size(), 0);
    const auto *at = offset.read<std::uint32_t>();
    for (std::size_t i = 0; i < dims.size(); ++i)
      begin[dims[i]] = at[i] % std::max<std::size_t>(1, table.shape()[dims[i]]);
    const std::size_t width = sizeOf(table.type());
    std::vector<std::size_t> index(begin.size(), 0);
    for (std::size_t i = 0; i < slice.size(); ++i) {
      std::size_t flat = 0;
      for (std::size_t d = 0; d < index.size(); ++d)
        flat =
            flat * table.shape()[d] + (begin[d] + index[d]) % table.shape()[d];
      if (update)
        std::memcpy(whole + flat * width, part + i * width, width);
      else
        std::memcpy(part + i * width, whole + flat * width, width);
      for (std::size_t d = index.size(); d-- > 0;) {
        if (++index[d] < slice.shape()[d])
          break;
        index[d] = 0;
      }
    }
    (update ? table : slice).commit();
  }

  Operand table, slice, offset;
  std::vector<std::size_t> dims;
  bool update;
};

std::vector<std::size_t> checkDynamic(const char *name, const Tensor &t,
                                      const Tensor &offset,
                                      const std::vector<std::size_t> &dims,
                                      const std::vector<std::size_t> &sizes) {
  auto shape = t.shape();
  require(dims.size() == sizes.size() && offset.numElements() == dims.size(),
          std::string(name) + " expects one offset and one size for each of " +
              std::to_string(dims.size()) + " dimensions");
  require(offset.elementType() == poplar::UNSIGNED_INT ||
              offset.elementType() == poplar::INT,
          std::string(name) + " expects integer offsets");
  for (std::size_t i = 0; i < dims.size(); ++i) {
    require(dims[i] < t.rank() && sizes[i] <= t.dim(unsigned(dims[i])),
            std::string(name) + " takes a slice that does not fit in " +
                t.shapeToString());
    shape[dims[i]] = sizes[i];
  }
  return shape;
}

} // namespace
} // namespace popemu

namespace popops {

using namespace popemu;
using poplar::DebugContext;
using poplar::Graph;
using poplar::OptionFlags;
using poplar::Tensor;
using poplar::Type;
using poplar::program::Sequence;
using Sizes = std::vector<std::size_t>;

namespace embedding {

SlicePlan plan(const Graph &, const Type &, const std::size_t,
               const std::size_t, const Sizes &, const OptionFlags &) {
  return SlicePlan();
}

SlicePlan plan(const Graph &, const Type &, const std::size_t,
               const std::size_t, const std::size_t, const Sizes &,
               const OptionFlags &) {
  return SlicePlan();
}

} // namespace embedding

Tensor createSliceableTensor(Graph &graph, const Type &type, const Sizes &shape,
                             const Sizes &, const Sizes &, std::size_t,
                             const DebugContext &debugContext) {
  return addMapped(graph, type, shape, debugContext);
}

Tensor createSliceableTensor(Graph &graph, const Type &type, const Sizes &shape,
                             const Sizes &, const Sizes &, const SlicePlan &,
                             const OptionFlags &,
                             const DebugContext &debugContext) {
  return addMapped(graph, type, shape, debugContext);
}

Tensor createSliceTensor(Graph &graph, const Tensor &t, const Sizes &dims,
                         const Sizes &sizes, std::size_t numIndices,
                         const DebugContext &debugContext) {
  auto shape = t.shape();
  for (std::size_t i = 0; i < dims.size(); ++i)
    shape[dims[i]] = sizes[i];
  shape.insert(shape.begin(), numIndices);
  return addMapped(graph, t.elementType(), shape, debugContext);
}

Tensor createIndicesTensor(Graph &graph, const Sizes &dims,
                           std::size_t numIndices, const SlicePlan &,
                           const OptionFlags &,
                           const DebugContext &debugContext) {
  return addMapped(graph, poplar::UNSIGNED_INT, {numIndices, dims.size()},
                   debugContext);
}

Tensor dynamicSlice(Graph &graph, const Tensor &t, const Tensor &offset,
                    const Sizes &dims, const Sizes &sizes, Sequence &prog,
                    const DebugContext &debugContext, const OptionFlags &) {
  const auto shape = checkDynamic("dynamicSlice", t, offset, dims, sizes);
  Tensor out = addMapped(graph, t.elementType(), shape, debugContext);
  const std::size_t bytes = out.numElements() * sizeOf(t.elementType());
  record(prog, std::make_shared<DynamicStep>(t, out, offset, dims, false),
         debugContext, {t, offset}, {out}, {0, 2 * bytes});
  return out;
}

void dynamicUpdate(Graph &, const Tensor &t, const Tensor &s,
                   const Tensor &offset, const Sizes &dims, const Sizes &sizes,
                   Sequence &prog, const DebugContext &debugContext,
                   const OptionFlags &) {
  const auto shape = checkDynamic("dynamicUpdate", t, offset, dims, sizes);
  require(s.shape() == shape && s.elementType() == t.elementType(),
          "dynamicUpdate expects an update of shape " + shapeText(shape) +
              ", was given " + s.shapeToString());
  const std::size_t bytes = s.numElements() * sizeOf(s.elementType());
  record(prog, std::make_shared<DynamicStep>(t, s, offset, dims, true),
         debugContext, {t, s, offset}, {t}, {0, 2 * bytes});
}

Tensor multiSlice(Graph &graph, const Tensor &t, const Tensor &offsets,
                  const Sizes &dims, const Sizes &sizes, Sequence &prog,
                  const SlicePlan &, const OptionFlags &,
                  const DebugContext &debugContext) {
  checkMulti("multiSlice", t, offsets, dims, sizes);
  const Rows rows = rowsOf(t, dims[0]);
  auto shape = t.shape();
  shape[dims[0]] = 1;
  shape.insert(shape.begin(), offsets.dim(0));
  Tensor out = addMapped(graph, t.elementType(), shape, debugContext);
  const std::size_t n = offsets.dim(0);
  const Cost cost{
      multiSliceCycles(graph.getTarget(), n, rows.width, t.elementType()),
      2 * n * rows.width * sizeOf(t.elementType()) + n * 4};
  auto step = std::make_shared<MultiSliceStep>(
      rows, offsets, out.dimRoll(unsigned(dims[0] + 1), 1));
  record(prog, step, debugContext, {t, offsets}, {out}, cost);
  return out;
}

void multiUpdate(Graph &graph, const Tensor &t, const Tensor &s,
                 const Tensor &offsets, const Sizes &dims, const Sizes &sizes,
                 Sequence &prog, const SlicePlan &, const OptionFlags &,
                 const DebugContext &debugContext) {
  recordMultiUpdate(UpdateKind::Replace, "multiUpdate", graph, t, s, offsets,
                    nullptr, dims, sizes, prog, debugContext);
}

void multiUpdateAdd(Graph &graph, const Tensor &t, const Tensor &s,
                    const Tensor &offsets, const Tensor &scale,
                    const Sizes &dims, const Sizes &sizes, Sequence &prog,
                    const SlicePlan &, const OptionFlags &,
                    const DebugContext &debugContext) {
  recordMultiUpdate(UpdateKind::Add, "multiUpdateAdd", graph, t, s, offsets,
                    &scale, dims, sizes, prog, debugContext);
}

void multiUpdateMax(Graph &graph, const Tensor &t, const Tensor &s,
                    const Tensor &offsets, const Sizes &dims,
                    const Sizes &sizes, Sequence &prog, const SlicePlan &,
                    const OptionFlags &, const DebugContext &debugContext) {
  recordMultiUpdate(UpdateKind::Max, "multiUpdateMax", graph, t, s, offsets,
                    nullptr, dims, sizes, prog, debugContext);
}

Tensor createGatherInput(Graph &graph, const Type &type, const Sizes &shape,
                         unsigned, GatherParams,
                         const DebugContext &debugContext) {
  return addMapped(graph, type, shape, debugContext);
}

Tensor gather(Graph &graph, const Tensor &input, const Tensor &indices,
              unsigned axis, Sequence &prog, GatherParams,
              const DebugContext &debugContext,
              const OptionFlags &optionFlags) {
  require(indices.rank() == 1, "gather expects indices of rank 1, was given " +
                                   indices.shapeToString());
  // [n, ..., 1, ...]: the slices' own dimension takes the place of the axis.
  const Tensor rows = multiSlice(graph, input, indices.expand({1}), {axis}, {1},
                                 prog, SlicePlan(), optionFlags, debugContext);
  return rows.squeeze({std::size_t(axis) + 1}).dimRoll(0, axis);
}

} // namespace popops
