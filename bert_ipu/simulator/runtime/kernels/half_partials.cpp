// Products of matrices of fp16 values (in floats) whose partial sums are fp16
// too, as Poplar makes them with half partials: kProducts products are added up
// in float, then to an fp16 sum. The depth is divided into shares, one for each
// tile that the device would give a part of it; their sums are added in float.
//
// What is rounded at random takes its bits tile by tile: one group of words
// rounds kRows x kColumns sums once.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "half_rounding.hpp"
#include "philox.hpp"

namespace bert_ipu {

// c[batch] = a[batch] b[batch], all strides in elements; c is dense. A stream
// has a whole number of batches.
struct PartialsProduct {
  const float *a, *b;
  float *c;
  int64_t batches, rows, columns, depth;
  int64_t share; // of the depth; a multiple of kProducts
  int64_t a_batch, a_row, a_column, b_batch, b_row, b_column;
  int64_t streams;
};

namespace {

constexpr int64_t kProducts = 16;
constexpr int64_t kRows = 4, kColumns = 2 * kLanes;
constexpr int64_t kBlock = 64; // strips of kRows rows that share packed columns
constexpr int64_t kParallelFrom = 1 << 16;
constexpr int kVectors = kRows * 2;
static_assert(kRows * kColumns == 2 * kGroup, "a group rounds a tile");

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The sums of a tile, rounded for the `time`-th time.
struct ToNearest {
  uint32_t overflow;
  void operator()(Floats sums[kVectors], int64_t, int64_t) const {
    for (int i = 0; i < kVectors; ++i)
      sums[i] = Floats(round_to_nearest(Bits(sums[i]), overflow));
  }
};

struct Stochastically {
  uint32_t overflow;
  Draw draw;
  int64_t before, tiles; // of this batch's stream, and in all of the stream
  void operator()(Floats sums[kVectors], int64_t tile, int64_t time) const {
    alignas(64) uint32_t words[kGroup];
    philox_group<kRoundsOfRounding>(
        draw, uint64_t(time * tiles + before + tile), words);
    for (int i = 0; i < kVectors / 2; ++i) {
      const Bits random = load_bits(words + i * kLanes);
      Floats &second = sums[i + kVectors / 2];
      sums[i] = Floats(
          round_stochastically(Bits(sums[i]), random & 0xFFFFu, overflow));
      second =
          Floats(round_stochastically(Bits(second), random >> 16, overflow));
    }
  }
};

// sums += the products of up to kProducts packed rows and columns, in float.
inline void add_products(const float *a, const float *b, int64_t depth,
                         Floats sums[kVectors]) {
  Floats products[kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const Floats left = load_floats(b), right = load_floats(b + kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      products[2 * i] += a[i] * left;
      products[2 * i + 1] += a[i] * right;
    }
    a += kRows;
    b += kColumns;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i)
    sums[i] += products[i];
}

// totals += the sums of one share of the depth, which start at zero. `time`
// counts the roundings of the shares before.
template <typename Round>
void add_share(const float *a, const float *b, int64_t depth, int64_t time,
               int64_t tile, const Round &round, Floats totals[kVectors]) {
  Floats sums[kVectors] = {};
  for (int64_t k = 0; k < depth; k += kProducts) {
    add_products(a + k * kRows, b + k * kColumns,
                 std::min(kProducts, depth - k), sums);
    round(sums, tile, time++);
  }
  for (int i = 0; i < kVectors; ++i)
    totals[i] += sums[i];
}

// Width rows or columns side by side for each k; zeros after the `count` that
// the matrix still has.
template <int64_t Width>
void pack(const float *from, int64_t along, int64_t across, int64_t count,
          int64_t depth, float *to) {
  const int64_t filled = std::min(count, Width);
  if (filled < Width)
    std::fill(to, to + depth * Width, 0.0f);
  if (along == 1)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t i = 0; i < filled; ++i)
        to[k * Width + i] = from[i + k * across];
  else
    for (int64_t i = 0; i < filled; ++i)
      for (int64_t k = 0; k < depth; ++k)
        to[k * Width + i] = from[i * along + k * across];
}

void write_tile(const Floats tile[kVectors], float *c, int64_t rows,
                int64_t columns, int64_t c_row) {
  for (int64_t i = 0; i < std::min(rows, kRows); ++i)
    std::memcpy(c + i * c_row, tile + 2 * i,
                size_t(std::min(columns, kColumns)) * sizeof(float));
}

// Strips [first, last) of one batch.
template <typename Round>
void multiply_strips(const PartialsProduct &p, int64_t batch, int64_t first,
                     int64_t last, const Round &round) {
  const float *a = p.a + batch * p.a_batch, *b = p.b + batch * p.b_batch;
  float *c = p.c + batch * p.rows * p.columns;
  std::vector<float> strips(size_t((last - first) * kRows * p.depth)),
      panel(size_t(kColumns * std::min(p.share, p.depth)));
  std::vector<Floats> totals(size_t((last - first) * kVectors));
  for (int64_t strip = first; strip < last; ++strip)
    pack<kRows>(a + strip * kRows * p.a_row, p.a_row, p.a_column,
                p.rows - strip * kRows, p.depth,
                strips.data() + (strip - first) * kRows * p.depth);
  const int64_t panels = ceil_div(p.columns, kColumns);
  for (int64_t j = 0; j < panels; ++j) {
    std::fill(totals.begin(), totals.end(), Floats{});
    const float *columns = b + j * kColumns * p.b_column;
    for (int64_t start = 0; start < p.depth; start += p.share) {
      const int64_t depth = std::min(p.share, p.depth - start);
      pack<kColumns>(columns + start * p.b_row, p.b_column, p.b_row,
                     p.columns - j * kColumns, depth, panel.data());
      for (int64_t strip = first; strip < last; ++strip)
        add_share(strips.data() + ((strip - first) * p.depth + start) * kRows,
                  panel.data(), depth, start / kProducts, strip * panels + j,
                  round, totals.data() + (strip - first) * kVectors);
    }
    for (int64_t strip = first; strip < last; ++strip) {
      Floats *tile = totals.data() + (strip - first) * kVectors;
      if (p.share < p.depth)
        round(tile, strip * panels + j, ceil_div(p.depth, kProducts));
      write_tile(tile, c + strip * kRows * p.columns + j * kColumns,
                 p.rows - strip * kRows, p.columns - j * kColumns, p.columns);
    }
  }
}

} // namespace
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

