// Products of float matrices with fp16 multiplications, for CPUs that do these
// at twice the rate of float ones (AVX512-FP16).
//
// Sums of kChunk products are taken in fp16 and added up in float. Each row of
// the left matrix and each column of the right one is scaled by a power of two
// first, so that neither its largest elements overflow nor its small ones
// vanish; what is lost is the rounding of operands to 11 bits and of the short
// sums, together less than bf16 operands lose.
//
// Blocking is that of Goto and van de Geijn, "Anatomy of High-Performance
// Matrix Multiplication" (2008): panels of kRows rows of the left matrix and
// kColumns columns of the right one are packed, and one tile of the result
// stays in registers.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "formats.hpp"
#include "transpose.hpp"

namespace bert_ipu {

// c[b0, b1] = a[b0, b1] b[b0, b1] (+ bias), all strides in elements; c's
// columns are adjacent. `row_sums`, where there is one batch, gets the sums of
// a's rows.
struct HalfProduct {
  const float *a, *b, *bias;
  float *c, *row_sums;
  int64_t rows, columns, depth;
  int64_t a_row, a_column, b_row, b_column, c_row;
  int64_t batches[2], a_batch[2], b_batch[2], c_batch[2];
};

#ifdef __AVX512FP16__
namespace {

constexpr int64_t kRows = 12, kColumns = 64, kChunk = 64, kLanes = 16;
constexpr int64_t kPanels = 8;         // panels of rows that stay in L2
constexpr int64_t kDepthBlock = 1024;  // of one packed block
constexpr int64_t kRowBlock = 4080;    // a multiple of kRows
constexpr int64_t kColumnBlock = 4096; // a multiple of kColumns
constexpr int64_t kStrip = 8;          // groups of lanes packed side by side
constexpr int64_t kStripRows = kStrip * kRows, kStripColumns = kStrip * kLanes;
constexpr int64_t kAhead = 8; // steps that packed values are fetched early
constexpr int64_t kParallelFrom = 1 << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__mmask16 first_lanes(int64_t count) {
  return __mmask16(count >= kLanes ? 0xFFFF : (1 << count) - 1);
}

// Powers of two that bring largest magnitudes to [8, 16), so that kChunk
// products cannot overflow, and their inverses. Infinities are left alone.
struct Scales {
  explicit Scales(__m512 largest) {
    const __m512i exponent =
        _mm512_srli_epi32(_mm512_castps_si512(largest), 23);
    const __m512i usual = _mm512_max_epi32(exponent, _mm512_set1_epi32(4));
    const __m512i chosen = _mm512_mask_mov_epi32(
        usual, _mm512_cmpeq_epi32_mask(exponent, _mm512_set1_epi32(255)),
        _mm512_set1_epi32(130));
    factor = _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_sub_epi32(_mm512_set1_epi32(257), chosen), 23));
    inverse = _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_sub_epi32(chosen, _mm512_set1_epi32(3)), 23));
  }
  __m512 factor, inverse;
};

__m256i to_half(__m512 x) { return _mm256_castph_si256(_mm512_cvtxps_ph(x)); }

// Each fp16 value twice in 32 bits: what a broadcast takes from memory.
__m512i to_half_twice(__m512 x) {
  const __m512i wide = _mm512_cvtepu16_epi32(to_half(x));
  return _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
}

// Where element (i, k) of a matrix is; a panel runs along i.
struct Source {
  const float *at;
  int64_t along, across; // strides of i and k
  const float *element(int64_t i, int64_t k) const {
    return at + i * along + k * across;
  }
};

// Up to 16 neighbouring i at one k, zeros beyond `count`.
__m512 load_lanes(const Source &s, int64_t i, int64_t k, int64_t count) {
  if (s.along == 1)
    return _mm512_maskz_loadu_ps(first_lanes(count), s.element(i, k));
  alignas(64) float lanes[kLanes] = {};
  for (int64_t l = 0; l < std::min(count, kLanes); ++l)
    lanes[l] = *s.element(i + l, k);
  return _mm512_load_ps(lanes);
}

