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
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>

#include "half_packing.hpp"

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

constexpr int64_t kPanels = 8;           // panels of rows that stay in L2
constexpr int64_t kColumnPanels = 4;     // the same of columns
constexpr int64_t kDepthBlock = 1024;    // of one packed block
constexpr int64_t kRowBlock = 4080;      // a multiple of kRows
constexpr int64_t kColumnBlock = 4096;   // a multiple of kColumns
constexpr int64_t kKeptBytes = 12 << 20; // of a matrix that is packed whole
constexpr int64_t kAhead = 8; // steps that packed values are fetched early
constexpr int64_t kParallelFrom = 1 << 20;
static_assert(kPanels <= kStrip, "a strip of rows is packed at once");

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
  // By way of memory: widening what is loaded leaves the shuffle unit, which
  // also multiplies, alone.
  alignas(64) uint16_t halves[2 * kRows * 32];
#pragma GCC unroll 24
  for (int part = 0; part < 2 * kRows; ++part)
    _mm512_store_ph(halves + part * 32, sums[part / 2][part % 2]);
  asm volatile("" ::: "memory"); // or the compiler would keep to registers
  for (int at = 0; at < 2 * kRows * 32; at += kLanes) {
    const __m512 sum = _mm512_cvtxph_ps(_mm256_castsi256_ph(
        _mm256_load_si256(reinterpret_cast<const __m256i *>(halves + at))));
    _mm512_store_ps(tile + at, _mm512_add_ps(_mm512_load_ps(tile + at), sum));
  }
}

// One batch. A result that was turned over has adjacent rows instead, a
// c_column above 1, and no bias; its `column_sums` are those of b's columns.
struct Product : HalfProduct {
  explicit Product(const HalfProduct &given) : HalfProduct(given) {}
  int64_t c_column = 1;
  float *column_sums = nullptr;
};

// Some of a product's rows, columns or depth.
struct Span {
  int64_t first, size;
};

// The operands from column `start` of the left one, and row `start` of the
// right one, on.
Source left_of(const Product &p, int64_t start) {
  return {p.a + start * p.a_column, p.a_row, p.a_column};
}
Source right_of(const Product &p, int64_t start) {
  return {p.b + start * p.b_row, p.b_column, p.b_row};
}

// The block of the depth that begins at `start`.
Span depth_from(const Product &p, int64_t start) {
  return {start, std::min(kDepthBlock, p.depth - start)};
}

// A part of the result, with the packed rows and columns whose products it
// gets, or adds to those of the depth before.
struct Block {
  Block(const Product &p, RowPanels packed_rows, ColumnPanels packed_columns,
        Span of_rows, Span of_columns, Span of_depth)
      : a(packed_rows), b(packed_columns),
        bias(p.bias ? p.bias + of_columns.first : nullptr),
        c(p.c + of_rows.first * p.c_row + of_columns.first * p.c_column),
        rows(of_rows.size), columns(of_columns.size), depth(of_depth.size),
        c_row(p.c_row), c_column(p.c_column), adds(of_depth.first > 0) {}
  RowPanels a;
  ColumnPanels b;
  const float *bias;
  float *c;
  int64_t rows, columns, depth, c_row, c_column;
  bool adds;
};

void write_tile(const Block &block, const float *tile, int64_t row,
                int64_t column) {
  const int64_t rows = std::min(block.rows - row, kRows);
  for (int64_t group = 0; group < kColumns; group += kLanes) {
    const int64_t at = column + group;
    if (at >= block.columns)
      return;
    const __mmask16 valid = first_lanes(block.columns - at);
    const __m512 scale = _mm512_loadu_ps(block.b.inverses + at);
    const __m512 bias = block.bias && !block.adds
                            ? _mm512_maskz_loadu_ps(valid, block.bias + at)
                            : _mm512_setzero_ps();
    for (int64_t i = 0; i < rows; ++i) {
      float *target = block.c + (row + i) * block.c_row + at;
      const __m512 start =
          block.adds ? _mm512_maskz_loadu_ps(valid, target) : bias;
      const __m512 sum = _mm512_mul_ps(
          _mm512_load_ps(tile + i * kColumns + group),
          _mm512_mul_ps(scale, _mm512_set1_ps(block.a.inverses[row + i])));
      _mm512_mask_storeu_ps(target, valid, _mm512_add_ps(sum, start));
    }
  }
}

