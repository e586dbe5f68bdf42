/* Block formats, AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/format/ggml_blocks.h"
#include "lora_c/kernels/ggml_kernels.h"

LORA_TARGET_BEGIN("avx2,fma,f16c")

#include "lora_c/kernels/tmpl/ggml_groups_avx2.h"

LORA_INLINE void widen(group g, __m256 out[4]) {
    __m128i first = _mm256_castsi256_si128(g), second = _mm256_extracti128_si256(g, 1);
    out[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(first));
    out[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(first, 8)));
    out[2] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(second));
    out[3] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(second, 8)));
}

LORA_INLINE void put(group g, float d0, float d1, float *dst) {
    __m256 q[4];
    widen(g, q);
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(dst + 8 * i, _mm256_mul_ps(_mm256_set1_ps(i < 2 ? d0 : d1), q[i]));
}

LORA_INLINE void put_sum(group g, float d, float m, float *dst) {
    __m256 q[4];
    widen(g, q);
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(dst + 8 * i, _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(d), q[i]), _mm256_set1_ps(m)));
}

#include "lora_c/kernels/tmpl/ggml_tmpl.h"

void lora_ggml_fill_avx2(lora_ggml_kernels *k) { lora_ggml_fill_decoders(k); }

LORA_TARGET_END
#endif
