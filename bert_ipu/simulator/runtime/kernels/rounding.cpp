// Rounding of float values to the nearest fp16 value, or stochastically to one
// of its two neighbours. Finite values beyond its range become `overflow`;
// infinity and NaN stay what they are.
#include <cstdint>
#include <cstring>

#include "half_rounding.hpp"
#include "philox.hpp"

namespace bert_ipu {
namespace {

constexpr int64_t kParallelFrom = 1 << 15;
constexpr int kSpan = 2 * kGroup; // elements that one group of words rounds

// Whether every value is a normal fp16 number or zero, which no rounding
// changes: then no random words are needed.
inline bool all_exact(const float *values) {
  constexpr uint32_t kDropped = 0x1FFFu;
  for (int i = 0; i < 4; ++i) // nearly always enough to tell
    if (bits_of(values[i]) & kDropped)
      return false;
  Bits odd = {};
  for (int i = 0; i < kSpan; i += kLanes) {
    const Bits size = load_bits(values + i) & 0x7FFFFFFFu;
    odd |= (size & kDropped) | Bits(size > kHalfMax) |
           (Bits(size != 0u) & Bits(size < kSmallestNormal));
  }
  uint32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    any |= odd[lane];
  return any == 0;
}

// Rounds kSpan elements in place.
void round_span(float *values, uint32_t overflow, const Draw &draw,
                uint64_t span) {
  if (all_exact(values))
    return;
  alignas(64) uint32_t words[kGroup];
  philox_group<kRoundsOfRounding>(draw, span, words);
  for (int i = 0; i < kGroup; i += kLanes) {
    const Bits random = load_bits(words + i);
    const Bits first =
        round_stochastically(load_bits(values + i), random & 0xFFFFu, overflow);
    const Bits second = round_stochastically(load_bits(values + kGroup + i),
                                             random >> 16, overflow);
    std::memcpy(values + i, &first, sizeof first);
    std::memcpy(values + kGroup + i, &second, sizeof second);
  }
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_round_half(const float *x, float *out, int64_t elements,
                         float overflow) {
  const uint32_t limit = bits_of(overflow);
  const int64_t whole = elements / kLanes, left = elements % kLanes;
#pragma omp parallel for schedule(static) if (elements >= kParallelFrom)
  for (int64_t group = 0; group < whole; ++group) {
    const Bits rounded = round_to_nearest(load_bits(x + group * kLanes), limit);
    std::memcpy(out + group * kLanes, &rounded, sizeof rounded);
  }
  if (left > 0) {
    float padded[kLanes] = {};
    const size_t bytes = size_t(left) * sizeof(float);
    std::memcpy(padded, x + whole * kLanes, bytes);
    const Bits rounded = round_to_nearest(load_bits(padded), limit);
    std::memcpy(out + whole * kLanes, &rounded, bytes);
  }
}

// Each stream covers `elements` elements, which are rounded in place. Of every
// 128, the first 64 take the low halves of 64 words, the rest the high ones.
void bert_ipu_round_half_stochastic(float *x, int64_t streams, int64_t elements,
                                    float overflow, const uint32_t *key,
                                    uint32_t op, const uint32_t *places) {
  const uint32_t limit = bits_of(overflow);
  const int64_t whole = elements / kSpan, left = elements % kSpan;
#pragma omp parallel if (streams * elements >= kParallelFrom)
  for (int64_t s = 0; s < streams; ++s) {
    const Draw draw = draw_at(key, op, places + 2 * s);
    float *first = x + s * elements;
#pragma omp for schedule(static) nowait
    for (int64_t span = 0; span < whole; ++span)
      round_span(first + span * kSpan, limit, draw, uint64_t(span));
#pragma omp single nowait
    if (left > 0) {
      float padded[kSpan] = {};
      const size_t bytes = size_t(left) * sizeof(float);
      std::memcpy(padded, first + whole * kSpan, bytes);
      round_span(padded, limit, draw, uint64_t(whole));
      std::memcpy(first + whole * kSpan, padded, bytes);
    }
  }
}
}