// Largest magnitudes of `count` rows of adjacent k.
__m512 largest_of_rows(const Source &s, int64_t i, int64_t depth,
                       int64_t count) {
  alignas(64) float most[kLanes] = {};
  for (int64_t l = 0; l < std::min(count, kLanes); ++l) {
    __m512 row = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += kLanes)
      row =
          _mm512_max_ps(row, _mm512_abs_ps(_mm512_maskz_loadu_ps(
                                 first_lanes(depth - k), s.element(i + l, k))));
    most[l] = _mm512_reduce_max_ps(row);
  }
  return _mm512_load_ps(most);
}

// Packs up to 16 i whose k are adjacent: `store(k, 16 scaled values)`, 16 k at
// a time. Returns the inverse factors.
template <typename Store>
__m512 pack_rows_of(const Source &s, int64_t i, int64_t count, int64_t depth,
                    const Store &store) {
  const Scales scales(largest_of_rows(s, i, depth, count));
  alignas(64) float factors[kLanes];
  _mm512_store_ps(factors, scales.factor);
  for (int64_t k = 0; k < depth; k += kLanes) {
    __m512i rows[kLanes];
    const __mmask16 valid = first_lanes(depth - k);
#pragma GCC unroll 16
    for (int64_t l = 0; l < kLanes; ++l)
      rows[l] = l < count
                    ? _mm512_castps_si512(_mm512_mul_ps(
                          _mm512_set1_ps(factors[l]),
                          _mm512_maskz_loadu_ps(valid, s.element(i + l, k))))
                    : _mm512_setzero_si512();
    transpose_16x16(rows);
    for (int64_t l = 0; l < std::min(depth - k, kLanes); ++l)
      store(k + l, _mm512_castsi512_ps(rows[l]));
  }
  return scales.inverse;
}

// Packs `groups` groups of `step` neighbouring i, all of them at one k after
// the other, as memory has them: `store(group, k, 16 scaled values)`.
template <typename Store>
void pack_strip(const Source &s, int64_t first, int64_t end, int64_t step,
                int64_t groups, int64_t depth, float *inverses, float *sums,
                const Store &store) {
  __m512 largest[kStrip], totals[kStrip], factors[kStrip];
  int64_t counts[kStrip];
  for (int64_t g = 0; g < groups; ++g) {
    counts[g] = std::clamp<int64_t>(end - first - g * step, 0, step);
    largest[g] = totals[g] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t g = 0; g < groups; ++g) {
      const __m512 x = load_lanes(s, first + g * step, k, counts[g]);
      largest[g] = _mm512_max_ps(largest[g], _mm512_abs_ps(x));
      totals[g] = _mm512_add_ps(totals[g], x);
    }
  for (int64_t g = 0; g < groups; ++g) {
    const Scales scales(largest[g]);
    factors[g] = scales.factor;
    _mm512_mask_storeu_ps(inverses + g * step, first_lanes(step),
                          scales.inverse);
    if (sums != nullptr) {
      const __mmask16 valid = first_lanes(counts[g]);
      float *target = sums + first + g * step;
      _mm512_mask_storeu_ps(
          target, valid,
          _mm512_add_ps(totals[g], _mm512_maskz_loadu_ps(valid, target)));
    }
  }
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t g = 0; g < groups; ++g)
      store(g, k,
            _mm512_mul_ps(load_lanes(s, first + g * step, k, counts[g]),
                          factors[g]));
}

// Panels of [depth][kRows] fp16 values, each twice, for up to kStrip panels
// from row `first`.
void pack_rows(const Source &s, int64_t first, int64_t rows, int64_t depth,
               uint32_t *panels, float *inverses, float *sums) {
  const int64_t groups = std::min(kStrip, ceil_div(rows - first, kRows)),
                size = depth * kRows;
  const __mmask16 lanes = first_lanes(kRows);
  if (s.along == 1 || s.across != 1 || sums != nullptr) {
    pack_strip(s, first, rows, kRows, groups, depth, inverses, sums,
               [=](int64_t g, int64_t k, __m512 x) {
                 _mm512_mask_storeu_epi32(panels + g * size + k * kRows, lanes,
                                          to_half_twice(x));
               });
    return;
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t i = first + g * kRows;
    const __m512 inverse = pack_rows_of(
        s, i, std::min(rows - i, kRows), depth, [=](int64_t k, __m512 x) {
          _mm512_mask_storeu_epi32(panels + g * size + k * kRows, lanes,
                                   to_half_twice(x));
        });
    _mm512_mask_storeu_ps(inverses + g * kRows, lanes, inverse);
  }
}

