// Blocks of float matrices packed as fp16 panels for `half_matmul.cpp`: each
// row of the left matrix and each column of the right one scaled by a power of
// two.
#pragma once

#ifdef __AVX512FP16__
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "transpose.hpp"

namespace bert_ipu {

constexpr int64_t kRows = 12, kColumns = 64, kChunk = 128, kLanes = 16;
constexpr int64_t kStrip = 8;      // groups of lanes packed side by side
constexpr int64_t kAheadRows = 16; // fetched early: they may be pages apart
constexpr int64_t kStripRows = kStrip * kRows, kStripColumns = kStrip * kLanes;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline __mmask16 first_lanes(int64_t count) {
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

// Packed rows of the left matrix, each fp16 value twice in 32 bits (what a
// broadcast takes from memory), and the inverses of their factors.
struct RowPanels {
  uint32_t *values;
  float *inverses;
  RowPanels from(int64_t row, int64_t depth) const {
    return {values + row * depth, inverses + row};
  }
};

// Packed columns of the right matrix, likewise, each value once.
struct ColumnPanels {
  uint16_t *values;
  float *inverses;
  ColumnPanels from(int64_t column, int64_t depth) const {
    return {values + column * depth, inverses + column};
  }
};

inline __m256i to_half(__m512 x) {
  return _mm256_castph_si256(_mm512_cvtxps_ph(x));
}

inline __m512i to_half_twice(__m512 x) {
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
inline __m512 load_lanes(const Source &s, int64_t i, int64_t k, int64_t count) {
  if (s.along == 1)
    return _mm512_maskz_loadu_ps(first_lanes(count), s.element(i, k));
  alignas(64) float lanes[kLanes] = {};
  for (int64_t l = 0; l < std::min(count, kLanes); ++l)
    lanes[l] = *s.element(i + l, k);
  return _mm512_load_ps(lanes);
}

// Largest magnitudes of `count` rows of adjacent k.
inline __m512 largest_of_rows(const Source &s, int64_t i, int64_t depth,
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
      _mm_prefetch(s.element(first + g * step, k + kAheadRows), _MM_HINT_T0);
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
inline void pack_rows(const Source &s, int64_t first, int64_t rows,
                      int64_t depth, const RowPanels &to, float *sums) {
  uint32_t *const panels = to.values;
  const int64_t groups = std::min(kStrip, ceil_div(rows - first, kRows)),
                size = depth * kRows;
  const __mmask16 lanes = first_lanes(kRows);
  if (s.along == 1 || s.across != 1 || sums != nullptr) {
    pack_strip(s, first, rows, kRows, groups, depth, to.inverses, sums,
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
    _mm512_mask_storeu_ps(to.inverses + g * kRows, lanes, inverse);
  }
}

// Panels of [depth][kColumns] fp16 values, for kStrip / 4 panels from column
// `first`.
inline void pack_columns(const Source &s, int64_t first, int64_t columns,
                         int64_t depth, const ColumnPanels &to, float *sums) {
  uint16_t *const panels = to.values;
  constexpr int64_t kGroups = kColumns / kLanes;
  const int64_t groups =
      std::min(kStrip, ceil_div(columns - first, kColumns) * kGroups);
  const auto store = [=](int64_t g, int64_t k, __m512 x) {
    uint16_t *panel = panels + g / kGroups * depth * kColumns;
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(panel + k * kColumns +
                                                    g % kGroups * kLanes),
                        to_half(x));
  };
  if (s.along == 1 || s.across != 1 || sums != nullptr) {
    pack_strip(s, first, columns, kLanes, groups, depth, to.inverses, sums,
               store);
    return;
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t i = first + g * kLanes;
    const __m512 inverse =
        pack_rows_of(s, i, std::clamp<int64_t>(columns - i, 0, kLanes), depth,
                     [&](int64_t k, __m512 x) { store(g, k, x); });
    _mm512_storeu_ps(to.inverses + g * kLanes, inverse);
  }
}

} // namespace bert_ipu
#endif
