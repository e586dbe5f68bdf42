/* Block formats, AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/format/ggml_blocks.h"
#include "lora_c/kernels/ggml_kernels.h"

LORA_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")

#include "lora_c/kernels/tmpl/ggml_groups_avx2.h"

LORA_INLINE __m512 widen(__m128i codes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)); }

LORA_INLINE void put(group g, float d0, float d1, float *dst) {
    _mm512_storeu_ps(dst, _mm512_mul_ps(_mm512_set1_ps(d0), widen(_mm256_castsi256_si128(g))));
    _mm512_storeu_ps(dst + 16, _mm512_mul_ps(_mm512_set1_ps(d1), widen(_mm256_extracti128_si256(g, 1))));
}

LORA_INLINE void put_sum(group g, float d, float m, float *dst) {
    __m512 scale = _mm512_set1_ps(d), offset = _mm512_set1_ps(m);
    _mm512_storeu_ps(dst, _mm512_add_ps(_mm512_mul_ps(scale, widen(_mm256_castsi256_si128(g))), offset));
    _mm512_storeu_ps(dst + 16, _mm512_add_ps(_mm512_mul_ps(scale, widen(_mm256_extracti128_si256(g, 1))), offset));
}

#include "lora_c/kernels/tmpl/ggml_tmpl.h"

void lora_ggml_fill_avx512(lora_ggml_kernels *k) { lora_ggml_fill_decoders(k); }

LORA_TARGET_END
#endif
