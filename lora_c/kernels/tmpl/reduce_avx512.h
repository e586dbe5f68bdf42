/* Sums of the lanes of 16 vectors at once: 15 additions instead of 64. Needs AVX-512 F by the includer. */
#ifndef LORA_REDUCE_AVX512_H
#define LORA_REDUCE_AVX512_H

#include <immintrin.h>

#include "lora_c/base/util.h"

/** Lane i: the sum of v[i]'s lanes, added over distances of 8, 4, 2 and 1. v is used up. */
LORA_INLINE LORA_TARGET("avx512f") __m512 lora_reduce_16_rows(__m512 *v) {
    /* after each step a vector holds twice as many rows: i and i + 8; then + 4; then + 2; then + 1 */
    for (int i = 0; i < 8; i++)
        v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 4], 0x88), _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd));
    for (int i = 0; i < 2; i++) v[i] = _mm512_add_ps(_mm512_shuffle_ps(v[i], v[i + 2], 0x44), _mm512_shuffle_ps(v[i], v[i + 2], 0xee));
    __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return _mm512_permutexvar_ps(order, sums);
}

#endif