// The same where a column's rows are adjacent.
void write_tile_by_columns(const Block &block, const float *tile, int64_t row,
                           int64_t column) {
  const __mmask16 valid = first_lanes(std::min(block.rows - row, kRows));
  const __m512 row_scale = _mm512_loadu_ps(block.a.inverses + row);
  for (int64_t group = 0; group < kColumns; group += kLanes) {
    __m512i lanes[kLanes];
    for (int64_t i = 0; i < kLanes; ++i)
      lanes[i] = i < kRows ? _mm512_load_si512(tile + i * kColumns + group)
                           : _mm512_setzero_si512();
    transpose_16x16(lanes);
    const int64_t first = column + group,
                  count = std::min(block.columns - first, kLanes);
    for (int64_t j = 0; j < count; ++j) {
      float *target = block.c + (first + j) * block.c_column + row;
      const __m512 scale =
          _mm512_mul_ps(row_scale, _mm512_set1_ps(block.b.inverses[first + j]));
      const __m512 start = block.adds ? _mm512_maskz_loadu_ps(valid, target)
                                      : _mm512_setzero_ps();
      const __m512 sum = _mm512_mul_ps(_mm512_castsi512_ps(lanes[j]), scale);
      _mm512_mask_storeu_ps(target, valid, _mm512_add_ps(sum, start));
    }
  }
}

void multiply_tile(const Block &block, int64_t row, int64_t column) {
  const bool by_columns = block.c_column != 1;
  // Rows of the result are pages apart: without this each write would wait.
  for (int64_t i = 0; !by_columns && i < std::min(block.rows - row, kRows); ++i)
    for (int64_t j = 0; j < kColumns; j += kLanes)
      __builtin_prefetch(block.c + (row + i) * block.c_row + column + j, 1);
  alignas(64) float tile[kRows * kColumns] = {};
  const uint32_t *a = block.a.values + row * block.depth;
  const uint16_t *b = block.b.values + column * block.depth;
  for (int64_t k = 0; k < block.depth; k += kChunk)
    multiply_chunk(a + k * kRows, b + k * kColumns,
                   std::min(kChunk, block.depth - k), tile);
  if (by_columns)
    write_tile_by_columns(block, tile, row, column);
  else
    write_tile(block, tile, row, column);
}

// All tiles, one column of them after the other, so that its packed panel stays
// in the cache.
void multiply_by_panels_of_columns(const Block &block) {
  for (int64_t j = 0; j < block.columns; j += kColumns)
    for (int64_t i = 0; i < block.rows; i += kRows)
      multiply_tile(block, i, j);
}

void multiply_by_panels_of_rows(const Block &block) {
  for (int64_t i = 0; i < block.rows; i += kRows)
    for (int64_t j = 0; j < block.columns; j += kColumns)
      multiply_tile(block, i, j);
}

// Packed panels, kept between calls by the thread that calls.
class Workspace {
public:
  // For rows and columns of `blocks` blocks that together are `depth` deep.
  void reserve(int64_t rows, int64_t columns, int64_t depth,
               int64_t blocks = 1) {
    const int64_t height = ceil_div(rows, kRows) * kRows,
                  width = ceil_div(columns, kColumns) * kColumns;
    grow(a_, a_size_, height * depth);
    grow(b_, b_size_, width * depth);
    grow(a_inverses_, a_inverses_size_, height * blocks + kLanes);
    grow(b_inverses_, b_inverses_size_, width * blocks);
  }
  RowPanels rows() { return {a_.get(), a_inverses_.get()}; }
  ColumnPanels columns() { return {b_.get(), b_inverses_.get()}; }

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
  Buffer<float> a_inverses_, b_inverses_;
  int64_t a_size_ = 0, b_size_ = 0, a_inverses_size_ = 0, b_inverses_size_ = 0;
};

Workspace &workspace() {
  static thread_local Workspace own;
  return own;
}

