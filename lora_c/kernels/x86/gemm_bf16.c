/* bfloat16 products (AVX512_BF16): 14 x 32 tiles as in float32, two k per step. Operands are rounded to nearest even on
 * their way into the panel. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/gemm_kernels.h"

#define TARGET "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
LORA_TARGET_BEGIN(TARGET)

#include "lora_c/kernels/tmpl/gemm_pairs_avx512.h"

enum { LANES = 16 };

LORA_INLINE __m512i broadcast(const uint32_t *p) {
    __m512i v = _mm512_set1_epi32((int)*p);
#if defined(__clang__) && __clang_major__ == 16
    __asm__("" : "+v"(v)); /* its VectorCombine recurses without end where a shuffle is cast to bfloat16 */
#endif
    return v;
}

#define SUFFIX _bf16
#define VEC __m512
#define VL 16
#define MR 14
#define WORD uint32_t
#define LOAD_B _mm512_load_si512
#define BROADCAST broadcast
#define MULTIPLY_ADD(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ZERO _mm512_setzero_ps
#define ADD _mm512_add_ps

#include "lora_c/kernels/tmpl/gemm_tmpl.h"

/* 32 values in order. */
LORA_INLINE __m512i narrow_32(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }
/* Pairs: lane j is (even[j], odd[j]). */
LORA_INLINE __m512i pair(__m512 even, __m512 odd) { return lora_interleave_halves(narrow_32(even, odd)); }

/* 32 values of a row from k on, what lies behind n as zero. */
LORA_INLINE __m512i load_f32(const void *row, int64_t k, int64_t n) {
    const float *p = (const float *)row + k;
    return narrow_32(_mm512_maskz_loadu_ps(lora_first_lanes(n - k), p), _mm512_maskz_loadu_ps(lora_first_lanes(n - k - LANES), p + LANES));
}
LORA_INLINE __m512i load_bf16(const void *row, int64_t k, int64_t n) {
    return _mm512_maskz_loadu_epi16(n - k >= 2 * LANES ? 0xffffffff : (1u << (n - k)) - 1, (const uint16_t *)row + k);
}

/* row_bytes from one row of the source to the next */
LORA_INLINE void pack_rows_by(__m512i (*load)(const void *, int64_t, int64_t), const char *source, int64_t row_bytes, int64_t n_rows,
                              int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += LANES) {
        uint32_t *out = (uint32_t *)panel + first;
        const char *rows = source + first * row_bytes;
        __mmask16 lanes = lora_first_lanes(width - first);
        for (int64_t k = 0; k < n; k += 2 * LANES) {
            __m512i r[16];
            for (int64_t i = 0; i < 16; i++) r[i] = first + i < n_rows ? load(rows + i * row_bytes, k, n) : _mm512_setzero_si512();
            lora_transpose_16x16(r);
            int64_t steps = lora_min_i64(LANES, lora_div_up(n - k, 2));
            for (int64_t s = 0; s < steps; s++) _mm512_mask_storeu_epi32(out + (k / 2 + s) * width, lanes, r[s]);
        }
    }
}

static void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    pack_rows_by(load_f32, (const char *)source, ld * (int64_t)sizeof *source, n_rows, n, width, panel);
}
static void pack_bf16_rows(const uint16_t *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    pack_rows_by(load_bf16, (const char *)source, ld * (int64_t)sizeof *source, n_rows, n, width, panel);
}

static void pack_columns(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += LANES) {
        uint32_t *out = (uint32_t *)panel + first;
        const float *in = source + first;
        __mmask16 from = lora_first_lanes(n_cols - first), to = lora_first_lanes(width - first);
        for (int64_t k = 0; k < n; k += 2, in += 2 * ld, out += width) {
            __m512 odd = k + 1 < n ? _mm512_maskz_loadu_ps(from, in + ld) : _mm512_setzero_ps();
            _mm512_mask_storeu_epi32(out, to, pair(_mm512_maskz_loadu_ps(from, in), odd));
        }
    }
}

