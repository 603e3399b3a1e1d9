// Rounding of float values to the nearest fp16 value, or stochastically to one
// of its two neighbours. Finite values beyond its range become `overflow`;
// infinity and NaN stay what they are.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "formats.hpp"
#include "philox.hpp"

namespace bert_ipu {
namespace {

constexpr int64_t kParallelFrom = 1 << 15;
constexpr int kSpan = 2 * kGroup; // elements that one group of words rounds
// Bits of non-negative floats are ordered as the floats are.
constexpr uint32_t kHalfMax = 0x477FE000u;        // 65504
constexpr uint32_t kSmallestNormal = 0x38800000u; // 2^-14
constexpr uint32_t kInfinity = 0x7F800000u;

// Sixteen elements side by side; a comparison gives all ones or zeros.
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

inline Bits load_bits(const void *from) {
  Bits bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

// Round |value| down or up on the fp16 grid with a probability equal to the
// distance, using 16 random bits. The grid is 2^-10 of the value's power of
// two, and 2^-24 below 2^-14 (subnormal numbers).
inline Bits round_stochastically(Bits bits, Bits random16, uint32_t overflow) {
  const Bits size = bits & 0x7FFFFFFFu;
  // Normal numbers: the low 13 bits are dropped; adding 13 random bits carries
  // with the right probability.
  const Bits normal = (size + (random16 >> 3)) & 0xFFFFE000u;
  // Subnormal numbers: the same with 16 bits, in units of 2^-40.
  const Bits small = size < kSmallestNormal ? size : Bits{};
  const Integers carried =
      (__builtin_convertvector(Floats(small) * 0x1p40f, Integers) +
       Integers(0xFFFFu - random16)) >>
      16;
  const Floats subnormal = __builtin_convertvector(carried, Floats) * 0x1p-24f;
  Bits rounded = size < kSmallestNormal ? Bits(subnormal) : normal;
  rounded = rounded > kHalfMax ? Bits{} + overflow : rounded;
  rounded = size >= kInfinity ? size : rounded; // infinity and NaN
  return rounded | (bits & 0x80000000u);
}

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

// Finite values are brought into [-limit, limit]. Of two operands min and max
// give the second where one is NaN.
inline __m256 clamp_finite(__m256 x, __m256 limit) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const __m256 clamped =
      _mm256_max_ps(_mm256_or_ps(limit, sign), _mm256_min_ps(limit, x));
  const __m256 infinite = _mm256_cmp_ps(
      _mm256_andnot_ps(sign, x),
      _mm256_set1_ps(std::numeric_limits<float>::infinity()), _CMP_EQ_OQ);
  return _mm256_blendv_ps(clamped, x, infinite);
}

inline void round_eight(const float *x, float *out, __m256 limit) {
  const __m256 clamped = clamp_finite(_mm256_loadu_ps(x), limit);
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm256_cvtps_ph(
                            clamped, _MM_FROUND_TO_NEAREST_INT)));
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_round_half(const float *x, float *out, int64_t elements,
                         float overflow) {
  const __m256 limit = _mm256_set1_ps(overflow);
  const int64_t blocks = elements / 8, left = elements % 8;
#pragma omp parallel for schedule(static) if (elements >= kParallelFrom)
  for (int64_t block = 0; block < blocks; ++block)
    round_eight(x + block * 8, out + block * 8, limit);
  if (left > 0) {
    float padded[8] = {};
    const size_t bytes = size_t(left) * sizeof(float);
    std::memcpy(padded, x + blocks * 8, bytes);
    round_eight(padded, padded, limit);
    std::memcpy(out + blocks * 8, padded, bytes);
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