// Panels of [depth][kColumns] fp16 values, for kStrip / 4 panels from column
// `first`.
void pack_columns(const Source &s, int64_t first, int64_t columns,
                  int64_t depth, uint16_t *panels, float *inverses) {
  constexpr int64_t kGroups = kColumns / kLanes;
  const int64_t groups =
      std::min(kStrip, ceil_div(columns - first, kColumns) * kGroups);
  const auto store = [=](int64_t g, int64_t k, __m512 x) {
    uint16_t *panel = panels + g / kGroups * depth * kColumns;
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(panel + k * kColumns +
                                                    g % kGroups * kLanes),
                        to_half(x));
  };
  if (s.along == 1 || s.across != 1) {
    pack_strip(s, first, columns, kLanes, groups, depth, inverses, nullptr,
               store);
    return;
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t i = first + g * kLanes;
    const __m512 inverse =
        pack_rows_of(s, i, std::clamp<int64_t>(columns - i, 0, kLanes), depth,
                     [&](int64_t k, __m512 x) { store(g, k, x); });
    _mm512_storeu_ps(inverses + g * kLanes, inverse);
  }
}

// tile += the products of up to kChunk k, summed in fp16.
void multiply_chunk(const uint32_t *a, const uint16_t *b, int64_t depth,
                    float *tile) {
  __m512h sums[kRows][2];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
    sums[i][0] = sums[i][1] = _mm512_setzero_ph();
  for (int64_t k = 0; k < depth; ++k) {
    _mm_prefetch(a + kAhead * kRows, _MM_HINT_T0);
    _mm_prefetch(b + kAhead * kColumns, _MM_HINT_T0);
    _mm_prefetch(b + kAhead * kColumns + 32, _MM_HINT_T0);
    const __m512h left = _mm512_loadu_ph(b), right = _mm512_loadu_ph(b + 32);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const __m512h factor =
          _mm512_castsi512_ph(_mm512_set1_epi32(int32_t(a[i])));
      sums[i][0] = _mm512_fmadd_ph(factor, left, sums[i][0]);
      sums[i][1] = _mm512_fmadd_ph(factor, right, sums[i][1]);
    }
    a += kRows;
    b += kColumns;
  }
#pragma GCC unroll 24
  for (int part = 0; part < 2 * kRows; ++part) {
    const __m512i both = _mm512_castph_si512(sums[part / 2][part % 2]);
    const __m512 low =
        _mm512_cvtxph_ps(_mm256_castsi256_ph(_mm512_castsi512_si256(both)));
    const __m512 high = _mm512_cvtxph_ps(
        _mm256_castsi256_ph(_mm512_extracti64x4_epi64(both, 1)));
    float *target = tile + part * 32;
    _mm512_store_ps(target, _mm512_add_ps(_mm512_load_ps(target), low));
    _mm512_store_ps(target + 16,
                    _mm512_add_ps(_mm512_load_ps(target + 16), high));
  }
}

// A packed block of each matrix, and where its part of the result goes.
struct Block {
  const uint32_t *a;
  const uint16_t *b;
  const float *a_inverses, *b_inverses, *bias;
  float *c;
  int64_t rows, columns, depth, c_row;
  bool adds; // to what c holds
};

