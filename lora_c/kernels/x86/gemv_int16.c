/* int16 products of a few tokens with 4-bit rows (AVX512_VNNI): 64 elements of a token share one scale, max |value| / 16383. A
 * lane sums eight products exactly: 8 * 16383^2 < 2^31. Dense rows keep their float32 products. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemv_kernels.h"

LORA_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

static const float LEVELS = 16383.0f, TINY = 1e-30f; /* blocks below TINY are zero: LEVELS / TINY must be finite */

typedef struct levels {
    __m512i table;
    float unit;
} levels;

/* 16 values first and 16 second, times inverse. */
LORA_INLINE __m512i quantize_pair(__m512 first, __m512 second, __m512 inverse) {
    __m256i low = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(first, inverse)));
    __m256i high = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(second, inverse)));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

LORA_INLINE levels load_levels(const float *lut) {
    __m512 values = _mm512_loadu_ps(lut);
    float top = _mm512_reduce_max_ps(_mm512_abs_ps(values));
    if (!(top >= TINY)) return (levels){.table = _mm512_setzero_si512(), .unit = top == 0 ? 0 : NAN};
    return (levels){.table = quantize_pair(values, values, _mm512_set1_ps(LEVELS / top)), .unit = top / LEVELS};
}

LORA_INLINE __m512i dot_group(const __m512i *w, const __m512i *x) {
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < 4; i++) sum = _mm512_dpwssd_epi32(sum, w[i], _mm512_load_si512(x + i));
    return sum;
}

#define GEMV_NF4 gemv_nf4_int16
#define DOT_GROUP dot_group
#define ADD_SCALED(acc, s, scale, x)                                                                                                       \
    _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_load_ps((const float *)(const void *)((x) + 4))), _mm512_cvtepi32_ps(s), acc)
#define GROUP_VECTORS 5 /* the last holds the scale of each lane */
#define table_of(l) ((l).table)
#define unit_of(l) ((l).unit)

#include "lora_c/kernels/tmpl/gemv_pairs_avx512.h"

/* 64 values of x from i on, zeros from k on, as 64 words; returns their scale, NaN where one is not finite. */
LORA_INLINE float quantize_64(const float *x, int64_t i, int64_t k, __m512i *out) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i v[4], top = _mm512_setzero_si512();
    UNROLL for (int j = 0; j < 4; j++) {
        v[j] = _mm512_maskz_loadu_epi32(lora_first_lanes(k - i - 16 * j), x + i + 16 * j);
        top = _mm512_max_epu32(top, _mm512_and_si512(v[j], magnitude)); /* as integers NaN is above Inf */
    }
    float largest = _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32((int)_mm512_reduce_max_epu32(top))));
    bool usable = largest >= TINY && largest <= 3.402823466e38f;
    __m512 inverse = _mm512_set1_ps(usable ? LEVELS / largest : 0.0f);
    for (int j = 0; j < 2; j++) out[j] = quantize_pair(_mm512_castsi512_ps(v[2 * j]), _mm512_castsi512_ps(v[2 * j + 1]), inverse);
    return usable ? largest / LEVELS : largest < TINY ? 0.0f : NAN;
}

static void arrange(int64_t k, const float *x, void *out) {
    __m512i *to = out;
    for (int64_t i = 0; i < k; i += GROUP, to += GROUP_VECTORS) {
        __m512i in[4];
        float low = quantize_64(x, i, k, in), high = quantize_64(x, i + 64, k, in + 2);
        lora_arrange_group(in, to);
        _mm512_store_ps(to + 4, _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(low), _mm512_set1_ps(high)));
    }
}

void lora_gemv_fill_int16(lora_gemv_path *p) {
    p->group = GROUP;
    p->group_bytes = GROUP_BYTES;
    p->arrange = arrange;
    p->nf4 = gemv_nf4_int16;
}

LORA_TARGET_END
#endif