// One block of the depth: rows and columns in blocks, all threads together.
void multiply_depth(const Product &p, Span depth, Workspace &space) {
  const Source a = left_of(p, depth.first), b = right_of(p, depth.first);
  const RowPanels left = space.rows();
  const ColumnPanels right = space.columns();
  for (int64_t row = 0; row < p.rows; row += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, p.rows - row);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; i += kStripRows)
      pack_rows({a.element(row, 0), a.along, a.across}, i, rows, depth.size,
                left.from(i, depth.size),
                p.row_sums ? p.row_sums + row : nullptr);
    for (int64_t column = 0; column < p.columns; column += kColumnBlock) {
      const int64_t columns = std::min(kColumnBlock, p.columns - column);
#pragma omp for schedule(static)
      for (int64_t j = 0; j < columns; j += kStripColumns)
        pack_columns({b.element(column, 0), b.along, b.across}, j, columns,
                     depth.size, right.from(j, depth.size),
                     row == 0 && p.column_sums ? p.column_sums + column
                                               : nullptr);
      const Block block(p, left, right, {row, rows}, {column, columns}, depth);
      const int64_t bands = ceil_div(rows, kPanels * kRows),
                    panels = ceil_div(columns, kColumns);
#pragma omp for schedule(guided)
      for (int64_t task = 0; task < bands * panels; ++task) {
        const int64_t top = task / panels * kPanels * kRows;
        for (int64_t i = top; i < std::min(rows, top + kPanels * kRows);
             i += kRows)
          multiply_tile(block, i, task % panels * kColumns);
      }
    }
  }
}

void clear_sums(const Product &p) {
  if (p.row_sums)
    std::fill(p.row_sums, p.row_sums + p.rows, 0.0f);
  if (p.column_sums)
    std::fill(p.column_sums, p.column_sums + p.columns, 0.0f);
}

void multiply_together(const Product &p) {
  Workspace &space = workspace();
  const int64_t deepest = std::min(p.depth, kDepthBlock);
  space.reserve(std::min(p.rows, kRowBlock), std::min(p.columns, kColumnBlock),
                deepest);
  clear_sums(p);
#pragma omp parallel if (p.rows * p.columns * p.depth >= kParallelFrom)
  for (int64_t start = 0; start < p.depth; start += kDepthBlock)
    multiply_depth(p, depth_from(p, start), space);
}

// Panels that threads take in turns: several at once, and fewer towards the
// end, so that none waits long for one that the machine holds up.
class Strips {
public:
  Strips(int64_t panels, int64_t most) : panels_(panels), most_(most) {}
  // The next strip's first panel and the one behind its last; false at the end.
  bool take(int64_t &first, int64_t &end) {
    int64_t at = next_.load();
    do {
      if (at >= panels_)
        return false;
      const int64_t fair = (panels_ - at) / (2 * omp_get_num_threads());
      first = at;
      end = at + std::clamp<int64_t>(fair, 1, most_);
    } while (!next_.compare_exchange_weak(at, end));
    return true;
  }

private:
  const int64_t panels_, most_;
  std::atomic<int64_t> next_{0};
};

// All of the right matrix is packed, by all threads; then each takes strips of
// rows, which are multiplied as soon as they are packed.
void multiply_by_rows(const Product &p, Workspace &space, Strips &strips) {
  const int64_t width = ceil_div(p.columns, kColumns) * kColumns;
  const auto packed = [&](int64_t start) {
    const ColumnPanels all = space.columns();
    return ColumnPanels{all.values + start * width,
                        all.inverses + start / kDepthBlock * width};
  };
#pragma omp for schedule(static) collapse(2)
  for (int64_t start = 0; start < p.depth; start += kDepthBlock)
    for (int64_t j = 0; j < p.columns; j += kStripColumns) {
      const Span depth = depth_from(p, start);
      pack_columns(right_of(p, start), j, p.columns, depth.size,
                   packed(start).from(j, depth.size), nullptr);
    }
  Workspace &own = workspace();
  own.reserve(kPanels * kRows, 0, std::min(p.depth, kDepthBlock));
  for (int64_t first, last; strips.take(first, last);) {
    const int64_t row = first * kRows, end = std::min(p.rows, last * kRows);
    for (int64_t start = 0; start < p.depth; start += kDepthBlock) {
      const Span depth = depth_from(p, start);
      pack_rows(left_of(p, start), row, end, depth.size, own.rows(),
                p.row_sums);
      multiply_by_panels_of_columns({p,
                                     own.rows(),
                                     packed(start),
                                     {row, end - row},
                                     {0, p.columns},
                                     depth});
    }
  }
}