void write_tile(const Block &block, const float *tile, int64_t row,
                int64_t column) {
  const int64_t rows = std::min(block.rows - row, kRows);
  for (int64_t group = 0; group < kColumns; group += kLanes) {
    const int64_t at = column + group;
    if (at >= block.columns)
      return;
    const __mmask16 valid = first_lanes(block.columns - at);
    const __m512 scale = _mm512_loadu_ps(block.b_inverses + at);
    const __m512 bias = block.bias && !block.adds
                            ? _mm512_maskz_loadu_ps(valid, block.bias + at)
                            : _mm512_setzero_ps();
    for (int64_t i = 0; i < rows; ++i) {
      float *target = block.c + (row + i) * block.c_row + at;
      const __m512 start =
          block.adds ? _mm512_maskz_loadu_ps(valid, target) : bias;
      const __m512 sum = _mm512_mul_ps(
          _mm512_load_ps(tile + i * kColumns + group),
          _mm512_mul_ps(scale, _mm512_set1_ps(block.a_inverses[row + i])));
      _mm512_mask_storeu_ps(target, valid, _mm512_add_ps(sum, start));
    }
  }
}

void multiply_tile(const Block &block, int64_t row, int64_t column) {
  // Rows of the result are pages apart: without this each write would wait.
  for (int64_t i = 0; i < std::min(block.rows - row, kRows); ++i)
    for (int64_t j = 0; j < kColumns; j += kLanes)
      __builtin_prefetch(block.c + (row + i) * block.c_row + column + j, 1);
  alignas(64) float tile[kRows * kColumns] = {};
  const uint32_t *a = block.a + row * block.depth;
  const uint16_t *b = block.b + column * block.depth;
  for (int64_t k = 0; k < block.depth; k += kChunk)
    multiply_chunk(a + k * kRows, b + k * kColumns,
                   std::min(kChunk, block.depth - k), tile);
  write_tile(block, tile, row, column);
}

// Packed panels, kept between calls by the thread that calls.
class Workspace {
public:
  void reserve(int64_t rows, int64_t columns, int64_t depth) {
    grow(a_, a_size_, ceil_div(rows, kRows) * kRows * depth);
    grow(b_, b_size_, ceil_div(columns, kColumns) * kColumns * depth);
    grow(a_inverses, a_inverses_size_, rows + kLanes);
    grow(b_inverses, b_inverses_size_, columns + kColumns);
  }
  uint32_t *a() { return a_.get(); }
  uint16_t *b() { return b_.get(); }

private:
  struct Free {
    void operator()(void *memory) const { std::free(memory); }
  };
  template <typename T> using Buffer = std::unique_ptr<T[], Free>;
  template <typename T>
  static void grow(Buffer<T> &buffer, int64_t &size, int64_t wanted) {
    if (wanted <= size)
      return;
    size = ceil_div(wanted, 64) * 64;
    buffer.reset(
        static_cast<T *>(std::aligned_alloc(64, size_t(size) * sizeof(T))));
  }
  Buffer<uint32_t> a_;
  Buffer<uint16_t> b_;
  int64_t a_size_ = 0, b_size_ = 0, a_inverses_size_ = 0, b_inverses_size_ = 0;

public:
  Buffer<float> a_inverses, b_inverses;
};

Workspace &workspace() {
  static thread_local Workspace own;
  return own;
}

// One block of the depth: rows and columns in blocks, all threads together.
void multiply_depth(const HalfProduct &p, int64_t start, int64_t depth,
                    Workspace &space) {
  const Source a{p.a + start * p.a_column, p.a_row, p.a_column};
  const Source b{p.b + start * p.b_row, p.b_column, p.b_row};
  for (int64_t row = 0; row < p.rows; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, p.rows - row);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; i += kStripRows)
      pack_rows({a.element(row, 0), a.along, a.across}, i, rows, depth,
                space.a() + i * depth, space.a_inverses.get() + i,
                p.row_sums ? p.row_sums + row : nullptr);
    for (int64_t column = 0; column < p.columns; column += kColumnBlock) {
      const int64_t columns = std::min(kColumnBlock, p.columns - column);
#pragma omp for schedule(static)
      for (int64_t j = 0; j < columns; j += kStripColumns)
        pack_columns({b.element(column, 0), b.along, b.across}, j, columns,
                     depth, space.b() + j * depth, space.b_inverses.get() + j);
      const Block block{space.a(),
                        space.b(),
                        space.a_inverses.get(),
                        space.b_inverses.get(),
                        p.bias ? p.bias + column : nullptr,
                        p.c + row * p.c_row + column,
                        rows,
                        columns,
                        depth,
                        p.c_row,
                        start > 0};
      const int64_t bands = ceil_div(rows, kPanels * kRows),
                    panels = ceil_div(columns, kColumns);
#pragma omp for schedule(static)
      for (int64_t task = 0; task < bands * panels; ++task) {
        const int64_t top = task / panels * kPanels * kRows;
        for (int64_t i = top; i < std::min(rows, top + kPanels * kRows);
             i += kRows)
          multiply_tile(block, i, task % panels * kColumns);
      }
    }
  }
}

