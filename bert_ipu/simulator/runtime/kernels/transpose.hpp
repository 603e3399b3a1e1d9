// A 16 x 16 transpose of 32-bit elements in registers, for packing matrices.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>

namespace bert_ipu {

// rows[i] element j becomes rows[j] element i.
inline void transpose_16x16(__m512i rows[16]) {
  __m512i pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // quads[4 q + c] holds, in each 128-bit lane l, column 4 l + c of rows 4 q
  // to 4 q + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i low02 = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0x88);
    const __m512i low13 = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0xDD);
    const __m512i high02 =
        _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0x88);
    const __m512i high13 =
        _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0xDD);
    rows[c] = _mm512_shuffle_i32x4(low02, high02, 0x88);
    rows[8 + c] = _mm512_shuffle_i32x4(low02, high02, 0xDD);
    rows[4 + c] = _mm512_shuffle_i32x4(low13, high13, 0x88);
    rows[12 + c] = _mm512_shuffle_i32x4(low13, high13, 0xDD);
  }
}

} // namespace bert_ipu
#endif
