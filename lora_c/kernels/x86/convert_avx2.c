/* Conversions, AVX2 + F16C. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/kernels/convert_kernels.h"
#include "lora_c/kernels/tmpl/int8_rounding_tmpl.h"
#include "lora_c/types.h"

LORA_TARGET_BEGIN("avx2,fma,f16c")

static void bf16_to_f32(int64_t n, const uint16_t *src, float *dst) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(src + i)));
        _mm256_storeu_si256((__m256i *)(dst + i), _mm256_slli_epi32(v, 16));
    }
    for (; i < n; i++) dst[i] = lora_bf16_to_f32(src[i]);
}

static void f16_to_f32(int64_t n, const uint16_t *src, float *dst) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + i))));
    for (; i < n; i++) dst[i] = lora_f16_to_f32(src[i]);
}

LORA_INLINE __m256i round_to_bf16(__m256i u) {
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
    __m256i nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}

static void f32_to_bf16(int64_t n, const float *src, uint16_t *dst) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256i a = round_to_bf16(_mm256_loadu_si256((const __m256i *)(src + i)));
        __m256i b = round_to_bf16(_mm256_loadu_si256((const __m256i *)(src + i + 8)));
        __m256i v = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
        _mm256_storeu_si256((__m256i *)(dst + i), v);
    }
    for (; i < n; i++) dst[i] = lora_f32_to_bf16(src[i]);
}

static void f32_to_f16(int64_t n, const float *src, uint16_t *dst) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i v = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128((__m128i *)(dst + i), v);
    }
    for (; i < n; i++) dst[i] = lora_f32_to_f16(src[i]);
}

/* The largest magnitude of a block: as integers NaN is above Inf. */
LORA_INLINE float largest_of_block(const float *src) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < LORA_INT8_BLOCK; i += 8)
        top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(src + i)), magnitude));
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(half));
}

LORA_INLINE __m256i rounded(const float *src, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(src), inverse)); }

static void f32_to_int8(int64_t n, const float *src, int8_t *dst, float *scales) {
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packing is lane by lane */
    int64_t i = 0;
    for (; i + LORA_INT8_BLOCK <= n; i += LORA_INT8_BLOCK) {
        lora_int8_scale q = lora_int8_scale_for(largest_of_block(src + i));
        __m256 inverse = _mm256_set1_ps(q.inverse);
        *scales++ = q.scale;
        for (int j = 0; j < LORA_INT8_BLOCK; j += 32) {
            const float *in = src + i + j;
            __m256i low = _mm256_packs_epi32(rounded(in, inverse), rounded(in + 8, inverse)),
                    high = _mm256_packs_epi32(rounded(in + 16, inverse), rounded(in + 24, inverse));
            __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order);
            if (q.inverse == 0) bytes = _mm256_setzero_si256(); /* Inf * 0 */
            _mm256_storeu_si256((__m256i *)(dst + i + j), bytes);
        }
    }
    if (i == n) return;
    lora_int8_scale q = lora_int8_scale_for(lora_int8_largest(src + i, 1, n - i));
    *scales = q.scale;
    for (; i < n; i++) dst[i] = (int8_t)lora_to_int8(src[i] * q.inverse);
}

static void int8_to_f32(int64_t n, const int8_t *src, const float *scales, float *dst) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) { /* eights lie within blocks */
        __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(src + i))));
        _mm256_storeu_ps(dst + i, _mm256_mul_ps(v, _mm256_set1_ps(scales[i / LORA_INT8_BLOCK])));
    }
    for (; i < n; i++) dst[i] = (float)src[i] * scales[i / LORA_INT8_BLOCK];
}

void lora_convert_fill_avx2(lora_convert_kernels *k) {
    *k = (lora_convert_kernels){.bf16_to_f32 = bf16_to_f32,
                                .f16_to_f32 = f16_to_f32,
                                .f32_to_bf16 = f32_to_bf16,
                                .f32_to_f16 = f32_to_f16,
                                .f32_to_int8 = f32_to_int8,
                                .int8_to_f32 = int8_to_f32};
}

LORA_TARGET_END
#endif
