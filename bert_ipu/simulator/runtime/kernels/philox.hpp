// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
//
// The key is the run's seed; the counter is (block, op, stream, step). Elements take words in groups of 64, so that
// sixteen blocks can be computed side by side: element e uses word (e % 64) / 16 of block (e / 64) * 16 + e % 16.
#pragma once

#include <cstdint>

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
inline Draw draw_at(const uint32_t* key, uint32_t op, const uint32_t* place) { return {{key[0], key[1]}, op, place[0], place[1]}; }

inline void philox_round(uint32_t c[4][kLanes], uint32_t key0, uint32_t key1) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * c[0][i];
        const uint64_t product1 = uint64_t{0xCD9E8D57u} * c[2][i];
        const uint32_t next0 = uint32_t(product1 >> 32) ^ c[1][i] ^ key0;
        const uint32_t next2 = uint32_t(product0 >> 32) ^ c[3][i] ^ key1;
        c[0][i] = next0;
        c[1][i] = uint32_t(product1);
        c[2][i] = next2;
        c[3][i] = uint32_t(product0);
    }
}

// The 64 words of elements [group * 64, group * 64 + 64), in element order.
inline void philox_group(const Draw& draw, uint64_t group, uint32_t words[kGroup]) {
    alignas(64) uint32_t c[4][kLanes];
    const uint32_t first = uint32_t(group * kLanes);
    for (int i = 0; i < kLanes; ++i) {
        c[0][i] = first + uint32_t(i);
        c[1][i] = draw.op;
        c[2][i] = draw.stream;
        c[3][i] = draw.step;
    }
    uint32_t key0 = draw.key[0], key1 = draw.key[1];
    for (int round = 0; round < 10; ++round) {
        philox_round(c, key0, key1);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    for (int word = 0; word < 4; ++word)
        for (int i = 0; i < kLanes; ++i) words[word * kLanes + i] = c[word][i];
}

}  // namespace bert_ipu
