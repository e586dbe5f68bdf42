/* What the paths with two k per step share. Needs AVX-512 F, BW, DQ, VL by the includer. */
#ifndef LORA_GEMM_PAIRS_AVX512_H
#define LORA_GEMM_PAIRS_AVX512_H

#include "lora_c/kernels/tmpl/gemm_nf4_avx512.h"

/* Words 0 .. 15 into the low halves, 16 .. 31 into the high halves. */
LORA_INLINE __m512i lora_interleave_halves(__m512i words) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_epi16(_mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16)), words);
}

#endif
