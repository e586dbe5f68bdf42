/* NF4 kernels, AVX2 + F16C: groups of 32 elements (a group never crosses a block). */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/half.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/nf4_kernels.h"
#include "lora_c/kernels/tmpl/nf4_source.h"

LORA_TARGET_BEGIN("avx2,fma,f16c")

/* Byte tables for pshufb, each 16 bytes in both halves: cells 0 .. 15 and cells -16 .. -1, and the codes of the intervals. */
typedef struct code_tables {
    __m256i base[2], low[2], high[2], code;
    const float *thresholds;
} code_tables;

/* 16 words below 256 as 16 bytes, in both lanes. */
LORA_INLINE __m256i twice(__m256i words) { return _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x88); }

static code_tables load_tables(const lora_codebook *book) {
    const __m256i byte = _mm256_set1_epi16(0xff);
    __m128i code = _mm_loadu_si128((const __m128i *)book->code);
    code_tables t = {.code = _mm256_broadcastsi128_si256(code), .thresholds = book->threshold};
    for (int half = 0; half < 2; half++) {
        __m256i threshold = _mm256_loadu_si256((const __m256i *)(book->cell_threshold + 16 * half));
        __m256i base = _mm256_loadu_si256((const __m256i *)(book->cell_base + 16 * half));
        t.base[half] = twice(base);
        t.low[half] = twice(_mm256_and_si256(threshold, byte));
        t.high[half] = twice(_mm256_srli_epi16(threshold, 8));
    }
    return t;
}

LORA_INLINE __m256 load_8(const void *x, lora_dtype dtype) {
    if (dtype == LORA_F32) return _mm256_loadu_ps(x);
    __m128i h = _mm_loadu_si128(x);
    return dtype == LORA_F16 ? _mm256_cvtph_ps(h) : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

LORA_INLINE uint32_t largest_of_8(__m256i v) {
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}

/* The largest magnitude as float32 bits: the bits of any of the types order like their values. */
LORA_INLINE uint32_t top_magnitude(const void *x, lora_dtype dtype, int64_t n) {
    __m256i top0 = _mm256_setzero_si256(), top1 = top0;
    if (dtype == LORA_F32) {
        const __m256i mask = _mm256_set1_epi32(0x7fffffff);
        for (int64_t i = 0; i < n; i += 16) {
            top0 = _mm256_max_epi32(top0, _mm256_and_si256(mask, _mm256_loadu_si256(at(x, dtype, i))));
            top1 = _mm256_max_epi32(top1, _mm256_and_si256(mask, _mm256_loadu_si256(at(x, dtype, i + 8))));
        }
        return largest_of_8(_mm256_max_epi32(top0, top1));
    }
    const __m256i mask = _mm256_set1_epi16(0x7fff);
    for (int64_t i = 0; i < n; i += GROUP) {
        top0 = _mm256_max_epi16(top0, _mm256_and_si256(mask, _mm256_loadu_si256(at(x, dtype, i))));
        top1 = _mm256_max_epi16(top1, _mm256_and_si256(mask, _mm256_loadu_si256(at(x, dtype, i + 16))));
    }
    top0 = _mm256_max_epi16(top0, top1);
    uint16_t top = (uint16_t)largest_of_8(_mm256_max_epi32(_mm256_srli_epi32(top0, 16), _mm256_and_si256(top0, _mm256_set1_epi32(0xffff))));
    return lora_bits_f32(dtype == LORA_BF16 ? lora_bf16_to_f32(top) : _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(top))));
}

/* Two pshufb cover 32 entries: an index with its top bit set reads 0, so the other half's table fills it in. */
LORA_INLINE __m256i lookup(const __m256i table[2], __m256i cell, __m256i flipped) {
    return _mm256_or_si256(_mm256_shuffle_epi8(table[0], cell), _mm256_shuffle_epi8(table[1], flipped));
}

