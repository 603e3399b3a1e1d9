// Cross-entropy over rows of scores, its gradient, and argmax: one or two
// passes over each row, which stays in cache.
#include <cmath>
#include <limits>

#include "formats.hpp"
#include "vector_math.hpp"

namespace bert_ipu {
namespace {

template <typename T> float row_max(const T *row, int64_t classes) {
  float most = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : most)
  for (int64_t c = 0; c < classes; ++c) {
    const float value = load(row[c]);
    most = value > most ? value : most;
  }
  return most;
}

template <typename T> float row_log_sum_exp(const T *row, int64_t classes) {
  const float most = row_max(row, classes);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < classes; ++c)
    sum += exp_fast(load(row[c]) - most);
  return most + std::log(sum);
}

// loss = log(sum(exp(row))) - row[label], 0 for an ignored row; log_sum_exp is
// kept for the gradient.
template <typename T>
void forward(const T *logits, const int32_t *labels, int64_t rows,
             int64_t classes, int64_t ignored, T *loss, float *log_sum_exp) {
#pragma omp parallel for schedule(static) if (rows * classes >= (1 << 15))
  for (int64_t r = 0; r < rows; ++r) {
    const T *row = logits + r * classes;
    const bool counts =
        labels[r] != ignored && labels[r] >= 0 && labels[r] < classes;
    log_sum_exp[r] = counts ? row_log_sum_exp(row, classes) : 0.0f;
    store(&loss[r], counts ? log_sum_exp[r] - load(row[labels[r]]) : 0.0f);
  }
}

// out = share[r] * (softmax(row) - one_hot(label)); an ignored row gets zeros.
// `out` may be `logits`.
template <typename T>
void backward(const T *logits, const int32_t *labels, const float *log_sum_exp,
              const T *share, int64_t rows, int64_t classes, int64_t ignored,
              T *out) {
#pragma omp parallel for schedule(static) if (rows * classes >= (1 << 15))
  for (int64_t r = 0; r < rows; ++r) {
    const T *row = logits + r * classes;
    T *target = out + r * classes;
    const bool counts =
        labels[r] != ignored && labels[r] >= 0 && labels[r] < classes;
    if (!counts) {
      for (int64_t c = 0; c < classes; ++c)
        store(&target[c], 0.0f);
      continue;
    }
    const float scale = load(share[r]), shift = log_sum_exp[r];
    const float at_label =
        (std::exp(load(row[labels[r]]) - shift) - 1.0f) * scale;
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c)
      store(&target[c], exp_fast(load(row[c]) - shift) * scale);
    store(&target[labels[r]], at_label);
  }
}

// The first index of the largest value; a NaN counts as the largest, as in
// torch.
template <typename T>
void argmax(const T *x, int64_t rows, int64_t classes, int32_t *out) {
#pragma omp parallel for schedule(static) if (rows * classes >= (1 << 15))
  for (int64_t r = 0; r < rows; ++r) {
    const T *row = x + r * classes;
    float most = row_max(row, classes);
    int odd = 0;
#pragma omp simd reduction(| : odd)
    for (int64_t c = 0; c < classes; ++c)
      odd |= load(row[c]) != load(row[c]);
    int64_t at = 0;
    while (at + 1 < classes &&
           (odd ? load(row[at]) == load(row[at]) : load(row[at]) != most))
      ++at;
    out[r] = int32_t(at);
  }
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

void bert_ipu_cross_entropy_f32(const float *logits, const int32_t *labels,
                                int64_t rows, int64_t classes, int64_t ignored,
                                float *loss, float *log_sum_exp) {
  forward(logits, labels, rows, classes, ignored, loss, log_sum_exp);
}

void bert_ipu_cross_entropy_bf16(const bfloat16 *logits, const int32_t *labels,
                                 int64_t rows, int64_t classes, int64_t ignored,
                                 bfloat16 *loss, float *log_sum_exp) {
  forward(logits, labels, rows, classes, ignored, loss, log_sum_exp);
}

void bert_ipu_cross_entropy_grad_f32(const float *logits, const int32_t *labels,
                                     const float *log_sum_exp,
                                     const float *share, int64_t rows,
                                     int64_t classes, int64_t ignored,
                                     float *out) {
  backward(logits, labels, log_sum_exp, share, rows, classes, ignored, out);
}

void bert_ipu_cross_entropy_grad_bf16(const bfloat16 *logits,
                                      const int32_t *labels,
                                      const float *log_sum_exp,
                                      const bfloat16 *share, int64_t rows,
                                      int64_t classes, int64_t ignored,
                                      bfloat16 *out) {
  backward(logits, labels, log_sum_exp, share, rows, classes, ignored, out);
}

void bert_ipu_argmax_f32(const float *x, int64_t rows, int64_t classes,
                         int32_t *out) {
  argmax(x, rows, classes, out);
}

void bert_ipu_argmax_bf16(const bfloat16 *x, int64_t rows, int64_t classes,
                          int32_t *out) {
  argmax(x, rows, classes, out);
}
}
