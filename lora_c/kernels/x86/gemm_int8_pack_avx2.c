/* Packing of int8 operands (AVX2), for the products with and without AVX-VNNI: the panels of gemm_int8_portable.c. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/x86/gemm_int8_pack_avx2.h"

LORA_TARGET_BEGIN("avx2,fma")

enum {
    BLOCK = LORA_GEMM_SCALE_BLOCK,
    STEPS = LORA_INT8_STEPS,
    VL = 8,
    HALF = 16 /* columns that one row's eight bytes of codes stand for */
};

/* --- values --- */

LORA_INLINE float largest_of_block(const float *x) {
    __m256i top = _mm256_setzero_si256(), magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int i = 0; i < BLOCK; i += VL) /* as integers NaN is above Inf */
        top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(const void *)(x + i)), magnitude));
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

LORA_INLINE __m256i rounded(const float *x, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse)); }

/* 32 values as words of eight steps. */
LORA_INLINE __m256i steps_of(const float *x, __m256 inverse) {
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packing is lane by lane */
    const __m256i even_odd = _mm256_set_epi64x(0x0f0d0b090e0c0a08, 0x0705030106040200, 0x0f0d0b090e0c0a08, 0x0705030106040200);
    __m256i low = _mm256_packs_epi32(rounded(x, inverse), rounded(x + 8, inverse));
    __m256i high = _mm256_packs_epi32(rounded(x + 16, inverse), rounded(x + 24, inverse));
    return _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order), even_odd);
}

LORA_INLINE int sum_of_bytes(__m256i first, __m256i second) {
    const __m256i ones = _mm256_set1_epi8(1), pairs = _mm256_set1_epi16(1);
    __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(ones, first), _mm256_maddubs_epi16(ones, second));
    sums = _mm256_madd_epi16(sums, pairs);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

/* Eight words into every stride-th step of a column. */
LORA_INLINE void put_words(uint32_t *to, int64_t stride, __m256i words) {
    uint32_t w[VL];
    _mm256_storeu_si256((__m256i *)(void *)w, words);
    for (int i = 0; i < VL; i++) to[i * stride] = w[i];
}

/* One block of a row as column i. */
static int put_row(const float *x, uint32_t *block, int64_t width, int64_t i, float *scale) {
    const lora_int8_scale q = lora_int8_scale_for(largest_of_block(x));
    const __m256 inverse = _mm256_set1_ps(q.inverse);
    __m256i first = steps_of(x, inverse), second = steps_of(x + BLOCK / 2, inverse);
    if (q.inverse == 0) first = second = _mm256_setzero_si256(); /* Inf * 0 */
    put_words(block + i, width, first);
    put_words(block + VL * width + i, width, second);
    *scale = q.scale;
    return sum_of_bytes(first, second);
}

void lora_int8_pack_left_rows_avx2(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    uint32_t *block = panel;
    for (int64_t k = 0; k < n; k += BLOCK, block += lora_int8_left_words(width)) {
        float *scales = (float *)(void *)(block + STEPS * width), padded[BLOCK] = {0};
        int32_t *corrections = (int32_t *)(void *)(scales + LORA_INT8_TERMS);
        for (int64_t i = 0; i < n_rows; i++) {
            const float *x = source + i * ld + k;
            for (int64_t j = 0; n - k < BLOCK && j < n - k; j++) padded[j] = x[j];
            corrections[i] = -LORA_INT8_OFFSET * put_row(n - k < BLOCK ? padded : x, block, width, i, scales + i);
        }
    }
}

/* --- 4 bits --- */

LORA_INLINE __m128i with_offset(__m128i bytes) { return _mm_xor_si128(bytes, _mm_set1_epi8(-LORA_INT8_OFFSET)); }

/* The 16 entries times a factor, rounded, with their offset. */
LORA_INLINE __m128i table_of(const float *lut, float factor) {
    const __m256 f = _mm256_set1_ps(factor);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i words = _mm256_packs_epi32(rounded(lut, f), rounded(lut + VL, f));
    words = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words, words), in_order);
    return with_offset(_mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm_srli_si128(_mm256_castsi256_si128(words), 8)));
}

