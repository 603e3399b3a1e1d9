// Layer norm over rows with what stands before it in a residual block, dropout
// and an addition; and its gradient with what follows.
#include <omp.h>

#include <cmath>
#include <vector>

#include "dropout.hpp"
#include "formats.hpp"

namespace bert_ipu {

struct NormShape {
  int64_t rows, columns;
  float eps;
  Dropout dropout;
};

namespace {

constexpr int64_t kParallelFrom = 1 << 14;

template <typename T> void load_row(const T *x, float *row, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c)
    row[c] = load(x[c]);
}

template <typename T> void add_row(const T *x, float *row, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c)
    row[c] += load(x[c]);
}

template <typename T> void store_row(T *target, const float *row, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c)
    store(&target[c], row[c]);
}

struct Moments {
  float mean, rstd;
};

// Two passes: the difference of squares would cancel.
Moments moments_of(const float *row, int64_t n, float eps) {
  float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < n; ++c)
    sum += row[c];
  const float mean = sum / float(n);
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < n; ++c)
    squares += (row[c] - mean) * (row[c] - mean);
  return {mean, 1.0f / std::sqrt(squares / float(n) + eps)};
}

// sum = dropout(x) + residual; out = (sum - mean) * rstd * weight + bias.
template <typename T>
void forward(const T *x, const T *residual, const T *weight, const T *bias,
             T *sum, T *out, float *mean, float *rstd, const NormShape &s) {
#pragma omp parallel if (s.rows * s.columns >= kParallelFrom)
  {
    std::vector<float> held(size_t(s.columns));
    float *row = held.data();
#pragma omp for schedule(static)
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t at = r * s.columns;
      load_row(x + at, row, s.columns);
      if (s.dropout.drops())
        s.dropout.apply(row, at, s.columns);
      add_row(residual + at, row, s.columns);
      store_row(sum + at, row, s.columns);
      const Moments m = moments_of(row, s.columns, s.eps);
      mean[r] = m.mean;
      rstd[r] = m.rstd;
#pragma omp simd
      for (int64_t c = 0; c < s.columns; ++c)
        store(&out[at + c],
              (row[c] - m.mean) * m.rstd * load(weight[c]) + load(bias[c]));
    }
  }
}

// What one row's gradient is, and what it adds to those of weight and bias.
template <typename T>
void gradient_of_row(float *gradient, const T *x, const T *weight,
                     const Moments &m, int64_t n, float *weight_sum,
                     float *bias_sum) {
  float first = 0.0f, second = 0.0f;
#pragma omp simd reduction(+ : first, second)
  for (int64_t c = 0; c < n; ++c) {
    const float normal = (load(x[c]) - m.mean) * m.rstd;
    const float scaled = gradient[c] * load(weight[c]);
    weight_sum[c] += gradient[c] * normal;
    bias_sum[c] += gradient[c];
    first += scaled;
    second += scaled * normal;
  }
  first /= float(n);
  second /= float(n);
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    const float normal = (load(x[c]) - m.mean) * m.rstd;
    gradient[c] =
        m.rstd * (gradient[c] * load(weight[c]) - first - normal * second);
  }
}

// The gradient arrives in one part or two; `dropped` is what the dropout before
// the addition passes on.
template <typename T>
void backward(const T *gradient, const T *other, const T *x, const float *mean,
              const float *rstd, const T *weight, T *out, T *dropped,
              T *weight_gradient, T *bias_gradient, const NormShape &s) {
  std::vector<float> weight_total(size_t(s.columns)),
      bias_total(size_t(s.columns));
#pragma omp parallel if (s.rows * s.columns >= kParallelFrom)
  {
    std::vector<float> held(size_t(s.columns)), weight_sum(size_t(s.columns)),
        bias_sum(size_t(s.columns));
    float *row = held.data();
#pragma omp for schedule(static)
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t at = r * s.columns;
      load_row(gradient + at, row, s.columns);
      if (other != nullptr)
        add_row(other + at, row, s.columns);
      gradient_of_row(row, x + at, weight, Moments{mean[r], rstd[r]}, s.columns,
                      weight_sum.data(), bias_sum.data());
      store_row(out + at, row, s.columns);
      if (s.dropout.drops()) {
        s.dropout.apply(row, at, s.columns);
        store_row(dropped + at, row, s.columns);
      }
    }
    // In the threads' order, so that a run can be repeated.
#pragma omp for ordered schedule(static, 1)
    for (int thread = 0; thread < omp_get_num_threads(); ++thread) {
#pragma omp ordered
      {
        add_row(weight_sum.data(), weight_total.data(), s.columns);
        add_row(bias_sum.data(), bias_total.data(), s.columns);
      }
    }
  }
  store_row(weight_gradient, weight_total.data(), s.columns);
  store_row(bias_gradient, bias_total.data(), s.columns);
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_add_norm_f32(const float *x, const float *residual,
                           const float *weight, const float *bias, float *sum,
                           float *out, float *mean, float *rstd,
                           const NormShape *shape) {
  forward(x, residual, weight, bias, sum, out, mean, rstd, *shape);
}

void bert_ipu_add_norm_bf16(const bfloat16 *x, const bfloat16 *residual,
                            const bfloat16 *weight, const bfloat16 *bias,
                            bfloat16 *sum, bfloat16 *out, float *mean,
                            float *rstd, const NormShape *shape) {
  forward(x, residual, weight, bias, sum, out, mean, rstd, *shape);
}

void bert_ipu_norm_grad_f32(const float *gradient, const float *other,
                            const float *x, const float *mean,
                            const float *rstd, const float *weight, float *out,
                            float *dropped, float *weight_gradient,
                            float *bias_gradient, const NormShape *shape) {
  backward(gradient, other, x, mean, rstd, weight, out, dropped,
           weight_gradient, bias_gradient, *shape);
}

void bert_ipu_norm_grad_bf16(const bfloat16 *gradient, const bfloat16 *other,
                             const bfloat16 *x, const float *mean,
                             const float *rstd, const bfloat16 *weight,
                             bfloat16 *out, bfloat16 *dropped,
                             bfloat16 *weight_gradient, bfloat16 *bias_gradient,
                             const NormShape *shape) {
  backward(gradient, other, x, mean, rstd, weight, out, dropped,
           weight_gradient, bias_gradient, *shape);
}
}