static void pack_bf16_columns(const uint16_t *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += LANES) {
        uint32_t *out = (uint32_t *)panel + first;
        const uint16_t *in = source + first;
        __mmask16 from = lora_first_lanes(n_cols - first), to = lora_first_lanes(width - first);
        for (int64_t k = 0; k < n; k += 2, in += 2 * ld, out += width) {
            __m256i even = _mm256_maskz_loadu_epi16(from, in);
            __m256i odd = k + 1 < n ? _mm256_maskz_loadu_epi16(from, in + ld) : _mm256_setzero_si256();
            _mm512_mask_storeu_epi32(out, to, lora_interleave_halves(_mm512_inserti64x4(_mm512_castsi256_si512(even), odd, 1)));
        }
    }
}

LORA_INLINE void store_4_steps(__m512i word, __m512 scale, __m512 lut, uint32_t *out, int64_t width) {
    LORA_UNROLL_BY(4) for (int j = 0; j < 4; j++) { /* the permute reads the low four bits only */
        __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(word, LORA_NF4_SHIFTS[2 * j]), lut), scale);
        __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(word, LORA_NF4_SHIFTS[2 * j + 1]), lut), scale);
        _mm512_store_si512(out + j * width, pair(even, odd));
    }
}

static void pack_nf4_rows(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel) {
    lora_nf4_pack_rows(store_4_steps, 2, w, row, n_rows, first_col, n, width, panel);
}

/* The scaled tables of two rows, one behind the other. A row beyond the matrix has scale 0. */
LORA_INLINE __m512i pair_table(const lora_nf4 *w, __m512 lut, int64_t row, int64_t n_rows, int64_t col) {
    float scales[2] = {0, 0};
    for (int64_t i = 0; i < n_rows; i++) lora_nf4_chunk_scales(w, (row + i) * w->cols + col, 1, scales + i, 1);
    return narrow_32(_mm512_mul_ps(lut, _mm512_set1_ps(scales[0])), _mm512_mul_ps(lut, _mm512_set1_ps(scales[1])));
}

static void pack_nf4_columns(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                             int64_t panel_words) {
    enum { NR = 2 * LANES };
    const __m512 lut = _mm512_loadu_ps(w->lut);
    for (int64_t k = 0; k < n; k += 2) {
        int64_t rows = lora_min_i64(2, n - k);
        const uint8_t *codes = w->codes + ((row + k) * w->cols + first_col) / 2, *next = rows == 2 ? codes + w->cols / 2 : codes;
        uint32_t *out = (uint32_t *)panels + k / 2 * NR;
        __m512i table = _mm512_setzero_si512();
        for (int64_t p = 0; p < n_panels; p++, out += panel_words, codes += NR / 2, next += NR / 2) {
            int64_t col = first_col + p * NR;
            if (p == 0 || col % LORA_NF4_CHUNK == 0) table = pair_table(w, lut, row + k, rows, col - col % LORA_NF4_CHUNK);
            _mm512_store_si512(out, _mm512_permutexvar_epi16(lora_nf4_pair_indices(codes, next), table));
            _mm512_store_si512(out + LANES, _mm512_permutexvar_epi16(lora_nf4_pair_indices(codes + 8, next + 8), table));
        }
    }
}

void lora_gemm_fill_bf16(lora_gemm_path *p) {
    *p = (lora_gemm_path){.mr = MR,
                          .nr = 2 * VL,
                          .kc = LORA_GEMM_PAIRS_KC,
                          .k_per_step = 2,
                          .micro = micro_bf16,
                          .pack_rows = pack_rows,
                          .pack_left_rows = pack_rows,
                          .pack_columns = pack_columns,
                          .pack_bf16_rows = pack_bf16_rows,
                          .pack_bf16_columns = pack_bf16_columns,
                          .pack_nf4_rows = pack_nf4_rows,
                          .pack_nf4_columns = pack_nf4_columns};
}

LORA_TARGET_END
#endif