/* Intervals of 32 elements as bytes, in the order that in-lane packing leaves (pack_nibbles undoes it). */
LORA_INLINE __m256i exact_intervals_of(const void *x, lora_dtype dtype, float inverse, const float *thresholds) {
    __m256i interval[4];
    for (int j = 0; j < 4; j++) {
        __m256 y = _mm256_mul_ps(load_8(at(x, dtype, 8 * j), dtype), _mm256_set1_ps(inverse));
        interval[j] = _mm256_setzero_si256();
        for (int t = 0; t < 15; t++) {
            __m256 above = _mm256_cmp_ps(y, _mm256_set1_ps(thresholds[t]), _CMP_GT_OQ);
            interval[j] = _mm256_sub_epi32(interval[j], _mm256_castps_si256(above));
        }
    }
    return _mm256_packs_epi16(_mm256_packs_epi32(interval[0], interval[1]), _mm256_packs_epi32(interval[2], interval[3]));
}

/* Out of line: rare, but for types without cells. */
__attribute__((noinline)) static __m256i exact_intervals(const void *x, lora_dtype dtype, float inverse, const float *thresholds) {
    if (dtype == LORA_F32) return exact_intervals_of(x, LORA_F32, inverse, thresholds);
    return dtype == LORA_BF16 ? exact_intervals_of(x, LORA_BF16, inverse, thresholds)
                              : exact_intervals_of(x, LORA_F16, inverse, thresholds);
}

LORA_INLINE __m256i scaled_integers(const void *x, lora_dtype dtype, __m256 scale) {
    return _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(load_8(x, dtype), scale)),
                              _mm256_cvtps_epi32(_mm256_mul_ps(load_8(at(x, dtype, 8), dtype), scale)));
}

LORA_INLINE __m256i group_intervals(const void *x, lora_dtype dtype, float inverse, __m256 scale, const code_tables *t) {
    __m256i q0 = scaled_integers(x, dtype, scale), q1 = scaled_integers(at(x, dtype, 16), dtype, scale);
    __m256i cell = _mm256_packs_epi16(_mm256_srai_epi16(q0, 11), _mm256_srai_epi16(q1, 11));
    __m256i flipped = _mm256_xor_si256(cell, _mm256_set1_epi8((char)0x80));
    __m256i low = lookup(t->low, cell, flipped), high = lookup(t->high, cell, flipped);
    __m256i t0 = _mm256_unpacklo_epi8(low, high), t1 = _mm256_unpackhi_epi8(low, high);
    __m256i equal = _mm256_or_si256(_mm256_cmpeq_epi16(q0, t0), _mm256_cmpeq_epi16(q1, t1));
    if (__builtin_expect(!_mm256_testz_si256(equal, equal), 0)) return exact_intervals(x, dtype, inverse, t->thresholds);
    __m256i above = _mm256_packs_epi16(_mm256_cmpgt_epi16(q0, t0), _mm256_cmpgt_epi16(q1, t1));
    return _mm256_sub_epi8(lookup(t->base, cell, flipped), above);
}

/* Each lane holds four codes of every eight; pairs become bytes, then 16-bit units of the two lanes alternate. */
LORA_INLINE __m128i pack_nibbles(__m256i codes) {
    __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0110));
    pairs = _mm256_packus_epi16(pairs, pairs);
    return _mm_unpacklo_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

LORA_INLINE __m128i packed_codes(const void *x, lora_dtype dtype, float inverse, bool fits, const code_tables *t) {
    __m256 scale = _mm256_set1_ps(inverse * 32768.0f);
    __m256i interval = fits ? group_intervals(x, dtype, inverse, scale, t) : exact_intervals(x, dtype, inverse, t->thresholds);
    return pack_nibbles(_mm256_shuffle_epi8(t->code, interval));
}

#define PUT_CODES(p, v) _mm_storeu_si128((__m128i *)(p), v)
#include "lora_c/kernels/tmpl/nf4_quantize_tmpl.h"

