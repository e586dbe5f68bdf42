#include "lora_c/kernels/x86/gemm_pack_avx512.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/format/nf4_layout.h"

LORA_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")

#include "lora_c/kernels/tmpl/gemm_nf4_avx512.h"

enum { LANES = 16 };

void lora_pack_rows_avx512(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += LANES) {
        float *out = (float *)panel + first;
        const float *rows = source + first * ld;
        __mmask16 lanes = lora_first_lanes(width - first);
        for (int64_t k = 0; k < n; k += LANES) {
            __mmask16 here = lora_first_lanes(n - k);
            __m512i r[16];
            for (int64_t i = 0; i < 16; i++)
                r[i] = first + i < n_rows ? _mm512_maskz_loadu_epi32(here, rows + i * ld + k) : _mm512_setzero_si512();
            lora_transpose_16x16(r);
            int64_t steps = lora_min_i64(LANES, n - k);
            for (int64_t s = 0; s < steps; s++) _mm512_mask_storeu_epi32(out + (k + s) * width, lanes, r[s]);
        }
    }
}

void lora_pack_columns_avx512(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += LANES) {
        float *out = (float *)panel + first;
        const float *in = source + first;
        __mmask16 from = lora_first_lanes(n_cols - first), to = lora_first_lanes(width - first);
        for (int64_t k = 0; k < n; k++, in += ld, out += width) _mm512_mask_storeu_ps(out, to, _mm512_maskz_loadu_ps(from, in));
    }
}

LORA_INLINE void store_8_columns(__m512i word, __m512 scale, __m512 lut, uint32_t *out, int64_t width) {
    LORA_UNROLL_BY(8)
    for (int j = 0; j < 8; j++) /* the permute reads the low four bits only */
        _mm512_store_ps((float *)out + j * width,
                        _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(word, LORA_NF4_SHIFTS[j]), lut), scale));
}

void lora_pack_nf4_rows_avx512(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel) {
    lora_nf4_pack_rows(store_8_columns, 1, w, row, n_rows, first_col, n, width, panel);
}

/* 16 columns of one row: each byte doubled, the even copy shifted down. */
LORA_INLINE __m512 decode_16(const uint8_t *bytes, __m512 table) {
    __m128i v = _mm_loadl_epi64((const __m128i *)bytes);
    __m512i wide = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(v, v));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(wide, _mm512_set1_epi64(4)), table); /* shift words by 4, 0, 4, 0, … */
}

/* The table is scaled once per row and chunk instead of every weight: the same product, rounded once. */
void lora_pack_nf4_columns_avx512(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                                  int64_t panel_words) {
    enum { NR = 2 * LANES };
    const __m512 lut = _mm512_loadu_ps(w->lut);
    for (int64_t k = 0; k < n; k++) {
        const uint8_t *codes = w->codes + ((row + k) * w->cols + first_col) / 2;
        float *out = (float *)panels + k * NR;
        __m512 table = lut;
        for (int64_t p = 0; p < n_panels; p++, out += panel_words, codes += NR / 2) {
            int64_t col = first_col + p * NR;
            if (p == 0 || col % LORA_NF4_CHUNK == 0) {
                float scale;
                lora_nf4_chunk_scales(w, (row + k) * w->cols + col - col % LORA_NF4_CHUNK, 1, &scale, 1);
                table = _mm512_mul_ps(lut, _mm512_set1_ps(scale));
            }
            _mm512_store_ps(out, decode_16(codes, table));
            _mm512_store_ps(out + LANES, decode_16(codes + 8, table));
        }
    }
}

LORA_TARGET_END
#endif
