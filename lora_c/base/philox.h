/* Philox4x32-10: random numbers as a function of (seed, stream, index), so that dropout masks are computed again
 * instead of stored and no result depends on the order of work.
 * Source   Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011. */
#ifndef LORA_BASE_PHILOX_H
#define LORA_BASE_PHILOX_H

#include <stdint.h>

#include "lora_c/base/util.h"

/** Four words for counter (counter, stream) under key seed. */
LORA_INLINE void lora_philox4x32(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32), c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/** 24 random bits as a float in [0, 1). */
LORA_INLINE float lora_philox_to_uniform(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

/** Element index of the stream: word index % 4 of counter index / 4, so vector code makes four at once. */
LORA_INLINE float lora_philox_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t out[4];
    lora_philox4x32(seed, stream, index / 4, out);
    return lora_philox_to_uniform(out[index % 4]);
}

#endif
