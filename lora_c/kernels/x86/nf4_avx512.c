/* NF4 kernels, AVX-512 (F, BW, DQ, VL): the scheme of the AVX2 file, with whole-table permutes. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/half.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/nf4_kernels.h"
#include "lora_c/kernels/tmpl/nf4_source.h"

LORA_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")

LORA_INLINE __m512 load_16(const void *x, lora_dtype dtype) {
    if (dtype == LORA_F32) return _mm512_loadu_ps(x);
    __m256i h = _mm256_loadu_si256(x);
    return dtype == LORA_F16 ? _mm512_cvtph_ps(h) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* The largest magnitude as float32 bits: the bits of any of the types order like their values. */
LORA_INLINE uint32_t top_magnitude(const void *x, lora_dtype dtype, int64_t n) {
    __m512i top0 = _mm512_setzero_si512(), top1 = top0;
    if (dtype == LORA_F32) {
        const __m512i mask = _mm512_set1_epi32(0x7fffffff);
        for (int64_t i = 0; i < n; i += GROUP) {
            top0 = _mm512_max_epi32(top0, _mm512_and_si512(mask, _mm512_loadu_si512(at(x, dtype, i))));
            top1 = _mm512_max_epi32(top1, _mm512_and_si512(mask, _mm512_loadu_si512(at(x, dtype, i + 16))));
        }
        return (uint32_t)_mm512_reduce_max_epi32(_mm512_max_epi32(top0, top1));
    }
    const __m512i mask = _mm512_set1_epi16(0x7fff);
    for (int64_t i = 0; i < n; i += GROUP) top0 = _mm512_max_epi16(top0, _mm512_and_si512(mask, _mm512_loadu_si512(at(x, dtype, i))));
    top1 = _mm512_max_epi32(_mm512_srli_epi32(top0, 16), _mm512_and_si512(top0, _mm512_set1_epi32(0xffff)));
    uint16_t top = (uint16_t)_mm512_reduce_max_epi32(top1);
    return lora_bits_f32(dtype == LORA_BF16 ? lora_bf16_to_f32(top) : _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(top))));
}

typedef struct code_tables {
    __m512i threshold, base; /* of the cells */
    __m512i code;            /* of the intervals, twice */
    const float *thresholds;
} code_tables;

LORA_INLINE code_tables load_tables(const lora_codebook *book) {
    __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)book->code));
    return (code_tables){.threshold = _mm512_loadu_si512(book->cell_threshold),
                         .base = _mm512_loadu_si512(book->cell_base),
                         .code = _mm512_broadcast_i64x4(code),
                         .thresholds = book->threshold};
}

/* Intervals of 16 elements in order, by the 15 comparisons. */
LORA_INLINE __m512i exact_intervals_16(__m512 x, float inverse, const float *thresholds) {
    __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(inverse));
    __m512i interval = _mm512_setzero_si512();
    for (int t = 0; t < 15; t++) {
        __mmask16 above = _mm512_cmp_ps_mask(y, _mm512_set1_ps(thresholds[t]), _CMP_GT_OQ);
        interval = _mm512_mask_add_epi32(interval, above, interval, _mm512_set1_epi32(1));
    }
    return interval;
}

/* Intervals of 32 elements as 16-bit integers, in the order that in-lane packing leaves (pack_nibbles undoes it). */
__attribute__((noinline)) static __m512i exact_intervals(__m512 x0, __m512 x1, float inverse, const float *thresholds) {
    return _mm512_packs_epi32(exact_intervals_16(x0, inverse, thresholds), exact_intervals_16(x1, inverse, thresholds));
}

LORA_INLINE __m512i group_intervals(__m512 x0, __m512 x1, float inverse, __m512 scale, const code_tables *tables) {
    __m512i q = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x0, scale)), _mm512_cvtps_epi32(_mm512_mul_ps(x1, scale)));
    __m512i cell = _mm512_srai_epi16(q, 11); /* the permute reads the low five bits only */
    __m512i t = _mm512_permutexvar_epi16(cell, tables->threshold);
    if (__builtin_expect(_mm512_cmpeq_epi16_mask(q, t) != 0, 0)) return exact_intervals(x0, x1, inverse, tables->thresholds);
    __m512i base = _mm512_permutexvar_epi16(cell, tables->base);
    return _mm512_mask_add_epi16(base, _mm512_cmpgt_epi16_mask(q, t), base, _mm512_set1_epi16(1));
}

/* Pairs become 32-bit bytes; lane l holds pairs 2l, 2l + 1 of the first and of the second 16 elements. */
LORA_INLINE __m128i pack_nibbles(__m512i codes) {
    const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m512i pairs = _mm512_madd_epi16(codes, _mm512_set1_epi32(0x00010010));
    return _mm512_cvtepi32_epi8(_mm512_permutexvar_epi32(order, pairs));
}

LORA_INLINE __m128i packed_codes(const void *x, lora_dtype dtype, float inverse, bool fits, const code_tables *t) {
    __m512 x0 = load_16(x, dtype), x1 = load_16(at(x, dtype, 16), dtype), scale = _mm512_set1_ps(inverse * 32768.0f);
    __m512i interval = fits ? group_intervals(x0, x1, inverse, scale, t) : exact_intervals(x0, x1, inverse, t->thresholds);
    return pack_nibbles(_mm512_permutexvar_epi16(interval, t->code));
}

#define PUT_CODES(p, v) _mm_storeu_si128((__m128i *)(p), v)
#include "lora_c/kernels/tmpl/nf4_quantize_tmpl.h"

/* 16 elements from 8 bytes: each byte doubled, the even copy shifted down; the permute reads four bits only. */
LORA_INLINE __m512 decode_16(const uint8_t *bytes, __m512 lut) {
    const __m512i shift = _mm512_set1_epi64(4); /* dwords 4, 0, 4, 0, … */
    __m128i v = _mm_loadl_epi64((const __m128i *)bytes);
    __m512i wide = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(v, v));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(wide, shift), lut);
}

static void dequantize(const lora_nf4 *w, int64_t begin, int64_t count, float *dst) {
    const __m512 lut = _mm512_loadu_ps(w->lut);
    int64_t end = begin + count;
    for (int64_t i = begin; i < end;) {
        int64_t block = i / w->block_size, stop = lora_min_i64((block + 1) * w->block_size, end);
        float scale = lora_nf4_absmax(w, block);
        for (; i < stop && i & 1; i++) *dst++ = w->lut[lora_nf4_code(w->codes, i)] * scale;
        for (; i + 16 <= stop; i += 16, dst += 16)
            _mm512_storeu_ps(dst, _mm512_mul_ps(decode_16(w->codes + i / 2, lut), _mm512_set1_ps(scale)));
        for (; i < stop; i++) *dst++ = w->lut[lora_nf4_code(w->codes, i)] * scale;
    }
}

void lora_nf4_fill_avx512(lora_nf4_kernels *k) {
    k->quantize = quantize;
    k->dequantize = dequantize;
}

LORA_TARGET_END
#endif
