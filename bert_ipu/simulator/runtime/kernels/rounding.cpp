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
inline Bits round_stochastically(Bits bits, Bits random16) {
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
  rounded = rounded > kHalfMax ? Bits{} + kInfinity : rounded;
  rounded = size > kInfinity ? size : rounded; // NaN
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
void round_span(float *values, const Draw &draw, uint64_t span) {
  if (all_exact(values))
    return;
  alignas(64) uint32_t words[kGroup];
  philox_group<kRoundsOfRounding>(draw, span, words);
  for (int i = 0; i < kGroup; i += kLanes) {
    const Bits random = load_bits(words + i);
    const Bits first =
        round_stochastically(load_bits(values + i), random & 0xFFFFu);
    const Bits second =
        round_stochastically(load_bits(values + kGroup + i), random >> 16);
    std::memcpy(values + i, &first, sizeof first);
    std::memcpy(values + kGroup + i, &second, sizeof second);
  }
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

// Each stream covers `elements` elements, which are rounded in place. Of every
// 128, the first 64 take the low halves of 64 words, the rest the high ones.
void bert_ipu_round_half_stochastic(float *x, int64_t streams, int64_t elements,
                                    const uint32_t *key, uint32_t op,
                                    const uint32_t *places) {
  const int64_t whole = elements / kSpan, left = elements % kSpan;
#pragma omp parallel if (streams * elements >= kParallelFrom)
  for (int64_t s = 0; s < streams; ++s) {
    const Draw draw = draw_at(key, op, places + 2 * s);
    float *first = x + s * elements;
#pragma omp for schedule(static) nowait
    for (int64_t span = 0; span < whole; ++span)
      round_span(first + span * kSpan, draw, uint64_t(span));
#pragma omp single nowait
    if (left > 0) {
      float padded[kSpan] = {};
      const size_t bytes = size_t(left) * sizeof(float);
      std::memcpy(padded, first + whole * kSpan, bytes);
      round_span(padded, draw, uint64_t(whole));
      std::memcpy(first + whole * kSpan, padded, bytes);
    }
  }
}
}
