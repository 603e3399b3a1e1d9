// The exact GELU, x times the normal distribution function of x, and its
// gradient.
#include "formats.hpp"
#include "vector_math.hpp"

namespace bert_ipu {
namespace {

constexpr int64_t kBlock = 1 << 12;

// Distribution and density of the standard normal distribution at x. The first
// by formula 7.1.26 of Abramowitz and Stegun, "Handbook of Mathematical
// Functions" (1964), with an absolute error below 2e-7.
struct Normal {
  float distribution, density;
};

inline Normal normal_at(float x) {
  const float size = __builtin_fabsf(x) * 0.70710678f;
  const float bell = exp_fast(-0.5f * x * x);
  const float t = 1.0f / (1.0f + 0.3275911f * size);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * p * t * bell;
  return {x < 0.0f ? tail : 1.0f - tail, 0.39894228f * bell};
}

template <typename T> void forward(const T *x, T *out, int64_t n) {
#pragma omp parallel for schedule(static) if (n > 4 * kBlock)
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = start + kBlock < n ? start + kBlock : n;
#pragma omp simd
    for (int64_t i = start; i < end; ++i) {
      const float value = load(x[i]);
      store(&out[i], value * normal_at(value).distribution);
    }
  }
}

template <typename T>
void backward(const T *gradient, const T *x, T *out, int64_t n) {
#pragma omp parallel for schedule(static) if (n > 4 * kBlock)
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = start + kBlock < n ? start + kBlock : n;
#pragma omp simd
    for (int64_t i = start; i < end; ++i) {
      const float value = load(x[i]);
      const Normal normal = normal_at(value);
      store(&out[i],
            load(gradient[i]) * (normal.distribution + value * normal.density));
    }
  }
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_gelu_f32(const float *x, float *out, int64_t n) {
  forward(x, out, n);
}

void bert_ipu_gelu_bf16(const bfloat16 *x, bfloat16 *out, int64_t n) {
  forward(x, out, n);
}

void bert_ipu_gelu_grad_f32(const float *gradient, const float *x, float *out,
                            int64_t n) {
  backward(gradient, x, out, n);
}

void bert_ipu_gelu_grad_bf16(const bfloat16 *gradient, const bfloat16 *x,
                             bfloat16 *out, int64_t n) {
  backward(gradient, x, out, n);
}
}
