// Element types: sizes, names and conversions.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace poplar {

std::string Type::toString() const {
  static const char *const names[] = {"invalid",     "bool",
                                      "char",        "unsigned char",
                                      "signed char", "unsigned short",
                                      "short",       "unsigned int",
                                      "int",         "unsigned long long",
                                      "long long",   "half",
                                      "float",       "quarter"};
  return id_ < sizeof(names) / sizeof(names[0]) ? names[id_] : "invalid";
}

std::ostream &operator<<(std::ostream &os, const Type &type) {
  return os << type.toString();
}

unsigned Target::getTypeSize(const Type &type) const {
  return static_cast<unsigned>(popemu::sizeOf(type));
}

} // namespace poplar

namespace popemu {

using poplar::Type;

std::size_t sizeOf(Type type) {
  static const std::size_t sizes[] = {0, 1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 4, 1};
  if (type.id() == 0 || type.id() >= sizeof(sizes) / sizeof(sizes[0]))
    throw poplar::type_error("a tensor has no element type");
  return sizes[type.id()];
}

bool isFloating(Type type) {
  return type == poplar::FLOAT || type == poplar::HALF;
}

namespace {

void halfToFloatPortable(const Half *source, float *out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = static_cast<float>(source[i]);
}

// Finite values beyond the range of half become its largest ones.
Half toHalf(double value) {
  constexpr double largest = 65504;
  return static_cast<Half>(
      std::isinf(value) ? value : std::clamp(value, -largest, largest));
}

void floatToHalfPortable(const float *values, Half *out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = toHalf(values[i]);
}

#if defined(__x86_64__)
__attribute__((target("f16c,avx"))) void
halfToFloatF16c(const Half *source, float *out, std::size_t n) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m128i packed =
        _mm_loadu_si128(reinterpret_cast<const __m128i *>(source + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(packed));
  }
  halfToFloatPortable(source + i, out + i, n - i);
}

__attribute__((target("f16c,avx"))) void
floatToHalfF16c(const float *values, Half *out, std::size_t n) {
  const __m256 sign = _mm256_set1_ps(-0.0f), largest = _mm256_set1_ps(65504.0f);
  const __m256 infinity =
      _mm256_set1_ps(std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_loadu_ps(values + i);
    // min and max give their second operand where one is NaN.
    const __m256 clamped =
        _mm256_max_ps(_mm256_or_ps(largest, sign), _mm256_min_ps(largest, x));
    const __m256 infinite =
        _mm256_cmp_ps(_mm256_andnot_ps(sign, x), infinity, _CMP_EQ_OQ);
    __m128i packed = _mm256_cvtps_ph(_mm256_blendv_ps(clamped, x, infinite),
                                     _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i), packed);
  }
  floatToHalfPortable(values + i, out + i, n - i);
}

bool hasF16c() {
  static const bool has =
      __builtin_cpu_supports("avx") && __builtin_cpu_supports("f16c");
  return has;
}
#endif

void halfToFloat(const Half *source, float *out, std::size_t n) {
#if defined(__x86_64__)
  if (hasF16c())
    return halfToFloatF16c(source, out, n);
#endif
  halfToFloatPortable(source, out, n);
}

void floatToHalf(const float *values, Half *out, std::size_t n) {
#if defined(__x86_64__)
  if (hasF16c())
    return floatToHalfF16c(values, out, n);
#endif
  floatToHalfPortable(values, out, n);
}

// Calls `f` with a null pointer of the C++ type that stores `type`.
template <typename F> void withStorage(Type type, F &&f) {
  switch (type.id()) {
  case poplar::BOOL.id():
  case poplar::CHAR.id():
  case poplar::UNSIGNED_CHAR.id():
    return f(static_cast<std::uint8_t *>(nullptr));
  case poplar::SIGNED_CHAR.id():
    return f(static_cast<std::int8_t *>(nullptr));
  case poplar::UNSIGNED_SHORT.id():
    return f(static_cast<std::uint16_t *>(nullptr));
  case poplar::SHORT.id():
    return f(static_cast<std::int16_t *>(nullptr));
  case poplar::UNSIGNED_INT.id():
    return f(static_cast<std::uint32_t *>(nullptr));
  case poplar::INT.id():
    return f(static_cast<std::int32_t *>(nullptr));
  case poplar::UNSIGNED_LONGLONG.id():
    return f(static_cast<std::uint64_t *>(nullptr));
  case poplar::LONGLONG.id():
    return f(static_cast<std::int64_t *>(nullptr));
  case poplar::HALF.id():
    return f(static_cast<Half *>(nullptr));
  case poplar::FLOAT.id():
    return f(static_cast<float *>(nullptr));
  default:
    throw poplar::type_error("type " + type.toString() +
                             " is not supported by the simulator");
  }
}

