// The gradient of a table of embeddings: rows added to rows.
#include "formats.hpp"

namespace bert_ipu {
namespace {

constexpr int64_t kParallelFrom = 1 << 14;

// table[index[r]] += rows[r]. Each thread has columns of its own, so that none
// writes where another does and the order of additions is always the same.
template <typename T>
void add_rows(const T *rows, const int32_t *index, int64_t count,
              int64_t columns, int64_t skipped, T *table) {
  constexpr int64_t kWidth = 64;
  const int64_t parts = (columns + kWidth - 1) / kWidth;
#pragma omp parallel for schedule(static) if (count * columns >= kParallelFrom)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * kWidth;
    const int64_t end = first + kWidth < columns ? first + kWidth : columns;
    for (int64_t r = 0; r < count; ++r) {
      if (index[r] == skipped)
        continue;
      const T *source = rows + r * columns;
      T *target = table + index[r] * columns;
#pragma omp simd
      for (int64_t c = first; c < end; ++c)
        store(&target[c], load(target[c]) + load(source[c]));
    }
  }
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_add_rows_f32(const float *rows, const int32_t *index,
                           int64_t count, int64_t columns, int64_t skipped,
                           float *table) {
  add_rows(rows, index, count, columns, skipped, table);
}
}
