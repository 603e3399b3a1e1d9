#include "kernels.hpp"

#include <algorithm>
#include <cmath>

#include <poplar/exceptions.hpp>

namespace popemu {

using popops::expr::BinaryOpType;
using popops::expr::UnaryOpType;

namespace {

template <typename In, typename Out, typename F>
void each(const In *a, Out *out, std::size_t n, F f) {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = f(a[i]);
}

template <typename In, typename Out, typename F>
void each(const In *a, const In *b, Out *out, std::size_t n, F f) {
  for (std::size_t i = 0; i < n; ++i)
    out[i] = f(a[i], b[i]);
}

[[noreturn]] void unsupported(const char *kind, int op, const char *type) {
  throw poplar::poplar_error(std::string("popops ") + kind + " operator " +
                             std::to_string(op) + " does not take " + type);
}

std::uint64_t maskOf(unsigned bits) {
  return bits >= 64 ? ~std::uint64_t(0) : (std::uint64_t(1) << bits) - 1;
}

std::int64_t divisor(std::int64_t b) {
  if (b == 0)
    throw poplar::runtime_error("integer division by zero");
  return b;
}

float signum(float x) { return float((x > 0) - (x < 0)); }

// Gaussian error linear unit by the error function.
float geluErf(float x) {
  return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
}

std::int64_t power(std::int64_t base, std::int64_t exponent) {
  if (exponent < 0)
    return base == 1 ? 1 : base == -1 ? (exponent % 2 ? -1 : 1) : 0;
  std::uint64_t result = 1, factor = std::uint64_t(base);
  for (; exponent; exponent >>= 1, factor *= factor)
    if (exponent & 1)
      result *= factor;
  return std::int64_t(result);
}

} // namespace

bool isComparison(BinaryOpType op) {
  switch (op) {
  case BinaryOpType::EQUAL:
  case BinaryOpType::GREATER_THAN_EQUAL:
  case BinaryOpType::GREATER_THAN:
  case BinaryOpType::LESS_THAN_EQUAL:
  case BinaryOpType::LESS_THAN:
  case BinaryOpType::NOT_EQUAL:
    return true;
  default:
    return false;
  }
}

bool isPredicate(UnaryOpType op) {
  return op == UnaryOpType::IS_FINITE || op == UnaryOpType::IS_INF ||
         op == UnaryOpType::IS_NAN;
}

void applyUnary(UnaryOpType op, const float *a, float *out, std::size_t n) {
  using T = UnaryOpType;
  switch (op) {
  case T::ABSOLUTE:
    return each(a, out, n, [](float x) { return std::fabs(x); });
  case T::ASIN:
    return each(a, out, n, [](float x) { return std::asin(x); });
  case T::CBRT:
    return each(a, out, n, [](float x) { return std::cbrt(x); });
  case T::CEIL:
    return each(a, out, n, [](float x) { return std::ceil(x); });
  case T::COS:
    return each(a, out, n, [](float x) { return std::cos(x); });
  case T::ERF:
    return each(a, out, n, [](float x) { return std::erf(x); });
  case T::EXPONENT:
    return each(a, out, n, [](float x) { return std::exp(x); });
  case T::EXPONENT_MINUS_ONE:
    return each(a, out, n, [](float x) { return std::expm1(x); });
  case T::EXPONENT2:
    return each(a, out, n, [](float x) { return std::exp2(x); });
  case T::FLOOR:
    return each(a, out, n, [](float x) { return std::floor(x); });
  case T::GELU_ERF:
    return each(a, out, n, geluErf);
  case T::INVERSE:
    return each(a, out, n, [](float x) { return 1.0f / x; });
  case T::LOGARITHM:
    return each(a, out, n, [](float x) { return std::log(x); });
  case T::LOGARITHM_ONE_PLUS:
    return each(a, out, n, [](float x) { return std::log1p(x); });
  case T::NEGATE:
    return each(a, out, n, [](float x) { return -x; });
  case T::NEARBY_INT:
    return each(a, out, n, [](float x) { return std::nearbyint(x); });
  case T::RELU:
    return each(a, out, n, [](float x) { return x > 0 ? x : 0.0f; });
  case T::SIGNUM:
    return each(a, out, n, signum);
  case T::SIN:
    return each(a, out, n, [](float x) { return std::sin(x); });
  case T::TAN:
    return each(a, out, n, [](float x) { return std::tan(x); });
  case T::TANH:
    return each(a, out, n, [](float x) { return std::tanh(x); });
  case T::ROUND:
    return each(a, out, n, [](float x) { return std::round(x); });
  case T::SQRT:
    return each(a, out, n, [](float x) { return std::sqrt(x); });
  case T::SQUARE:
    return each(a, out, n, [](float x) { return x * x; });
  case T::SIGMOID:
    return each(a, out, n,
                [](float x) { return 1.0f / (1.0f + std::exp(-x)); });
  case T::RSQRT:
    return each(a, out, n, [](float x) { return 1.0f / std::sqrt(x); });
  case T::TRUNC:
    return each(a, out, n, [](float x) { return std::trunc(x); });
  default:
    unsupported("unary", int(op), "floating-point numbers");
  }
}

void applyPredicate(UnaryOpType op, const float *a, std::int64_t *out,
                    std::size_t n) {
  switch (op) {
  case UnaryOpType::IS_FINITE:
    return each(a, out, n, [](float x) { return std::isfinite(x); });
  case UnaryOpType::IS_INF:
    return each(a, out, n, [](float x) { return std::isinf(x); });
  default:
    return each(a, out, n, [](float x) { return std::isnan(x); });
  }
}

void applyUnary(UnaryOpType op, unsigned bits, bool isBool,
                const std::int64_t *a, std::int64_t *out, std::size_t n) {
  using T = UnaryOpType;
  using I = std::int64_t;
  const std::uint64_t mask = maskOf(bits);
  switch (op) {
  case T::ABSOLUTE:
    return each(a, out, n, [](I x) { return x < 0 ? -x : x; });
  case T::BITWISE_NOT:
    return each(a, out, n, [](I x) { return ~x; });
  case T::COUNT_LEADING_ZEROS:
    return each(a, out, n, [=](I x) {
      const std::uint64_t value = std::uint64_t(x) & mask;
      return I(value ? unsigned(__builtin_clzll(value)) - (64 - bits) : bits);
    });
  case T::LOGICAL_NOT:
    return each(a, out, n, [](I x) { return I(x == 0); });
  case T::NEGATE:
    return each(a, out, n, [](I x) { return I(-std::uint64_t(x)); });
  case T::POPCOUNT:
    return each(a, out, n, [=](I x) {
      return I(__builtin_popcountll(std::uint64_t(x) & mask));
    });
  case T::RELU:
    return each(a, out, n, [](I x) { return std::max<I>(x, 0); });
  case T::SIGNUM:
    return each(a, out, n, [](I x) { return I((x > 0) - (x < 0)); });
  case T::SQUARE:
    return each(a, out, n,
                [](I x) { return I(std::uint64_t(x) * std::uint64_t(x)); });
  case T::SQRT:
    return each(a, out, n, [](I x) { return I(std::sqrt(double(x))); });
  case T::CBRT:
    return each(a, out, n, [](I x) { return I(std::cbrt(double(x))); });
  default:
    unsupported("unary", int(op), isBool ? "bool" : "integers");
  }
}

void applyBinary(BinaryOpType op, const float *a, const float *b, float *out,
                 std::size_t n) {
  using T = BinaryOpType;
  switch (op) {
  case T::ADD:
    return each(a, b, out, n, [](float x, float y) { return x + y; });
  case T::ATAN2:
    return each(a, b, out, n,
                [](float x, float y) { return std::atan2(x, y); });
  case T::DIVIDE:
    return each(a, b, out, n, [](float x, float y) { return x / y; });
  case T::INV_STD_DEV_TO_VARIANCE:
    return each(a, b, out, n,
                [](float x, float eps) { return 1.0f / (x * x) - eps; });
  case T::MAXIMUM:
    return each(a, b, out, n, [](float x, float y) { return std::fmax(x, y); });
  case T::MINIMUM:
    return each(a, b, out, n, [](float x, float y) { return std::fmin(x, y); });
  case T::MULTIPLY:
    return each(a, b, out, n, [](float x, float y) { return x * y; });
  case T::POWER:
    return each(a, b, out, n, [](float x, float y) { return std::pow(x, y); });
  case T::REMAINDER:
    return each(a, b, out, n, [](float x, float y) { return std::fmod(x, y); });
  case T::SUBTRACT:
    return each(a, b, out, n, [](float x, float y) { return x - y; });
  case T::VARIANCE_TO_INV_STD_DEV:
    return each(a, b, out, n,
                [](float x, float eps) { return 1.0f / std::sqrt(x + eps); });
  default:
    unsupported("binary", int(op), "floating-point numbers");
  }
}

void applyBinary(BinaryOpType op, unsigned bits, const std::int64_t *a,
                 const std::int64_t *b, std::int64_t *out, std::size_t n) {
  using T = BinaryOpType;
  using I = std::int64_t;
  using U = std::uint64_t;
  const U mask = maskOf(bits);
  switch (op) {
  case T::ADD:
    return each(a, b, out, n, [](I x, I y) { return I(U(x) + U(y)); });
  case T::SUBTRACT:
    return each(a, b, out, n, [](I x, I y) { return I(U(x) - U(y)); });
  case T::MULTIPLY:
    return each(a, b, out, n, [](I x, I y) { return I(U(x) * U(y)); });
  case T::DIVIDE:
    return each(a, b, out, n, [](I x, I y) { return x / divisor(y); });
  case T::REMAINDER:
    return each(a, b, out, n, [](I x, I y) { return x % divisor(y); });
  case T::POWER:
    return each(a, b, out, n, power);
  case T::MAXIMUM:
    return each(a, b, out, n, [](I x, I y) { return std::max(x, y); });
  case T::MINIMUM:
    return each(a, b, out, n, [](I x, I y) { return std::min(x, y); });
  case T::BITWISE_AND:
    return each(a, b, out, n, [](I x, I y) { return x & y; });
  case T::BITWISE_OR:
    return each(a, b, out, n, [](I x, I y) { return x | y; });
  case T::BITWISE_XOR:
    return each(a, b, out, n, [](I x, I y) { return x ^ y; });
  case T::BITWISE_XNOR:
    return each(a, b, out, n, [](I x, I y) { return ~(x ^ y); });
  case T::LOGICAL_AND:
    return each(a, b, out, n, [](I x, I y) { return I(x && y); });
  case T::LOGICAL_OR:
    return each(a, b, out, n, [](I x, I y) { return I(x || y); });
  case T::SHIFT_LEFT:
    return each(a, b, out, n,
                [=](I x, I y) { return U(y) >= bits ? 0 : I(U(x) << y); });
  case T::SHIFT_RIGHT:
    return each(a, b, out, n, [=](I x, I y) {
      return U(y) >= bits ? 0 : I((U(x) & mask) >> y);
    });
  case T::SHIFT_RIGHT_SIGN_EXTEND:
    return each(a, b, out, n,
                [=](I x, I y) { return x >> std::min<I>(y, 63); });
  case T::EQUAL:
    return each(a, b, out, n, [](I x, I y) { return I(x == y); });
  case T::NOT_EQUAL:
    return each(a, b, out, n, [](I x, I y) { return I(x != y); });
  case T::GREATER_THAN:
    return each(a, b, out, n, [](I x, I y) { return I(x > y); });
  case T::GREATER_THAN_EQUAL:
    return each(a, b, out, n, [](I x, I y) { return I(x >= y); });
  case T::LESS_THAN:
    return each(a, b, out, n, [](I x, I y) { return I(x < y); });
  case T::LESS_THAN_EQUAL:
    return each(a, b, out, n, [](I x, I y) { return I(x <= y); });
  default:
    unsupported("binary", int(op), "integers");
  }
}

void applyComparison(BinaryOpType op, const float *a, const float *b,
                     std::int64_t *out, std::size_t n) {
  using T = BinaryOpType;
  switch (op) {
  case T::EQUAL:
    return each(a, b, out, n, [](float x, float y) { return x == y; });
  case T::NOT_EQUAL:
    return each(a, b, out, n, [](float x, float y) { return x != y; });
  case T::GREATER_THAN:
    return each(a, b, out, n, [](float x, float y) { return x > y; });
  case T::GREATER_THAN_EQUAL:
    return each(a, b, out, n, [](float x, float y) { return x >= y; });
  case T::LESS_THAN:
    return each(a, b, out, n, [](float x, float y) { return x < y; });
  default:
    return each(a, b, out, n, [](float x, float y) { return x <= y; });
  }
}

} // namespace popemu