void lora_int8_pack_nf4_rows_avx2(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width,
                                  void *panel) {
    const float top = lora_int8_largest_entry(w->lut), levels = lora_int8_table_levels(w->lut);
    const __m256i table = _mm256_broadcastsi128_si256(table_of(w->lut, levels / top)), nibble = _mm256_set1_epi8(15);
    uint32_t *block = panel;
    for (int64_t k = 0; k < n; k += BLOCK, block += lora_int8_right_words(width)) {
        float *scales = (float *)(void *)(block + STEPS * width);
        for (int64_t j = 0; j < n_rows; j++) {
            const int64_t at = (row + j) * w->cols + first_col + k;
            const __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)(w->codes + at / 2));
            put_words(block + j, 2 * width, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble)));
            put_words(block + width + j, 2 * width, _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble)));
            scales[j] = lora_nf4_absmax(w, at / w->block_size) * (top / levels);
        }
        for (int64_t j = n_rows; j < width; j++) {
            for (int64_t s = 0; s < STEPS; s++) block[s * width + j] = 0x80808080u; /* zeros */
            scales[j] = 0;
        }
    }
}

/* 16 columns of a row. */
LORA_INLINE __m128i decode_half(const uint8_t *codes, __m128i table) {
    const __m128i nibble = _mm_set1_epi8(15), v = _mm_loadl_epi64((const __m128i *)(const void *)codes);
    return _mm_shuffle_epi8(table, _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(v, 4), nibble), _mm_and_si128(v, nibble)));
}

/* 16 columns of four rows as words of one step. */
LORA_INLINE void put_step(uint32_t *to, const __m128i r[4]) {
    __m128i low01 = _mm_unpacklo_epi8(r[0], r[1]), high01 = _mm_unpackhi_epi8(r[0], r[1]);
    __m128i low23 = _mm_unpacklo_epi8(r[2], r[3]), high23 = _mm_unpackhi_epi8(r[2], r[3]);
    _mm_storeu_si128((__m128i *)(void *)to, _mm_unpacklo_epi16(low01, low23));
    _mm_storeu_si128((__m128i *)(void *)(to + 4), _mm_unpackhi_epi16(low01, low23));
    _mm_storeu_si128((__m128i *)(void *)(to + 8), _mm_unpacklo_epi16(high01, high23));
    _mm_storeu_si128((__m128i *)(void *)(to + 12), _mm_unpackhi_epi16(high01, high23));
}

/* A block of n rows of nr columns from col on, which lie in one run of 64. */
static void put_square(const lora_nf4 *w, float lut_top, int64_t row, int64_t n, int64_t col, int64_t nr, uint32_t *block) {
    const lora_int8_scale q = lora_int8_square_scale(w, lut_top, row, n, col);
    for (int64_t k = 0; k < BLOCK; k += 8, block += 2 * nr) {
        const uint8_t *codes[8];
        __m128i tables[8];
        for (int64_t i = 0; i < 8; i++) {
            const int64_t at = (row + lora_min_i64(k + i, n - 1)) * w->cols + col;
            const float scale = k + i < n && q.inverse != 0 ? lora_nf4_absmax(w, at / w->block_size) : 0.0f; /* not Inf * 0 */
            codes[i] = w->codes + at / 2;
            tables[i] = table_of(w->lut, scale * q.inverse);
        }
        for (int64_t j = 0; j < nr; j += HALF)
            for (int64_t odd = 0; odd < 2; odd++) {
                __m128i r[4];
                for (int64_t i = 0; i < 4; i++) r[i] = decode_half(codes[2 * i + odd] + j / 2, tables[2 * i + odd]);
                put_step(block + odd * nr + j, r);
            }
    }
    for (int64_t j = 0; j < nr; j++) ((float *)(void *)block)[j] = q.scale;
}

void lora_int8_pack_nf4_columns_avx2(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, int64_t nr,
                                     void *panels, int64_t panel_words) {
    const float top = lora_int8_largest_entry(w->lut);
    for (int64_t p = 0; p < n_panels; p++) {
        uint32_t *block = (uint32_t *)panels + p * panel_words;
        for (int64_t k = 0; k < n; k += BLOCK, block += lora_int8_right_words(nr))
            put_square(w, top, row + k, lora_min_i64(BLOCK, n - k), first_col + p * nr, nr, block);
    }
}

LORA_TARGET_END
#endif