// The same with all of the left matrix packed, and strips of columns.
void multiply_by_columns(const Product &p, Workspace &space, Strips &strips) {
  const int64_t height = ceil_div(p.rows, kRows) * kRows;
  const auto packed = [&](int64_t start) {
    const RowPanels all = space.rows();
    return RowPanels{all.values + start * height,
                     all.inverses + start / kDepthBlock * height};
  };
#pragma omp for schedule(static)
  for (int64_t i = 0; i < p.rows; i += kRows)
    for (int64_t start = 0; start < p.depth; start += kDepthBlock) {
      const Span depth = depth_from(p, start);
      pack_rows(left_of(p, start), i, std::min(p.rows, i + kRows), depth.size,
                packed(start).from(i, depth.size), p.row_sums);
    }
  Workspace &own = workspace();
  own.reserve(0, kColumnPanels * kColumns, std::min(p.depth, kDepthBlock));
  for (int64_t first, last; strips.take(first, last);) {
    const int64_t column = first * kColumns,
                  end = std::min(p.columns, last * kColumns);
    for (int64_t start = 0; start < p.depth; start += kDepthBlock) {
      const Span depth = depth_from(p, start);
      for (int64_t j = column; j < end; j += kStripColumns)
        pack_columns(right_of(p, start), j, end, depth.size,
                     own.columns().from(j - column, depth.size), p.column_sums);
      multiply_by_panels_of_rows({p,
                                  packed(start),
                                  own.columns(),
                                  {0, p.rows},
                                  {column, end - column},
                                  depth});
    }
  }
}

// One of the matrices is so small that its packed panels stay in the cache.
void multiply_thin(const Product &p, bool by_rows) {
  Workspace &space = workspace();
  const int64_t blocks = ceil_div(p.depth, kDepthBlock);
  space.reserve(by_rows ? 0 : p.rows, by_rows ? p.columns : 0, p.depth, blocks);
  clear_sums(p);
  const int64_t panels =
      by_rows ? ceil_div(p.rows, kRows) : ceil_div(p.columns, kColumns);
  Strips strips(panels, by_rows ? kPanels : kColumnPanels);
#pragma omp parallel if (p.rows * p.columns * p.depth >= kParallelFrom)
  {
    if (by_rows)
      multiply_by_rows(p, space, strips);
    else
      multiply_by_columns(p, space, strips);
  }
}

// The product of the transposed matrices, which is the transposed result.
Product transposed(const Product &p) {
  Product other = p;
  std::swap(other.a, other.b);
  std::swap(other.rows, other.columns);
  std::swap(other.row_sums, other.column_sums);
  std::swap(other.c_row, other.c_column);
  other.a_row = p.b_column;
  other.a_column = p.b_row;
  other.b_row = p.a_column;
  other.b_column = p.a_row;
  return other;
}

void multiply(const Product &p) {
  const int64_t left = p.rows * p.depth * int64_t(sizeof(uint32_t)),
                right = p.columns * p.depth * int64_t(sizeof(uint16_t));
  if (std::min(left, right) <= kKeptBytes)
    multiply_thin(p, right <= left);
  else
    multiply_together(p);
}

// A packed right matrix takes half the memory that the left one does: worth
// turning a product over whose left one is the larger, where the result is not.
bool is_better_transposed(const Product &p) {
  return p.a_row == 1 && !p.bias && 2 * p.columns < p.rows &&
         p.columns < p.depth;
}

// One batch by one thread.
void multiply_alone(const Product &p) {
  Workspace &space = workspace();
  space.reserve(p.rows, p.columns, std::min(p.depth, kDepthBlock));
  const RowPanels left = space.rows();
  const ColumnPanels right = space.columns();
  for (int64_t start = 0; start < p.depth; start += kDepthBlock) {
    const Span depth = depth_from(p, start);
    for (int64_t i = 0; i < p.rows; i += kStripRows)
      pack_rows(left_of(p, start), i, p.rows, depth.size,
                left.from(i, depth.size), nullptr);
    for (int64_t j = 0; j < p.columns; j += kStripColumns)
      pack_columns(right_of(p, start), j, p.columns, depth.size,
                   right.from(j, depth.size), nullptr);
    multiply_by_panels_of_columns(
        {p, left, right, {0, p.rows}, {0, p.columns}, depth});
  }
}

Product batch_of(const Product &p, int64_t index) {
  const int64_t outer = index / p.batches[1], inner = index % p.batches[1];
  Product one = p;
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
  const Product p(*product);
  const int64_t batches = p.batches[0] * p.batches[1];
  if (batches == 1) {
    multiply(is_better_transposed(p) ? transposed(p) : p);
    return;
  }
#pragma omp parallel for schedule(                                             \
        guided) if (batches * p.rows * p.columns * p.depth >= kParallelFrom)
  for (int64_t index = 0; index < batches; ++index)
    multiply_alone(batch_of(p, index));
#else
  (void)product;
#endif
}
}
