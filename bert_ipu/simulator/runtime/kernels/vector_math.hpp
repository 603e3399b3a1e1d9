// exp for loops that the compiler vectorises: libm's would be called element by
// element.
#pragma once

#include "formats.hpp"

namespace bert_ipu {

// Relative error below 2e-7 for |x| < 87; 0 below that, and a huge finite
// number above.
inline float exp_fast(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float n = __builtin_rintf(x * 1.44269504f);
  // ln 2 in two parts, so that the reduced argument is exact.
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return from_bits(bits_of(p) + (uint32_t(int32_t(n)) << 23));
}

} // namespace bert_ipu
