/* int16 products (AVX512_VNNI): 64 values of k share one scale, max |value| / 5792, and their products are summed exactly:
 * 64 * 5792^2 < 2^31. Weights of 4 bits keep their own scales in the forward direction, where a block lies along k. In the
 * backward direction the scale changes from row to row: 64 x 64 weights are brought to the largest scale among them.
 * A block with a value that is not finite gets the scale NaN. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/gemm_kernels.h"

#define TARGET "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
LORA_TARGET_BEGIN(TARGET)

#include "lora_c/kernels/tmpl/gemm_pairs_avx512.h"

enum { LANES = 16, BLOCK = LORA_GEMM_SCALE_BLOCK, BLOCK_STEPS = BLOCK / 2, MAX_CHUNKS = LORA_GEMM_MAX_KC / LORA_NF4_CHUNK };

static const float LEVELS = 5792.0f, TINY = 1e-30f; /* blocks below TINY are zero: 5792 / TINY must be finite */

/* As an instruction and not as an intrinsic, after which gcc 12 keeps a copy of every accumulator on the stack. */
LORA_INLINE __m512i multiply_add(__m512i a, __m512i b, __m512i c) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
}

/* After the steps a and b point to the scales of the block. */
#define SUFFIX _int16
#define VEC __m512i
#define VL 16
#define MR 14
#define WORD uint32_t
#define LOAD_B _mm512_load_si512
#define BROADCAST(p) _mm512_set1_epi32((int)*(p))
#define MULTIPLY_ADD multiply_add
#define ZERO _mm512_setzero_si512
#define FINISH(c, i, j, tile, accumulate)                                                                                                  \
    _mm512_storeu_ps(tile,                                                                                                                 \
                     _mm512_fmadd_ps(_mm512_cvtepi32_ps(c),                                                                                \
                                     _mm512_mul_ps(_mm512_set1_ps(((const float *)a)[i]), _mm512_load_ps((const float *)b + (j) * VL)),    \
                                     (accumulate) ? _mm512_loadu_ps(tile) : _mm512_setzero_ps()))
#define STEPS_PER_CALL BLOCK_STEPS

#include "lora_c/kernels/tmpl/gemm_tmpl.h"

typedef struct quantizer {
    float scale, inverse;
} quantizer;

LORA_INLINE quantizer quantizer_for(float top) { /* of a block with max |value| top; NaN and Inf alike are not finite */
    if (!(top <= 3.402823466e38f)) return (quantizer){.scale = NAN};
    return top < TINY ? (quantizer){0} : (quantizer){.scale = top / LEVELS, .inverse = LEVELS / top};
}

LORA_INLINE __m256i quantize_16(__m512 values, __m512 inverse) {
    return _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)));
}
LORA_INLINE __m512i quantize_32(__m512 first, __m512 second, __m512 inverse) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(quantize_16(first, inverse)), quantize_16(second, inverse), 1);
}

/* 64 values of one row as 32 words; values from n on are zero. */
LORA_INLINE float quantize_row(const float *row, int64_t n, __m512i *low, __m512i *high) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i v[4], top = _mm512_setzero_si512();
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) {
        v[i] = _mm512_maskz_loadu_epi32(lora_first_lanes(n - 16 * i), row + 16 * i);
        top = _mm512_max_epu32(top, _mm512_and_si512(v[i], magnitude)); /* as integers NaN is above Inf */
    }
    quantizer q = quantizer_for(_mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32((int)_mm512_reduce_max_epu32(top)))));
    __m512 inverse = _mm512_set1_ps(q.inverse);
    *low = quantize_32(_mm512_castsi512_ps(v[0]), _mm512_castsi512_ps(v[1]), inverse);
    *high = quantize_32(_mm512_castsi512_ps(v[2]), _mm512_castsi512_ps(v[3]), inverse);
    return q.scale;
}

static void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    uint32_t *out = panel;
    for (int64_t k = 0; k < n; k += BLOCK) {
        int64_t steps = lora_min_i64(BLOCK_STEPS, lora_div_up(n - k, 2));
        float *scales = (float *)out + steps * width;
        for (int64_t first = 0; first < width; first += LANES) {
            __mmask16 lanes = lora_first_lanes(width - first);
            __m512i low[16], high[16];
            float block_scales[LANES] = {0};
            for (int64_t i = 0; i < 16; i++) {
                low[i] = high[i] = _mm512_setzero_si512();
                if (first + i < n_rows) block_scales[i] = quantize_row(source + (first + i) * ld + k, n - k, low + i, high + i);
            }
            lora_transpose_16x16(low);
            lora_transpose_16x16(high);
            for (int64_t s = 0; s < steps; s++)
                _mm512_mask_storeu_epi32(out + s * width + first, lanes, s < LANES ? low[s] : high[s - LANES]);
            _mm512_storeu_ps(scales + first, _mm512_loadu_ps(block_scales));
        }
        out += steps * width + lora_round_up(width, 16);
    }
}

