// SGD, Adam and LAMB in one or two passes over a weight; formulas as in
// graph/ops.py, from PopART's sgd.hpp and adam.hpp.
#include <xmmintrin.h>

#include <cmath>
#include <cstdint>

#include "formats.hpp"

namespace bert_ipu {

// What is the same for all elements of one weight.
struct AdamScalars {
  float gradient_factor, beta1, beta2;
  float rest1, rest2; // 1 - beta, from the unrounded beta: 1 - 0.999f is off
                      // by 5e-5
  float eps, weight_decay, rate;
  float bias1, bias2; // 1 - beta^step, or 1 without correction
  float max_weight_norm;
};

namespace {

constexpr int64_t kBlock = 1 << 12;

// Moments of weights that never get a gradient decay into denormal numbers,
// which cost a hundred times more.
class FlushDenormals {
public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals &) = delete;
  FlushDenormals &operator=(const FlushDenormals &) = delete;

private:
  unsigned saved_;
};

// w = w * decay - g * rate.
template <typename G>
void sgd(float *__restrict w, const G *__restrict g, int64_t n, float decay,
         float rate) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (blocks > 4)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t end = (b + 1) * kBlock < n ? (b + 1) * kBlock : n;
#pragma omp simd
    for (int64_t i = b * kBlock; i < end; ++i)
      w[i] = w[i] * decay - load(g[i]) * rate;
  }
}

inline float direction(float w, float m, float v, float inverse1,
                       float inverse2, const AdamScalars &s) {
  return m * inverse1 / (std::sqrt(v * inverse2) + s.eps) + s.weight_decay * w;
}

template <typename G>
void adam(float *__restrict w, const G *__restrict g, float *__restrict m,
          float *__restrict v, int64_t n, const AdamScalars &given) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel if (blocks > 4)
  {
    const FlushDenormals flush;
    const AdamScalars s = given;
    const float inverse1 = 1.0f / s.bias1, inverse2 = 1.0f / s.bias2;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t end = (b + 1) * kBlock < n ? (b + 1) * kBlock : n;
#pragma omp simd
      for (int64_t i = b * kBlock; i < end; ++i) {
        const float gradient = load(g[i]) * s.gradient_factor;
        const float first = s.beta1 * m[i] + s.rest1 * gradient;
        const float second = s.beta2 * v[i] + s.rest2 * gradient * gradient;
        m[i] = first;
        v[i] = second;
        w[i] -= s.rate * direction(w[i], first, second, inverse1, inverse2, s);
      }
    }
  }
}

// The weight's norm over the step's, 1 where either is 0.
float trust_ratio(double weight_square, double step_square,
                  float max_weight_norm) {
  const float weight_norm = std::sqrt(float(weight_square)),
              step_norm = std::sqrt(float(step_square));
  const float capped =
      weight_norm < max_weight_norm ? weight_norm : max_weight_norm;
  return weight_norm == 0.0f || step_norm == 0.0f ? 1.0f : capped / step_norm;
}

template <typename G>
void lamb(float *__restrict w, const G *__restrict g, float *__restrict m,
          float *__restrict v, int64_t n, const AdamScalars &given) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  double weight_square = 0.0, step_square = 0.0;
  float rate = 0.0f;
#pragma omp parallel if (blocks > 4)
  {
    const FlushDenormals flush;
    const AdamScalars s = given;
    const float inverse1 = 1.0f / s.bias1, inverse2 = 1.0f / s.bias2;
#pragma omp for schedule(static) reduction(+ : weight_square, step_square)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t end = (b + 1) * kBlock < n ? (b + 1) * kBlock : n;
      float weights = 0.0f, steps = 0.0f;
#pragma omp simd reduction(+ : weights, steps)
      for (int64_t i = b * kBlock; i < end; ++i) {
        const float gradient = load(g[i]) * s.gradient_factor;
        const float first = s.beta1 * m[i] + s.rest1 * gradient;
        const float second = s.beta2 * v[i] + s.rest2 * gradient * gradient;
        m[i] = first;
        v[i] = second;
        const float step =
            direction(w[i], first, second, inverse1, inverse2, s);
        weights += w[i] * w[i];
        steps += step * step;
      }
      weight_square += double(weights);
      step_square += double(steps);
    }
#pragma omp single
    rate = s.rate * trust_ratio(weight_square, step_square, s.max_weight_norm);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t end = (b + 1) * kBlock < n ? (b + 1) * kBlock : n;
#pragma omp simd
      for (int64_t i = b * kBlock; i < end; ++i)
        w[i] -= rate * direction(w[i], m[i], v[i], inverse1, inverse2, s);
    }
  }
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_sgd_f32(float *w, const float *g, int64_t n, float decay,
                      float rate) {
  sgd(w, g, n, decay, rate);
}

void bert_ipu_sgd_bf16(float *w, const bfloat16 *g, int64_t n, float decay,
                       float rate) {
  sgd(w, g, n, decay, rate);
}

void bert_ipu_adam_f32(float *w, const float *g, float *m, float *v, int64_t n,
                       const AdamScalars *s) {
  adam(w, g, m, v, n, *s);
}

void bert_ipu_adam_bf16(float *w, const bfloat16 *g, float *m, float *v,
                        int64_t n, const AdamScalars *s) {
  adam(w, g, m, v, n, *s);
}

void bert_ipu_lamb_f32(float *w, const float *g, float *m, float *v, int64_t n,
                       const AdamScalars *s) {
  lamb(w, g, m, v, n, *s);
}

void bert_ipu_lamb_bf16(float *w, const bfloat16 *g, float *m, float *v,
                        int64_t n, const AdamScalars *s) {
  lamb(w, g, m, v, n, *s);
}
}