// To the nearest where `places` is null.
void bert_ipu_half_partials_matmul(const PartialsProduct *product,
                                   float overflow, const uint32_t *key,
                                   uint32_t op, const uint32_t *places) {
  const PartialsProduct &p = *product;
  const int64_t strips = ceil_div(p.rows, kRows),
                panels = ceil_div(p.columns, kColumns);
  const int64_t per_stream = p.batches / p.streams;
  const int64_t shared = ceil_div(p.batches * strips, omp_get_max_threads());
  const int64_t block = std::max<int64_t>(1, std::min(kBlock, shared));
  const int64_t blocks = ceil_div(strips, block);
  const uint32_t limit = bits_of(overflow);
#pragma omp parallel for schedule(dynamic) if (p.batches * p.rows *            \
                                                       p.columns * p.depth >=  \
                                                   kParallelFrom)
  for (int64_t task = 0; task < p.batches * blocks; ++task) {
    const int64_t batch = task / blocks, first = task % blocks * block,
                  last = std::min(strips, first + block);
    if (places == nullptr)
      multiply_strips(p, batch, first, last, ToNearest{limit});
    else
      multiply_strips(
          p, batch, first, last,
          Stochastically{limit,
                         draw_at(key, op, places + 2 * (batch / per_stream)),
                         batch % per_stream * strips * panels,
                         per_stream * strips * panels});
  }
}
}
