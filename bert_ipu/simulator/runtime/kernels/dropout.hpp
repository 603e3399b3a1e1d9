// Dropout of rows inside other kernels, by the same random words as alone.
#pragma once

#include "formats.hpp"
#include "philox.hpp"

namespace bert_ipu {

// A dropout over tensors of `streams` x `elements` elements; `key` is null
// where nothing is dropped. Rows must be whole groups of kGroup elements.
struct Dropout {
  const uint32_t *key, *places;
  int64_t elements;
  uint32_t op, threshold;
  float scale;

  bool drops() const { return key != nullptr; }

  // values[i] = values[i] * scale, or 0, for the row that starts at element
  // `first` of the whole tensor.
  void apply(float *values, int64_t first, int64_t count) const {
    const int64_t stream = first / elements;
    const Draw draw = draw_at(key, op, places + 2 * stream);
    const uint64_t group = uint64_t(first - stream * elements) / kGroup;
    // Copies: as members they might be what `values` points to.
    const uint32_t below = threshold;
    const float factor = scale;
    for (int64_t i = 0; i < count; i += kGroup) {
      alignas(64) uint32_t words[kGroup];
      philox_group(draw, group + uint64_t(i / kGroup), words);
#pragma omp simd
      for (int j = 0; j < kGroup; ++j)
        values[i + j] = words[j] >= below ? values[i + j] * factor : 0.0f;
    }
  }
};

} // namespace bert_ipu
