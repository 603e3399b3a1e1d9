// Sixteen floats side by side, rounded to fp16 values: to the nearest, or to
// one of the two neighbours by 16 random bits. Finite values beyond fp16's
// range become `overflow`; infinity and NaN stay what they are.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "formats.hpp"

namespace bert_ipu {

// Bits of non-negative floats are ordered as the floats are.
constexpr uint32_t kHalfMax = 0x477FE000u;        // 65504
constexpr uint32_t kSmallestNormal = 0x38800000u; // 2^-14
constexpr uint32_t kInfinity = 0x7F800000u;
constexpr uint32_t kSign = 0x80000000u;

// A comparison of vectors gives all ones or zeros.
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

inline Bits load_bits(const void *from) {
  Bits bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

inline Floats load_floats(const float *from) { return Floats(load_bits(from)); }

// Round |value| down or up on the fp16 grid with a probability equal to the
// distance. The grid is 2^-10 of the value's power of two, and 2^-24 below
// 2^-14 (subnormal numbers).
inline Bits round_stochastically(Bits bits, Bits random16, uint32_t overflow) {
  const Bits size = bits & ~kSign;
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
  return rounded | (bits & kSign);
}

inline __m256 round_eight(__m256 x) {
  return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

inline Bits round_to_nearest(Bits bits, uint32_t overflow) {
  const Bits size = bits & ~kSign;
  const Bits limited =
      (size > overflow) & (size < kInfinity) ? (bits & kSign) | overflow : bits;
#ifdef __AVX512F__
  const __m256i half =
      _mm512_cvtps_ph(__m512(limited), _MM_FROUND_TO_NEAREST_INT);
  return Bits(_mm512_cvtph_ps(half));
#else
  __m256 eight[2];
  std::memcpy(eight, &limited, sizeof eight);
  eight[0] = round_eight(eight[0]);
  eight[1] = round_eight(eight[1]);
  return load_bits(eight);
#endif
}

} // namespace bert_ipu