/* The table as four byte planes, so that one pshufb looks up 32 codes. */
static void load_planes(const float *lut, __m256i planes[4]) {
    for (int p = 0; p < 4; p++) {
        uint8_t plane[16];
        for (int i = 0; i < 16; i++) plane[i] = (uint8_t)(lora_bits_f32(lut[i]) >> 8 * p);
        planes[p] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)plane));
    }
}

/* 32 elements from 16 bytes. The lower lane gets elements 0-3 of every eight, the upper lane 4-7, because unpacking
 * works within lanes. */
LORA_INLINE void decode_group(const uint8_t *bytes, const __m256i planes[4], __m256 scale, float *dst) {
    const __m256i spread =
        _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15);
    __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes));
    v = _mm256_shuffle_epi8(v, spread);
    v = _mm256_blendv_epi8(_mm256_srli_epi16(v, 4), v, _mm256_set1_epi16((short)0xff00));
    v = _mm256_and_si256(v, _mm256_set1_epi8(15));
    __m256i p0 = _mm256_shuffle_epi8(planes[0], v), p1 = _mm256_shuffle_epi8(planes[1], v);
    __m256i p2 = _mm256_shuffle_epi8(planes[2], v), p3 = _mm256_shuffle_epi8(planes[3], v);
    __m256i low0 = _mm256_unpacklo_epi8(p0, p1), low1 = _mm256_unpackhi_epi8(p0, p1);
    __m256i high0 = _mm256_unpacklo_epi8(p2, p3), high1 = _mm256_unpackhi_epi8(p2, p3);
    _mm256_storeu_ps(dst, _mm256_mul_ps(scale, _mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0))));
    _mm256_storeu_ps(dst + 8, _mm256_mul_ps(scale, _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0))));
    _mm256_storeu_ps(dst + 16, _mm256_mul_ps(scale, _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1))));
    _mm256_storeu_ps(dst + 24, _mm256_mul_ps(scale, _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1))));
}

static void dequantize(const lora_nf4 *w, int64_t begin, int64_t count, float *dst) {
    __m256i planes[4];
    load_planes(w->lut, planes);
    int64_t end = begin + count;
    for (int64_t i = begin; i < end;) {
        int64_t block = i / w->block_size, stop = lora_min_i64((block + 1) * w->block_size, end);
        float scale = lora_nf4_absmax(w, block);
        for (; i < stop && i & 1; i++) *dst++ = w->lut[lora_nf4_code(w->codes, i)] * scale;
        for (; i + GROUP <= stop; i += GROUP, dst += GROUP) decode_group(w->codes + i / 2, planes, _mm256_set1_ps(scale), dst);
        for (; i < stop; i++) *dst++ = w->lut[lora_nf4_code(w->codes, i)] * scale;
    }
}

static void decode_absmax(const lora_nf4 *w, int64_t first_block, int64_t n, float *dst) {
    int64_t i = 0;
    while (!w->absmax && i < n) {
        int64_t nested = (first_block + i) / w->nested_block_size;
        int64_t stop = lora_min_i64(n, (nested + 1) * w->nested_block_size - first_block);
        __m256 scale = _mm256_set1_ps(w->nested_absmax[nested]), offset = _mm256_set1_ps(w->nested_offset);
        for (; i + 8 <= stop; i += 8) {
            __m128i code = _mm_loadl_epi64((const __m128i *)(w->absmax_codes + first_block + i));
            __m256 value = _mm256_i32gather_ps(w->nested_map, _mm256_cvtepu8_epi32(code), 4);
            _mm256_storeu_ps(dst + i, _mm256_add_ps(_mm256_mul_ps(value, scale), offset));
        }
        for (; i < stop; i++) dst[i] = lora_nf4_absmax(w, first_block + i);
    }
    for (; i < n; i++) dst[i] = w->absmax[first_block + i];
}

void lora_nf4_fill_avx2(lora_nf4_kernels *k) {
    *k = (lora_nf4_kernels){.quantize = quantize, .dequantize = dequantize, .decode_absmax = decode_absmax};
}

LORA_TARGET_END
#endif
