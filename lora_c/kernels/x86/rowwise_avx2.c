/* Row-wise kernels, AVX2 + FMA: eight lanes, masked loads and stores for the tails. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/rowwise_kernels.h"
#include "lora_c/kernels/tmpl/exp_tmpl.h"

LORA_TARGET_BEGIN("avx2,fma")

enum { W = 8 };
typedef __m256 vec;

LORA_INLINE __m256i lane_mask(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LORA_INLINE vec v_load(const float *p, int64_t count) { return count == W ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lane_mask(count)); }
LORA_INLINE void v_store(float *p, vec v, int64_t count) {
    if (count == W)
        _mm256_storeu_ps(p, v);
    else
        _mm256_maskstore_ps(p, lane_mask(count), v);
}
LORA_INLINE vec v_set(float a) { return _mm256_set1_ps(a); }
LORA_INLINE vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
LORA_INLINE vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
LORA_INLINE vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
LORA_INLINE vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
LORA_INLINE vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
LORA_INLINE vec v_fnma(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
LORA_INLINE vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
LORA_INLINE vec v_sqrt(vec a) { return _mm256_sqrt_ps(a); }
LORA_INLINE vec v_small(vec x, float limit, vec a, vec b) {
    vec magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(magnitude, _mm256_set1_ps(limit), _CMP_LT_OQ));
}
/* a where x > 0, else 0 */
LORA_INLINE vec v_positive(vec x, vec a) { return _mm256_and_ps(a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ)); }
LORA_INLINE vec v_exp(vec a) { return lora_exp_avx2(a); }
LORA_INLINE float v_sum(vec v) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
LORA_INLINE float v_top(vec v) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}

/* Lanes 0-3, 4-7, 8-11, 12-15 of the 16 float64 sums. */
typedef struct squares_state {
    __m256d lane[4];
} squares_state;
LORA_INLINE squares_state squares_zero(void) {
    __m256d z = _mm256_setzero_pd();
    return (squares_state){{z, z, z, z}};
}
LORA_INLINE void squares_add(squares_state *s, const float *p) {
    for (int j = 0; j < 4; j++) {
        __m256d g = _mm256_cvtps_pd(_mm_loadu_ps(p + 4 * j));
        s->lane[j] = _mm256_fmadd_pd(g, g, s->lane[j]);
    }
}
LORA_INLINE double squares_total(const squares_state *s) {
    __m256d a = _mm256_add_pd(_mm256_add_pd(s->lane[0], s->lane[2]), _mm256_add_pd(s->lane[1], s->lane[3]));
    __m128d h = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}

#define ROWWISE_FILL lora_rowwise_fill_avx2
#include "lora_c/kernels/tmpl/rowwise_tmpl.h"

LORA_TARGET_END
#else
typedef int lora_rowwise_avx2_empty;
#endif
