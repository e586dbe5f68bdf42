/* NF4 kernels, AVX-512 (F, BW, DQ, VL): the scheme of the AVX2 file, with whole-table permutes. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/half.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/nf4_kernels.h"
#include "lora_c/kernels/tmpl/nf4_cells.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")

enum {
    GROUP = 32,
    BATCH = 1024,    /* elements whose scales are found together; they stay in the L1 cache */
    PREFETCH = 8192, /* bytes ahead: two batches; 80 % of the speed of a plain read stream instead of 50 % without */
};

LORA_INLINE int32_t top_magnitude(const float *x, int64_t n) {
    const __m512i mask = _mm512_set1_epi32(0x7fffffff);
    __m512i top0 = _mm512_setzero_si512(), top1 = top0;
    for (int64_t i = 0; i < n; i += GROUP) {
        top0 = _mm512_max_epi32(top0, _mm512_and_si512(mask, _mm512_loadu_si512(x + i)));
        top1 = _mm512_max_epi32(top1, _mm512_and_si512(mask, _mm512_loadu_si512(x + i + 16)));
    }
    return _mm512_reduce_max_epi32(_mm512_max_epi32(top0, top1));
}

/* Codes of 16 elements in order, by the 15 comparisons. */
LORA_INLINE __m512i exact_codes_16(const float *x, float inverse) {
    static const float thresholds[15] = {LORA_NF4_THRESHOLDS(LORA_NF4_THRESHOLD_)};
    __m512 y = _mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse));
    __m512i code = _mm512_setzero_si512();
    for (int t = 0; t < 15; t++) {
        __mmask16 above = _mm512_cmp_ps_mask(y, _mm512_set1_ps(thresholds[t]), _CMP_GT_OQ);
        code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(1));
    }
    return code;
}

/* Codes of 32 elements as 16-bit integers, in the order that in-lane packing leaves (pack_nibbles undoes it). */
__attribute__((noinline)) static __m512i exact_codes(const float *x, float inverse) {
    return _mm512_packs_epi32(exact_codes_16(x, inverse), exact_codes_16(x + 16, inverse));
}

LORA_INLINE __m512i group_codes(const float *x, float inverse, __m512 scale, __m512i threshold, __m512i base) {
    __m512i q = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), scale)),
                                   _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), scale)));
    __m512i cell = _mm512_srai_epi16(q, 11); /* the permute reads the low five bits only */
    __m512i t = _mm512_permutexvar_epi16(cell, threshold);
    if (__builtin_expect(_mm512_cmpeq_epi16_mask(q, t) != 0, 0)) return exact_codes(x, inverse);
    __m512i code = _mm512_permutexvar_epi16(cell, base);
    return _mm512_mask_add_epi16(code, _mm512_cmpgt_epi16_mask(q, t), code, _mm512_set1_epi16(1));
}

/* Pairs become 32-bit bytes; lane l holds pairs 2l, 2l + 1 of the first and of the second 16 elements. */
LORA_INLINE __m128i pack_nibbles(__m512i codes) {
    const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m512i pairs = _mm512_madd_epi16(codes, _mm512_set1_epi32(0x00010010));
    return _mm512_cvtepi32_epi8(_mm512_permutexvar_epi32(order, pairs));
}

static int64_t quantize(const float *x, int64_t n_blocks, int64_t block_size, uint8_t *codes, float *absmax) {
    const __m512i threshold = _mm512_loadu_si512(lora_nf4_cell_threshold);
    const __m512i base = _mm512_loadu_si512(lora_nf4_cell_base);
    /* The scales of a batch come first: their latency (reduction, division) then overlaps instead of adding up. */
    int64_t batch = block_size < BATCH ? BATCH / block_size : 1;
    for (int64_t first = 0; first < n_blocks; first += batch, absmax += batch) {
        int64_t n = lora_min_i64(batch, n_blocks - first);
        float inverse[BATCH / GROUP];
        for (int64_t b = 0; b < n; b++) {
            int32_t top = top_magnitude(x + b * block_size, block_size);
            if (top >= 0x7f800000) return first + b;
            absmax[b] = lora_f32_bits((uint32_t)top);
            inverse[b] = 1.0f / (absmax[b] > LORA_NF4_MIN_ABSMAX ? absmax[b] : LORA_NF4_MIN_ABSMAX);
        }
        for (int64_t b = 0; b < n; b++) {
            bool fits = absmax[b] >= LORA_NF4_CELL_MIN_ABSMAX;
            __m512 scale = _mm512_set1_ps(inverse[b] * 32768.0f);
            for (int64_t i = 0; i < block_size; i += GROUP, x += GROUP, codes += GROUP / 2) {
                _mm_prefetch((const char *)x + PREFETCH, _MM_HINT_T0);
                _mm_prefetch((const char *)x + PREFETCH + 64, _MM_HINT_T0);
                __m512i c = fits ? group_codes(x, inverse[b], scale, threshold, base) : exact_codes(x, inverse[b]);
                _mm_storeu_si128((__m128i *)codes, pack_nibbles(c));
            }
        }
    }
    return n_blocks;
}

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

#pragma GCC pop_options
#endif
