// Philox4x32, the counter-based generator of Salmon et al., "Parallel Random
// Numbers: As Easy as 1, 2, 3" (2011), with 10 rounds, or the 7 that they found
// to be enough for every statistical test where a word only rounds a number.
//
// The key is the run's seed; the counter is (block, op, stream, step). Elements
// take words in groups of 64, so that sixteen blocks can be computed side by
// side: element e uses word (e % 64) / 16 of block (e / 64) * 16 + e % 16.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace bert_ipu {

constexpr int kLanes = 16;
constexpr int kGroup = 4 * kLanes;

struct Draw {
  uint32_t key[2];
  uint32_t op;
  uint32_t stream;
  uint32_t step;
};

// `place` is a stream (a micro-batch of a replica) and its step.
inline Draw draw_at(const uint32_t *key, uint32_t op, const uint32_t *place) {
  return {{key[0], key[1]}, op, place[0], place[1]};
}

// 32-bit words in 64-bit lanes: the product of two words is then one
// instruction, and upper halves may hold anything.
typedef uint64_t Words __attribute__((vector_size(64)));

// The products of the lower words of each lane. GCC does not see that one
// vpmuludq does it.
inline Words product(Words x, uint64_t factor) {
#ifdef __AVX512F__
  return Words(
      _mm512_mul_epu32(__m512i(x), _mm512_set1_epi64(int64_t(factor))));
#else
  return (x & 0xFFFFFFFFu) * factor;
#endif
}

inline void philox_round(Words c[4], uint32_t key0, uint32_t key1) {
  const Words product0 = product(c[0], 0xD2511F53u);
  const Words product1 = product(c[2], 0xCD9E8D57u);
  c[0] = (product1 >> 32) ^ c[1] ^ uint64_t { key0 };
  c[1] = product1;
  c[2] = (product0 >> 32) ^ c[3] ^ uint64_t { key1 };
  c[3] = product0;
}

constexpr int kRounds = 10, kRoundsOfRounding = 7;

// The 64 words of elements [group * 64, group * 64 + 64), in element order.
template <int Rounds = kRounds>
inline void philox_group(const Draw &draw, uint64_t group,
                         uint32_t words[kGroup]) {
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7};
  const Words zero = {};
  Words a[4], b[4];
  a[0] = lanes + uint64_t(uint32_t(group * kLanes));
  b[0] = a[0] + 8;
  a[1] = b[1] = zero + uint64_t{draw.op};
  a[2] = b[2] = zero + uint64_t{draw.stream};
  a[3] = b[3] = zero + uint64_t{draw.step};
  uint32_t key0 = draw.key[0], key1 = draw.key[1];
  for (int round = 0; round < Rounds; ++round) {
    philox_round(a, key0, key1);
    philox_round(b, key0, key1);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  typedef uint32_t Narrow __attribute__((vector_size(64)));
  const Narrow lower = {0,  2,  4,  6,  8,  10, 12, 14,
                        16, 18, 20, 22, 24, 26, 28, 30};
  for (int word = 0; word < 4; ++word) {
    const Narrow both =
        __builtin_shuffle(Narrow(a[word]), Narrow(b[word]), lower);
    std::memcpy(words + word * kLanes, &both, sizeof both);
  }
}

} // namespace bert_ipu