/* Scales of 16 columns from their largest magnitudes (as integers); inverse is what values are multiplied with. */
LORA_INLINE __m512 quantizers_for(__m512i top, __m512 *inverse) {
    __m512 t = _mm512_castsi512_ps(top), levels = _mm512_set1_ps(LEVELS);
    __mmask16 usable = _mm512_cmp_ps_mask(t, _mm512_set1_ps(TINY), _CMP_GE_OQ);
    __mmask16 finite = _mm512_cmplt_epu32_mask(top, _mm512_set1_epi32(0x7f800000));
    *inverse = _mm512_maskz_div_ps(usable & finite, levels, t);
    return _mm512_mask_blend_ps(finite, _mm512_set1_ps(NAN), _mm512_maskz_div_ps(usable, t, levels));
}

static void pack_columns(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), low_half = _mm512_set1_epi32(0xffff);
    uint32_t *out = panel;
    for (int64_t k = 0; k < n; k += BLOCK) {
        int64_t here = lora_min_i64(BLOCK, n - k), steps = lora_div_up(here, 2);
        for (int64_t first = 0; first < width; first += LANES) {
            __mmask16 from = lora_first_lanes(n_cols - first), to = lora_first_lanes(width - first);
            const float *in = source + k * ld + first;
            __m512i top = _mm512_setzero_si512();
            for (int64_t i = 0; i < here; i++)
                top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_maskz_loadu_epi32(from, in + i * ld), magnitude));
            __m512 inverse, scale = quantizers_for(top, &inverse);
            for (int64_t i = 0; i < here; i += 2) {
                __m512i even = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(from, in + i * ld), inverse)), odd = even;
                odd = i + 1 < here ? _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(from, in + (i + 1) * ld), inverse))
                                   : _mm512_setzero_si512();
                __m512i word = _mm512_or_si512(_mm512_and_si512(even, low_half), _mm512_slli_epi32(odd, 16));
                _mm512_mask_storeu_epi32(out + i / 2 * width + first, to, word);
            }
            _mm512_storeu_ps((float *)out + steps * width + first, scale);
        }
        out += steps * width + lora_round_up(width, 16);
    }
}

/* --- 4 bits --- */

LORA_INLINE float largest_entry(const float *lut) { return _mm512_reduce_max_ps(_mm512_abs_ps(_mm512_loadu_ps(lut))); }

/* Four steps of 16 rows from one transposed word: byte j holds the even column (high nibble) and the odd one of step j. The
 * permute reads five bits of each half; the table is there twice, so the fifth does not matter. */
LORA_INLINE void store_4_steps(__m512i word, __m512i table, uint32_t *out, int64_t width) {
    __m512i even[4] = {_mm512_srli_epi32(word, 4), _mm512_srli_epi32(word, 12), _mm512_srli_epi32(word, 20), _mm512_srli_epi32(word, 28)};
    __m512i odd[4] = {_mm512_slli_epi32(word, 16), _mm512_slli_epi32(word, 8), word, _mm512_srli_epi32(word, 8)};
    LORA_UNROLL_BY(4)
    for (int j = 0; j < 4; j++)
        _mm512_store_si512(out + j * width, _mm512_permutexvar_epi16(_mm512_mask_blend_epi16(0xaaaaaaaau, even[j], odd[j]), table));
}

