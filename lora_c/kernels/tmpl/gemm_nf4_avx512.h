/* What the packing steps of all paths share when they read 4-bit weights. Needs AVX-512 F, BW, DQ, VL by the includer. */
#ifndef LORA_GEMM_NF4_AVX512_H
#define LORA_GEMM_NF4_AVX512_H

#include <immintrin.h>

#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/gemm_kernels.h"
#include "lora_c/kernels/tmpl/transpose_avx512.h"

enum { LORA_NF4_CHUNK = 64 }; /* elements that never straddle two blocks: starts are multiples of it */

LORA_INLINE __mmask16 lora_first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* scales[c * stride] = scale of the chunk at element begin + 64 c. Divisors are powers of two. The product is rounded
 * before the sum, as in lora_nf4_absmax. */
LORA_INLINE void lora_nf4_chunk_scales(const lora_nf4 *w, int64_t begin, int64_t n_chunks, float *scales, int64_t stride) {
    int shift = __builtin_ctzll((unsigned long long)w->block_size);
    if (w->absmax) {
        LORA_SCALAR_LOOP for (int64_t c = 0; c < n_chunks; c++) scales[c * stride] = w->absmax[(begin + LORA_NF4_CHUNK * c) >> shift];
        return;
    }
    int nested = __builtin_ctzll((unsigned long long)w->nested_block_size);
    LORA_SCALAR_LOOP for (int64_t c = 0; c < n_chunks; c++) {
        int64_t block = (begin + LORA_NF4_CHUNK * c) >> shift;
        float product = w->nested_map[w->absmax_codes[block]] * w->nested_absmax[block >> nested];
        scales[c * stride] = product + w->nested_offset;
    }
}

/* Codes of 16 rows and up to 128 columns: afterwards word d of lane r holds columns 8 d .. 8 d + 7 of row r, byte by byte,
 * even column in the high nibble. Rows from n_rows on are zero; only the first n columns are read. */
LORA_INLINE void lora_nf4_load_16_rows(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t col, int64_t n, __m512i words[16]) {
    __mmask16 mask = n >= 2 * LORA_NF4_CHUNK ? 0xffff : 0x00ff;
    const uint8_t *codes = w->codes + (row * w->cols + col) / 2;
    for (int i = 0; i < 16; i++, codes += w->cols / 2) {
        /* the next 16 rows: runs in rows far apart are too short to be foreseen; into L2, as many rows share few sets of L1 */
        __builtin_prefetch(codes + 16 * (w->cols / 2), 0, 2);
        words[i] = i < n_rows ? _mm512_maskz_loadu_epi32(mask, codes) : _mm512_setzero_si512();
    }
    lora_transpose_16x16(words);
}

/* Scales of 16 rows, [chunk][16]; 0 for rows from n_rows on. */
LORA_INLINE void lora_nf4_scales_16_rows(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t col, int64_t n, float *scales) {
    if (n_rows < 16)
        for (int64_t i = 0; i < n / LORA_NF4_CHUNK * 16; i++) scales[i] = 0;
    for (int64_t i = 0; i < n_rows; i++) lora_nf4_chunk_scales(w, (row + i) * w->cols + col, n / LORA_NF4_CHUNK, scales + i, 16);
}

/* pack_nf4_rows of a path without scales of its own. store writes the steps of eight columns of 16 rows, from a word of
 * lora_nf4_load_16_rows whose nibbles in column order stand at LORA_NF4_SHIFTS. */
static const int LORA_NF4_SHIFTS[8] = {4, 0, 12, 8, 20, 16, 28, 24};
typedef void lora_nf4_store(__m512i word, __m512 scale, __m512 lut, uint32_t *out, int64_t width);

LORA_INLINE void lora_nf4_pack_rows(lora_nf4_store *store, int64_t k_per_step, const lora_nf4 *w, int64_t row, int64_t n_rows,
                                    int64_t first_col, int64_t n, int64_t width, void *panel) {
    const __m512 lut = _mm512_loadu_ps(w->lut);
    float scales[LORA_GEMM_MAX_KC / LORA_NF4_CHUNK * 16];
    for (int64_t first = 0; first < width; first += 16) {
        uint32_t *out = (uint32_t *)panel + first;
        int64_t here = lora_min_i64(lora_max_i64(n_rows - first, 0), 16);
        lora_nf4_scales_16_rows(w, row + first, here, first_col, n, scales);
        for (int64_t k = 0; k < n; k += 2 * LORA_NF4_CHUNK) {
            __m512i words[16];
            lora_nf4_load_16_rows(w, row + first, here, first_col + k, n - k, words);
            int64_t n_words = lora_min_i64(16, (n - k) / 8);
            for (int64_t d = 0; d < n_words; d++)
                store(words[d], _mm512_loadu_ps(scales + (k + 8 * d) / LORA_NF4_CHUNK * 16), lut, out + (k + 8 * d) / k_per_step * width,
                      width);
        }
    }
}

/* Index words for vpermw from 16 columns of two rows: lane j is code(first, j) | (16 + code(second, j)) << 16 in the
 * five bits of each half that the instruction reads. first and second point to the 8 bytes of the columns. */
LORA_INLINE __m512i lora_nf4_pair_indices(const uint8_t *first, const uint8_t *second) {
    __m128i t = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)first), _mm_loadl_epi64((const __m128i *)second));
    __m256i twice = _mm256_set_m128i(_mm_unpackhi_epi16(t, t), _mm_unpacklo_epi16(t, t));
    __m512i bytes = _mm512_srlv_epi32(_mm512_cvtepu8_epi16(twice), _mm512_set1_epi64(4)); /* shift words by 4, 0, 4, 0, … */
    return _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi32(0x000f000f), _mm512_set1_epi32(0x00100000), 0xea);
}

#endif
