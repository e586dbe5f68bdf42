/* exp of a float32 vector: lora_exp_avx2(__m256), lora_exp_avx512(__m512) and lora_exp_neon(float32x4_t).
 * Method    n = round(x / ln 2), r = x - n ln 2 in two steps (ln 2 split so that n * hi is exact), a polynomial of
 *           degree 6 on |r| <= ln 2 / 2 (Cephes expf coefficients), then n is added to the exponent field.
 * Range     0 below -87.3 (no denormals), +Inf above 88.72, exactly 1 at 0, NaN kept.
 * Numerics  at most 1.1 ulp from the exact value, measured over the range in tests/c/check_rowwise.c. */
#ifndef LORA_EXP_TMPL_H
#define LORA_EXP_TMPL_H

#include "lora_c/base/util.h"

#define LORA_EXP_LOWEST (-87.3f)
#define LORA_EXP_HIGHEST 88.7228317f /* largest float whose exp is finite */
#define LORA_EXP_LOG2E 1.44269504088896341f
#define LORA_EXP_LN2_HI 0.693359375f
#define LORA_EXP_LN2_LO (-2.12194440e-4f)
#define LORA_EXP_C6 1.9875691500e-4f
#define LORA_EXP_C5 1.3981999507e-3f
#define LORA_EXP_C4 8.3334519073e-3f
#define LORA_EXP_C3 4.1665795894e-2f
#define LORA_EXP_C2 1.6666665459e-1f
#define LORA_EXP_C1 5.0000001201e-1f

/* sqrt(2 / pi) of the tanh form of GELU, and the polynomial of tanh near 0 (Cephes tanhf). */
#define LORA_GELU_K 0.797884560802865356f
#define LORA_TANH_SMALL 0.625f
#define LORA_TANH_C4 (-5.70498872745e-3f)
#define LORA_TANH_C3 2.06390887954e-2f
#define LORA_TANH_C2 (-5.37397155531e-2f)
#define LORA_TANH_C1 1.33314422036e-1f
#define LORA_TANH_C0 (-3.33332819422e-1f)

#if defined(__x86_64__)
#include <immintrin.h>

LORA_TARGET("avx2,fma") LORA_INLINE __m256 lora_exp_avx2(__m256 x) {
    /* cvtps gives 0x80000000 for NaN and out-of-range x; shifted by 23 that is 0, so a NaN stays a NaN below. */
    __m256i n = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(LORA_EXP_LOG2E)));
    __m256 nf = _mm256_cvtepi32_ps(n);
    __m256 r = _mm256_fnmadd_ps(nf, _mm256_set1_ps(LORA_EXP_LN2_HI), x);
    r = _mm256_fnmadd_ps(nf, _mm256_set1_ps(LORA_EXP_LN2_LO), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(LORA_EXP_C6), r, _mm256_set1_ps(LORA_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(LORA_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(LORA_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(LORA_EXP_C2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(LORA_EXP_C1));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
    p = _mm256_add_ps(p, _mm256_set1_ps(1.0f));
    /* Adding to the exponent field reaches 2^128 * p for p < 1, which multiplying by 2^n cannot. */
    __m256 y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(n, 23)));
    __m256 high = _mm256_cmp_ps(x, _mm256_set1_ps(LORA_EXP_HIGHEST), _CMP_GT_OQ);
    __m256 low = _mm256_cmp_ps(x, _mm256_set1_ps(LORA_EXP_LOWEST), _CMP_LT_OQ);
    y = _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()), high);
    return _mm256_andnot_ps(low, y);
}

LORA_TARGET("avx512f") LORA_INLINE __m512 lora_exp_avx512(__m512 x) {
    __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(LORA_EXP_LOG2E)));
    __m512 nf = _mm512_cvtepi32_ps(n);
    __m512 r = _mm512_fnmadd_ps(nf, _mm512_set1_ps(LORA_EXP_LN2_HI), x);
    r = _mm512_fnmadd_ps(nf, _mm512_set1_ps(LORA_EXP_LN2_LO), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(LORA_EXP_C6), r, _mm512_set1_ps(LORA_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(LORA_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(LORA_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(LORA_EXP_C2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(LORA_EXP_C1));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
    p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
    __m512 y = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(n, 23)));
    __mmask16 high = _mm512_cmp_ps_mask(x, _mm512_set1_ps(LORA_EXP_HIGHEST), _CMP_GT_OQ);
    __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(LORA_EXP_LOWEST), _CMP_NLT_UQ);
    y = _mm512_mask_blend_ps(high, y, _mm512_set1_ps(__builtin_inff()));
    return _mm512_maskz_mov_ps(keep, y);
}
#elif defined(__aarch64__)
#include <arm_neon.h>

LORA_INLINE float32x4_t lora_exp_neon(float32x4_t x) {
    int32x4_t n = vcvtnq_s32_f32(vmulq_f32(x, vdupq_n_f32(LORA_EXP_LOG2E))); /* 0 for NaN, saturated out of range */
    float32x4_t nf = vcvtq_f32_s32(n);
    float32x4_t r = vfmsq_f32(x, nf, vdupq_n_f32(LORA_EXP_LN2_HI));
    r = vfmsq_f32(r, nf, vdupq_n_f32(LORA_EXP_LN2_LO));
    float32x4_t p = vfmaq_f32(vdupq_n_f32(LORA_EXP_C5), vdupq_n_f32(LORA_EXP_C6), r);
    p = vfmaq_f32(vdupq_n_f32(LORA_EXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(LORA_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(LORA_EXP_C2), p, r);
    p = vfmaq_f32(vdupq_n_f32(LORA_EXP_C1), p, r);
    p = vfmaq_f32(r, p, vmulq_f32(r, r));
    p = vaddq_f32(p, vdupq_n_f32(1.0f));
    float32x4_t y = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(n, 23)));
    y = vbslq_f32(vcgtq_f32(x, vdupq_n_f32(LORA_EXP_HIGHEST)), vdupq_n_f32(__builtin_inff()), y);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcltq_f32(x, vdupq_n_f32(LORA_EXP_LOWEST))));
}
#endif

#endif