void multiply_together(const HalfProduct &p) {
  Workspace &space = workspace();
  const int64_t deepest = std::min(p.depth, kDepthBlock);
  space.reserve(std::min(p.rows, kRowBlock), std::min(p.columns, kColumnBlock),
                deepest);
  if (p.row_sums)
    std::fill(p.row_sums, p.row_sums + p.rows, 0.0f);
#pragma omp parallel if (p.rows * p.columns * p.depth >= kParallelFrom)
  for (int64_t start = 0; start < p.depth; start += kDepthBlock)
    multiply_depth(p, start, std::min(kDepthBlock, p.depth - start), space);
}

// One batch by one thread.
void multiply_alone(const HalfProduct &p) {
  Workspace &space = workspace();
  space.reserve(p.rows, p.columns, std::min(p.depth, kDepthBlock));
  for (int64_t start = 0; start < p.depth; start += kDepthBlock) {
    const int64_t depth = std::min(kDepthBlock, p.depth - start);
    const Source a{p.a + start * p.a_column, p.a_row, p.a_column};
    const Source b{p.b + start * p.b_row, p.b_column, p.b_row};
    for (int64_t i = 0; i < p.rows; i += kStripRows)
      pack_rows(a, i, p.rows, depth, space.a() + i * depth,
                space.a_inverses.get() + i, nullptr);
    for (int64_t j = 0; j < p.columns; j += kStripColumns)
      pack_columns(b, j, p.columns, depth, space.b() + j * depth,
                   space.b_inverses.get() + j);
    const Block block{space.a(),
                      space.b(),
                      space.a_inverses.get(),
                      space.b_inverses.get(),
                      p.bias,
                      p.c,
                      p.rows,
                      p.columns,
                      depth,
                      p.c_row,
                      start > 0};
    for (int64_t j = 0; j < p.columns; j += kColumns)
      for (int64_t i = 0; i < p.rows; i += kRows)
        multiply_tile(block, i, j);
  }
}

HalfProduct batch_of(const HalfProduct &p, int64_t index) {
  const int64_t outer = index / p.batches[1], inner = index % p.batches[1];
  HalfProduct one = p;
  one.a += outer * p.a_batch[0] + inner * p.a_batch[1];
  one.b += outer * p.b_batch[0] + inner * p.b_batch[1];
  one.c += outer * p.c_batch[0] + inner * p.c_batch[1];
  return one;
}

} // namespace
#endif
} // namespace bert_ipu

using namespace bert_ipu;

extern "C" {

// Whether this build has the product below.
void bert_ipu_half_products(int32_t *available) {
#ifdef __AVX512FP16__
  *available = 1;
#else
  *available = 0;
#endif
}

void bert_ipu_half_matmul(const HalfProduct *product) {
#ifdef __AVX512FP16__
  const HalfProduct &p = *product;
  const int64_t batches = p.batches[0] * p.batches[1];
  if (batches == 1) {
    multiply_together(p);
    return;
  }
#pragma omp parallel for schedule(                                             \
        static) if (batches * p.rows * p.columns * p.depth >= kParallelFrom)
  for (int64_t index = 0; index < batches; ++index)
    multiply_alone(batch_of(p, index));
#else
  (void)product;
#endif
}
}
