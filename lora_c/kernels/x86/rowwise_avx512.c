/* Row-wise kernels, AVX-512: sixteen lanes, mask registers for the tails. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/rowwise_kernels.h"
#include "lora_c/kernels/tmpl/exp_tmpl.h"

LORA_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

enum { W = 16 };
typedef __m512 vec;

LORA_INLINE __mmask16 lane_mask(int64_t count) { return (__mmask16)((1u << count) - 1u); }
LORA_INLINE vec v_load(const float *p, int64_t count) {
    return count == W ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(lane_mask(count), p);
}
LORA_INLINE void v_store(float *p, vec v, int64_t count) {
    if (count == W)
        _mm512_storeu_ps(p, v);
    else
        _mm512_mask_storeu_ps(p, lane_mask(count), v);
}
LORA_INLINE vec v_set(float a) { return _mm512_set1_ps(a); }
LORA_INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
LORA_INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
LORA_INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
LORA_INLINE vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
LORA_INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
LORA_INLINE vec v_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
LORA_INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
LORA_INLINE vec v_sqrt(vec a) { return _mm512_sqrt_ps(a); }
LORA_INLINE vec v_small(vec x, float limit, vec a, vec b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(limit), _CMP_LT_OQ), b, a);
}
/* a where x > 0, else 0 */
LORA_INLINE vec v_positive(vec x, vec a) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), a); }
LORA_INLINE vec v_exp(vec a) { return lora_exp_avx512(a); }
LORA_INLINE float v_sum(vec v) { return _mm512_reduce_add_ps(v); }
LORA_INLINE float v_top(vec v) { return _mm512_reduce_max_ps(v); }

/* Lanes 0-7 and 8-15 of the 16 float64 sums. */
typedef struct squares_state {
    __m512d lane[2];
} squares_state;
LORA_INLINE squares_state squares_zero(void) { return (squares_state){{_mm512_setzero_pd(), _mm512_setzero_pd()}}; }
LORA_INLINE void squares_add(squares_state *s, const float *p) {
    for (int j = 0; j < 2; j++) {
        __m512d g = _mm512_cvtps_pd(_mm256_loadu_ps(p + 8 * j));
        s->lane[j] = _mm512_fmadd_pd(g, g, s->lane[j]);
    }
}
LORA_INLINE double squares_total(const squares_state *s) {
    __m512d v = _mm512_add_pd(s->lane[0], s->lane[1]);
    __m256d a = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    __m128d h = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}

#define ROWWISE_FILL lora_rowwise_fill_avx512
#include "lora_c/kernels/tmpl/rowwise_tmpl.h"

LORA_TARGET_END
#else
typedef int lora_rowwise_avx512_empty;
#endif
