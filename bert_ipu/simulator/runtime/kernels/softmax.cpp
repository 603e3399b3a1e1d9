// Softmax over rows with what stands around it in attention: the scores' scale,
// the mask that is added, and dropout; and the gradient of all of it.
#include <cmath>
#include <limits>
#include <vector>

#include "dropout.hpp"
#include "formats.hpp"
#include "vector_math.hpp"

namespace bert_ipu {

// Scores [batches, heads, rows, columns]; `bias` is added to the scaled scores,
// with these strides over batches and rows.
struct SoftmaxShape {
  int64_t batches, heads, rows, columns, bias_batch, bias_row;
  float scale;
  Dropout dropout;
};

namespace {

constexpr int64_t kParallelFrom = 1 << 14;

// exp(x - most) with exact zeros for what is masked: denormal numbers would
// slow down whatever reads them.
inline float exp_or_zero(float x) { return x < -80.0f ? 0.0f : exp_fast(x); }

template <typename T>
void load_scores(const T *x, const T *bias, int64_t columns, float scale,
                 float *row) {
  if (bias == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c)
      row[c] = load(x[c]) * scale;
  } else {
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c)
      row[c] = load(x[c]) * scale + load(bias[c]);
  }
}

void softmax_row(float *row, int64_t columns) {
  float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
  for (int64_t c = 0; c < columns; ++c)
    most = row[c] > most ? row[c] : most;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < columns; ++c) {
    // NaN and rows of nothing but -infinity give NaN, as in torch.
    const float shifted = row[c] - most;
    row[c] = shifted != shifted ? shifted : exp_or_zero(shifted);
    sum += row[c];
  }
  const float inverse = 1.0f / sum;
#pragma omp simd
  for (int64_t c = 0; c < columns; ++c)
    row[c] *= inverse;
}

template <typename T> void store_row(T *target, const float *row, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c)
    store(&target[c], row[c]);
}

template <typename T>
void forward(const T *x, const T *bias, T *out, T *dropped,
             const SoftmaxShape &s) {
  const int64_t all = s.batches * s.heads * s.rows;
#pragma omp parallel if (all * s.columns >= kParallelFrom)
  {
    std::vector<float> row(size_t(s.columns));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < all; ++r) {
      const int64_t batch = r / (s.heads * s.rows), at = r * s.columns;
      const T *added =
          bias ? bias + batch * s.bias_batch + r % s.rows * s.bias_row
               : nullptr;
      load_scores(x + at, added, s.columns, s.scale, row.data());
      softmax_row(row.data(), s.columns);
      store_row(out + at, row.data(), s.columns);
      if (s.dropout.drops()) {
        s.dropout.apply(row.data(), at, s.columns);
        store_row(dropped + at, row.data(), s.columns);
      }
    }
  }
}

// out = scale * p * (g - sum(g * p)), where g is dropped out first.
template <typename T>
void backward(const T *gradient, const T *probabilities, T *out,
              const SoftmaxShape &s) {
  const int64_t all = s.batches * s.heads * s.rows;
#pragma omp parallel if (all * s.columns >= kParallelFrom)
  {
    std::vector<float> row(size_t(s.columns));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < all; ++r) {
      const int64_t at = r * s.columns;
      const T *p = probabilities + at;
      load_scores(gradient + at, static_cast<const T *>(nullptr), s.columns,
                  1.0f, row.data());
      if (s.dropout.drops())
        s.dropout.apply(row.data(), at, s.columns);
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < s.columns; ++c)
        sum += row[size_t(c)] * load(p[c]);
#pragma omp simd
      for (int64_t c = 0; c < s.columns; ++c)
        store(&out[at + c], s.scale * load(p[c]) * (row[size_t(c)] - sum));
    }
  }
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_softmax_f32(const float *x, const float *bias, float *out,
                          float *dropped, const SoftmaxShape *shape) {
  forward(x, bias, out, dropped, *shape);
}

void bert_ipu_softmax_bf16(const bfloat16 *x, const bfloat16 *bias,
                           bfloat16 *out, bfloat16 *dropped,
                           const SoftmaxShape *shape) {
  forward(x, bias, out, dropped, *shape);
}

void bert_ipu_softmax_grad_f32(const float *gradient,
                               const float *probabilities, float *out,
                               const SoftmaxShape *shape) {
  backward(gradient, probabilities, out, *shape);
}

void bert_ipu_softmax_grad_bf16(const bfloat16 *gradient,
                                const bfloat16 *probabilities, bfloat16 *out,
                                const SoftmaxShape *shape) {
  backward(gradient, probabilities, out, *shape);
}
}
