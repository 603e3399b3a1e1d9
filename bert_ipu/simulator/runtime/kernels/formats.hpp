// Conversions between float and the 16-bit formats, written so that the
// compiler vectorises them.
#pragma once

#include <cstdint>
#include <cstring>

namespace bert_ipu {

struct bfloat16 {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float load(float value) { return value; }
inline float load(bfloat16 value) {
  return from_bits(uint32_t(value.bits) << 16);
}

inline void store(float *target, float value) { *target = value; }

// Round to nearest even; NaN stays NaN.
inline void store(bfloat16 *target, float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  target->bits = uint16_t(value != value ? 0x7FC0u : rounded);
}

} // namespace bert_ipu
