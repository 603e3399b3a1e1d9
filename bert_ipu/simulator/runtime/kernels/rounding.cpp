// Rounding of float values to the nearest fp16 value, or stochastically to one
// of its two neighbours.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "formats.hpp"
#include "philox.hpp"

namespace bert_ipu {
namespace {

constexpr int64_t kParallelFrom = 1 << 15;
// Bits of non-negative floats are ordered as the floats are.
constexpr uint32_t kHalfMax = 0x477FE000u;        // 65504
constexpr uint32_t kSmallestNormal = 0x38800000u; // 2^-14
constexpr uint32_t kInfinity = 0x7F800000u;

inline uint32_t mask(bool condition) { return -uint32_t(condition); }

// Round |value| down or up on the fp16 grid with a probability equal to the
// distance, using 16 random bits. The grid is 2^-10 of the value's power of
// two, and 2^-24 below 2^-14 (subnormal numbers). Choices are made with masks:
// GCC turns conditional expressions here into branches, which it cannot
// vectorise.
inline float round_stochastically(float value, uint32_t random16) {
  const uint32_t bits = bits_of(value);
  const uint32_t size = bits & 0x7FFFFFFFu;
  const float magnitude = from_bits(size);
  // Normal numbers: the low 13 bits are dropped; adding 13 random bits carries
  // with the right probability.
  const uint32_t normal = (size + (random16 >> 3)) & 0xFFFFE000u;
  // Subnormal numbers: in units of 2^-24 the fraction is exact in float;
  // compare it with the random bits.
  const uint32_t is_subnormal = mask(size < kSmallestNormal);
  const float units =
      from_bits(bits_of(magnitude * 16777216.0f) & is_subnormal);
  const int32_t whole = int32_t(units);
  const int32_t up =
      int32_t((units - float(whole)) * 65536.0f) > int32_t(random16);
  const uint32_t subnormal =
      bits_of(float(whole + up) * 5.9604644775390625e-08f);
  const uint32_t rounded =
      (subnormal & is_subnormal) | (normal & ~is_subnormal);
  const uint32_t too_large = mask(rounded > kHalfMax) & mask(size <= kInfinity);
  const uint32_t result = (kInfinity & too_large) | (rounded & ~too_large);
  const uint32_t is_nan = mask(size > kInfinity);
  return from_bits((result & ~is_nan) | (size & is_nan) | (bits & 0x80000000u));
}

// Whether every value is a normal fp16 number or zero, which no rounding
// changes: then no random words are needed.
inline bool all_exact(const float *values, int count) {
  uint32_t odd = 0;
#pragma omp simd reduction(| : odd)
  for (int i = 0; i < count; ++i) {
    const uint32_t size = bits_of(values[i]) & 0x7FFFFFFFu;
    odd |= (size & 0x1FFFu) | (mask(size != 0) & mask(size < kSmallestNormal)) |
           mask(size > kHalfMax);
  }
  return odd == 0;
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_round_half(const float *x, float *out, int64_t elements) {
  const int64_t blocks = elements / 16;
#pragma omp parallel for schedule(static) if (elements >= kParallelFrom)
  for (int64_t block = 0; block < blocks; ++block) {
    const __m256i low = _mm256_castsi128_si256(
        _mm256_cvtps_ph(_mm256_loadu_ps(x + block * 16), 0));
    const __m128i high =
        _mm256_cvtps_ph(_mm256_loadu_ps(x + block * 16 + 8), 0);
    _mm256_storeu_ps(out + block * 16,
                     _mm256_cvtph_ps(_mm256_castsi256_si128(low)));
    _mm256_storeu_ps(out + block * 16 + 8, _mm256_cvtph_ps(high));
  }
  for (int64_t i = blocks * 16; i < elements; ++i)
    out[i] = _cvtsh_ss(_cvtss_sh(x[i], 0));
}

// Each stream covers `elements` elements. Of every 128, the first 64 take the
// low halves of 64 words, the rest the high ones.
void bert_ipu_round_half_stochastic(const float *x, float *out, int64_t streams,
                                    int64_t elements, const uint32_t *key,
                                    uint32_t op, const uint32_t *places) {
  constexpr int kSpan = 2 * kGroup;
  const int64_t spans = (elements + kSpan - 1) / kSpan;
#pragma omp parallel for schedule(static) if (streams * elements >=            \
                                                  kParallelFrom)
  for (int64_t task = 0; task < streams * spans; ++task) {
    const int64_t s = task / spans, span = task % spans;
    const int64_t first = s * elements + span * kSpan;
    const int64_t left = elements - span * kSpan;
    const int count = int(left < kSpan ? left : kSpan);
    if (all_exact(x + first, count)) {
      if (out != x)
        std::memcpy(out + first, x + first, size_t(count) * sizeof(float));
      continue;
    }
    alignas(64) uint32_t words[kGroup];
    philox_group<kRoundsOfRounding>(draw_at(key, op, places + 2 * s),
                                    uint64_t(span), words);
    alignas(64) uint32_t halves[kSpan];
#pragma omp simd
    for (int i = 0; i < kGroup; ++i) {
      halves[i] = words[i] & 0xFFFFu;
      halves[kGroup + i] = words[i] >> 16;
    }
    if (count == kSpan) {
#pragma omp simd
      for (int i = 0; i < kSpan; ++i)
        out[first + i] = round_stochastically(x[first + i], halves[i]);
    } else {
      for (int i = 0; i < count; ++i)
        out[first + i] = round_stochastically(x[first + i], halves[i]);
    }
  }
}
}
