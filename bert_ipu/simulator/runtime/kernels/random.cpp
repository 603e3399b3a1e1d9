// Random numbers that are a function of (seed, step, stream, op, element), and
// dropout made of them.
#include "formats.hpp"
#include "philox.hpp"

namespace bert_ipu {
namespace {

constexpr int64_t kParallelFrom = 1 << 15;

// out = x * scale where the element's word is at least `threshold`, else 0;
// each stream covers `elements` elements.
template <typename T>
void dropout(const T *x, T *out, int64_t streams, int64_t elements,
             const uint32_t *key, uint32_t op, const uint32_t *places,
             uint32_t threshold, float scale) {
  const int64_t groups = (elements + kGroup - 1) / kGroup;
#pragma omp parallel for schedule(static) if (streams * elements >=            \
                                                  kParallelFrom)
  for (int64_t task = 0; task < streams * groups; ++task) {
    const int64_t s = task / groups, group = task % groups;
    alignas(64) uint32_t words[kGroup];
    philox_group(draw_at(key, op, places + 2 * s), uint64_t(group), words);
    const int64_t first = s * elements + group * kGroup;
    const int count =
        int(elements - group * kGroup < kGroup ? elements - group * kGroup
                                               : kGroup);
    if (count == kGroup) {
#pragma omp simd
      for (int i = 0; i < kGroup; ++i)
        store(&out[first + i],
              words[i] >= threshold ? load(x[first + i]) * scale : 0.0f);
    } else {
      for (int i = 0; i < count; ++i)
        store(&out[first + i],
              words[i] >= threshold ? load(x[first + i]) * scale : 0.0f);
    }
  }
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_random_words(uint32_t *out, int64_t streams, int64_t elements,
                           const uint32_t *key, uint32_t op,
                           const uint32_t *places) {
  const int64_t groups = (elements + kGroup - 1) / kGroup;
#pragma omp parallel for schedule(static) if (streams * elements >=            \
                                                  kParallelFrom)
  for (int64_t task = 0; task < streams * groups; ++task) {
    const int64_t s = task / groups, group = task % groups;
    alignas(64) uint32_t words[kGroup];
    philox_group(draw_at(key, op, places + 2 * s), uint64_t(group), words);
    const int count =
        int(elements - group * kGroup < kGroup ? elements - group * kGroup
                                               : kGroup);
    for (int i = 0; i < count; ++i)
      out[s * elements + group * kGroup + i] = words[i];
  }
}

void bert_ipu_dropout_f32(const float *x, float *out, int64_t streams,
                          int64_t elements, const uint32_t *key, uint32_t op,
                          const uint32_t *places, uint32_t threshold,
                          float scale) {
  dropout(x, out, streams, elements, key, op, places, threshold, scale);
}

void bert_ipu_dropout_bf16(const bfloat16 *x, bfloat16 *out, int64_t streams,
                           int64_t elements, const uint32_t *key, uint32_t op,
                           const uint32_t *places, uint32_t threshold,
                           float scale) {
  dropout(x, out, streams, elements, key, op, places, threshold, scale);
}
}
