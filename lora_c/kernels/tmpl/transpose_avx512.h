/* 16 x 16 words in registers: row i, word j becomes row j, word i. Needs AVX-512 F by the includer's target. */
#ifndef LORA_TRANSPOSE_AVX512_H
#define LORA_TRANSPOSE_AVX512_H

#include <immintrin.h>

#include "lora_c/base/util.h"

LORA_INLINE void lora_transpose_16x16(__m512i r[16]) {
    __m512i t[16];
    LORA_UNROLL_BY(8) for (int i = 0; i < 8; i++) { /* pairs of rows: words */
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) { /* fours of rows: pairs of words */
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) { /* eights: 128-bit lanes */
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#endif