// Conversion as the device does it: floats truncate and saturate.
template <typename T> T fromDouble(double value) {
  if (std::numeric_limits<T>::is_integer) {
    if (std::isnan(value))
      return T(0);
    const double low = static_cast<double>(std::numeric_limits<T>::lowest());
    const double high = static_cast<double>(std::numeric_limits<T>::max());
    if (value <= low)
      return std::numeric_limits<T>::lowest();
    if (value >= high)
      return std::numeric_limits<T>::max();
  }
  return static_cast<T>(value);
}

} // namespace

void toFloat(const char *source, Type type, float *out, std::size_t n) {
  if (type == poplar::FLOAT) {
    std::memcpy(out, source, n * sizeof(float));
  } else if (type == poplar::HALF) {
    halfToFloat(reinterpret_cast<const Half *>(source), out, n);
  } else {
    withStorage(type, [&](auto *tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      const T *typed = reinterpret_cast<const T *>(source);
      for (std::size_t i = 0; i < n; ++i)
        out[i] = static_cast<float>(typed[i]);
    });
  }
}

void fromFloat(const float *values, Type type, char *out, std::size_t n) {
  if (type == poplar::FLOAT) {
    std::memcpy(out, values, n * sizeof(float));
  } else if (type == poplar::HALF) {
    floatToHalf(values, reinterpret_cast<Half *>(out), n);
  } else if (type == poplar::BOOL) {
    for (std::size_t i = 0; i < n; ++i)
      out[i] = values[i] != 0.0f;
  } else {
    withStorage(type, [&](auto *tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      T *typed = reinterpret_cast<T *>(out);
      for (std::size_t i = 0; i < n; ++i) {
        if constexpr (std::is_integral_v<T>)
          typed[i] = fromDouble<T>(static_cast<double>(values[i]));
        else
          typed[i] = static_cast<T>(values[i]);
      }
    });
  }
}

void toInt(const char *source, Type type, std::int64_t *out, std::size_t n) {
  withStorage(type, [&](auto *tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const T *typed = reinterpret_cast<const T *>(source);
    for (std::size_t i = 0; i < n; ++i) {
      if constexpr (std::is_integral_v<T>)
        out[i] = static_cast<std::int64_t>(typed[i]);
      else
        out[i] = fromDouble<std::int64_t>(static_cast<double>(typed[i]));
    }
  });
}

void fromInt(const std::int64_t *values, Type type, char *out, std::size_t n) {
  if (type == poplar::BOOL) {
    for (std::size_t i = 0; i < n; ++i)
      out[i] = values[i] != 0;
    return;
  }
  withStorage(type, [&](auto *tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T *typed = reinterpret_cast<T *>(out);
    for (std::size_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<T, Half>)
        typed[i] = toHalf(static_cast<double>(values[i]));
      else
        typed[i] = static_cast<T>(values[i]);
    }
  });
}

void roundToHalf(float *values, std::size_t n) {
  constexpr std::size_t block = 256;
  Half rounded[block];
  for (std::size_t i = 0; i < n; i += block) {
    const std::size_t count = std::min(block, n - i);
    floatToHalf(values + i, rounded, count);
    halfToFloat(rounded, values + i, count);
  }
}

void storeDouble(double value, Type type, char *out) {
  if (type == poplar::BOOL) {
    out[0] = value != 0.0;
    return;
  }
  withStorage(type, [&](auto *tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    T stored;
    if constexpr (std::is_integral_v<T>)
      // A host constant wraps like a C++ conversion, so that -1 fits unsigned.
      stored = value < 0 ? static_cast<T>(static_cast<std::int64_t>(value))
                         : fromDouble<T>(value);
    else
      stored = static_cast<T>(value);
    std::memcpy(out, &stored, sizeof(T));
  });
}

double loadDouble(const char *source, Type type) {
  double value = 0;
  withStorage(type, [&](auto *tag) {
    std::remove_pointer_t<decltype(tag)> stored;
    std::memcpy(&stored, source, sizeof(stored));
    value = static_cast<double>(stored);
  });
  return value;
}

} // namespace popemu