static void pack_nf4_rows(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel) {
    const float top = largest_entry(w->lut);
    const __m512 lut = _mm512_loadu_ps(w->lut), unit = _mm512_set1_ps(top / LEVELS);
    const __m512i table = quantize_32(lut, lut, _mm512_set1_ps(LEVELS / top));
    const int64_t block_words = BLOCK_STEPS * width + lora_round_up(width, 16);
    float scales[MAX_CHUNKS * 16];
    for (int64_t first = 0; first < width; first += LANES) {
        int64_t here = lora_min_i64(lora_max_i64(n_rows - first, 0), LANES);
        lora_nf4_scales_16_rows(w, row + first, here, first_col, n, scales);
        for (int64_t k = 0; k < n; k += 2 * LORA_NF4_CHUNK) {
            __m512i words[16];
            lora_nf4_load_16_rows(w, row + first, here, first_col + k, n - k, words);
            for (int64_t c = k / BLOCK; c < lora_min_i64(k / BLOCK + 2, n / BLOCK); c++) {
                uint32_t *out = (uint32_t *)panel + c * block_words + first;
                for (int64_t d = 0; d < 8; d++) store_4_steps(words[(c - k / BLOCK) * 8 + d], table, out + 4 * d * width, width);
                _mm512_store_ps((float *)out + BLOCK_STEPS * width, _mm512_mul_ps(_mm512_loadu_ps(scales + c * 16), unit));
            }
        }
    }
}

/* Scales of up to 64 rows of one chunk and the largest of them, NaN if one is not finite. */
LORA_INLINE float chunk_scales(const lora_nf4 *w, int64_t row, int64_t n, int64_t col, float *scales) {
    float top = 0, check = 0;
    for (int64_t i = 0; i < n; i++) {
        lora_nf4_chunk_scales(w, (row + i) * w->cols + col, 1, scales + i, 1);
        top = fmaxf(top, fabsf(scales[i]));
        check += scales[i] * 0.0f;
    }
    return top + check;
}

/* n_panels panels that lie in one chunk of columns, one block of k. */
LORA_INLINE void pack_square(const lora_nf4 *w, __m512 lut, float lut_top, int64_t row, int64_t n, int64_t col, int64_t n_panels,
                             uint32_t *out, int64_t panel_words) {
    enum { NR = 2 * LANES };
    float scales[BLOCK + 1] = {0};
    quantizer q = quantizer_for(lut_top * chunk_scales(w, row, n, col - col % LORA_NF4_CHUNK, scales));
    __m512 inverse = _mm512_set1_ps(q.inverse);
    const uint8_t *codes = w->codes + (row * w->cols + col) / 2;
    int64_t steps = lora_div_up(n, 2), bytes = w->cols / 2;
    for (int64_t s = 0; s < steps; s++, codes += 2 * bytes) {
        __m512i table =
            quantize_32(_mm512_mul_ps(lut, _mm512_set1_ps(scales[2 * s])), _mm512_mul_ps(lut, _mm512_set1_ps(scales[2 * s + 1])), inverse);
        const uint8_t *next = 2 * s + 1 < n ? codes + bytes : codes;
        for (int64_t p = 0; p < n_panels; p++)
            for (int64_t half = 0; half < 2; half++) {
                int64_t at = p * NR / 2 + half * 8;
                _mm512_store_si512(out + p * panel_words + s * NR + half * LANES,
                                   _mm512_permutexvar_epi16(lora_nf4_pair_indices(codes + at, next + at), table));
            }
    }
    for (int64_t p = 0; p < n_panels; p++)
        for (int64_t half = 0; half < 2; half++)
            _mm512_store_ps((float *)out + p * panel_words + steps * NR + half * LANES, _mm512_set1_ps(q.scale));
}

static void pack_nf4_columns(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                             int64_t panel_words) {
    enum { NR = 2 * LANES };
    const __m512 lut = _mm512_loadu_ps(w->lut);
    float top = largest_entry(w->lut);
    uint32_t *out = panels;
    for (int64_t k = 0; k < n; k += BLOCK, out += BLOCK_STEPS * NR + NR)
        for (int64_t p = 0, here; p < n_panels; p += here) {
            int64_t col = first_col + p * NR;
            here = lora_min_i64((LORA_NF4_CHUNK - col % LORA_NF4_CHUNK) / NR, n_panels - p);
            pack_square(w, lut, top, row + k, lora_min_i64(BLOCK, n - k), col, here, out + p * panel_words, panel_words);
        }
}

void lora_gemm_fill_int16(lora_gemm_path *p) {
    *p = (lora_gemm_path){.mr = MR,
                          .nr = 2 * VL,
                          .kc = LORA_GEMM_PAIRS_KC,
                          .k_per_step = 2,
                          .block_steps = BLOCK_STEPS,
                          .micro = micro_int16,
                          .pack_rows = pack_rows,
                          .pack_left_rows = pack_rows,
                          .pack_columns = pack_columns,
                          .pack_nf4_rows = pack_nf4_rows,
                          .pack_nf4_columns = pack_nf4_columns};
}

LORA_TARGET_END
#endif
