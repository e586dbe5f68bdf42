/* int8 products (AVX512_VNNI). The sums of blocks stay in registers beside those of the block at work, so a panel of A is multiplied in
 * two halves of up to seven rows: 14 + 14 accumulators, two vectors of B and one of A. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"

#define TARGET "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
LORA_TARGET_BEGIN(TARGET)

#include "lora_c/kernels/tmpl/gemm_nf4_avx512.h"

enum {
    LANES = 16,
    NR = 2 * LANES,
    BLOCK = LORA_GEMM_SCALE_BLOCK,
    STEPS = LORA_INT8_STEPS,
    ROWS = 7,
    MAX_CHUNKS = LORA_GEMM_MAX_KC / LORA_NF4_CHUNK
};

/* --- products --- */

/* As an instruction and not as an intrinsic, after which gcc 12 keeps a copy of every accumulator on the stack. */
LORA_INLINE __m512i multiply_add(__m512i unsigned_b, __m512i a, __m512i c) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(unsigned_b), "v"(a));
    return c;
}

#define UNROLL LORA_UNROLL_BY(16)

/* Rows of a panel of A that is width words wide. squares: all columns of a block of B have one scale, so that a row needs one factor and
 * not one a column (a product fewer for 16 vpdpbusd of each accumulator; the bits are the same). */
LORA_INLINE void multiply_rows(const int rows, const int vectors, const bool squares, int64_t width, int64_t blocks, const uint32_t *a,
                               const uint32_t *b, float *tile, int64_t ld, bool accumulate) {
    __m512 sums[ROWS][2];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) sums[i][j] =
        accumulate ? _mm512_loadu_ps(tile + i * ld + j * LANES) : _mm512_setzero_ps();
    do { /* blocks >= 1 */
        __m512i c[ROWS][2];
        const int32_t *corrections = (const int32_t *)a + STEPS * width + LORA_INT8_TERMS;
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) c[i][j] = _mm512_set1_epi32(corrections[i]);
        int64_t steps = STEPS;
        __asm__("" : "+r"(steps)); /* a loop of unknown length: unrolled whole, its addresses would not fit registers */
        do {
            __m512i v[2];
            UNROLL for (int j = 0; j < vectors; j++) {
                __builtin_prefetch(b + 8 * vectors * LANES + j * LANES, 0, 3);
                v[j] = _mm512_load_si512(b + j * LANES);
            }
            UNROLL for (int i = 0; i < rows; i++) {
                __m512i x = _mm512_set1_epi32((int)a[i]);
                UNROLL for (int j = 0; j < vectors; j++) c[i][j] = multiply_add(v[j], x, c[i][j]);
            }
            a += width;
            b += vectors * LANES;
        } while (--steps > 0);
        __asm__("" : "+r"(a), "+r"(b)); /* as the loop left them: worked out anew, 0.92 of the speed in L1 (gcc 12, Zen 4) */
        const float *scales = (const float *)a;
        float factors[LANES];
        if (squares) _mm512_storeu_ps(factors, _mm512_mul_ps(_mm512_loadu_ps(scales), _mm512_set1_ps(*(const float *)b)));
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) {
            const __m512 factor = squares ? _mm512_set1_ps(factors[i])
                                          : _mm512_mul_ps(_mm512_set1_ps(scales[i]), _mm512_load_ps((const float *)b + j * LANES));
            sums[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c[i][j]), factor, sums[i][j]);
        }
        a += 2 * LORA_INT8_TERMS;
        b += vectors * LANES;
    } while (--blocks > 0);
    UNROLL for (int i = 0; i < rows; i++, tile += ld) {
        __asm__("" : "+r"(tile)); /* no addresses of all the rows beforehand */
        UNROLL for (int j = 0; j < vectors; j++) _mm512_storeu_ps(tile + j * LANES, sums[i][j]);
    }
}

#define INSTANCE(rows, vectors, squares, name)                                                                                             \
    static void name(int64_t width, int64_t blocks, const uint32_t *a, const uint32_t *b, float *tile, int64_t ld, bool accumulate) {      \
        if (accumulate)                                                                                                                    \
            multiply_rows(rows, vectors, squares, width, blocks, a, b, tile, ld, true);                                                    \
        else                                                                                                                               \
            multiply_rows(rows, vectors, squares, width, blocks, a, b, tile, ld, false);                                                   \
    }
#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define EACH(rows)                                                                                                                         \
    INSTANCE(rows, 1, false, micro_##rows##x1_int8)                                                                                        \
    INSTANCE(rows, 2, false, micro_##rows##x2_int8)                                                                                        \
    INSTANCE(rows, 2, true, micro_##rows##x2_int8_squares)
#define ENTRY(rows) {micro_##rows##x1_int8, micro_##rows##x2_int8, micro_##rows##x2_int8_squares},
ALL_ROWS(EACH)

enum { HALF_A_PANEL, WHOLE_PANEL, SQUARES };

LORA_INLINE void multiply(int kind, int64_t mr, int64_t steps, const uint32_t *a, const uint32_t *b, float *tile, int64_t ld,
                          bool accumulate) {
    static void (*const instances[ROWS][3])(int64_t, int64_t, const uint32_t *, const uint32_t *, float *, int64_t,
                                            bool) = {ALL_ROWS(ENTRY)};
    const int64_t first = mr <= ROWS ? mr : (mr + 1) / 2;
    for (int64_t i = 0, n = first; i < mr; i += n, n = mr - i)
        instances[n - 1][kind](mr, steps / STEPS, a + i, b, tile + i * ld, ld, accumulate);
}

static void micro(int64_t mr, int64_t nr, int64_t steps, const void *a, const void *b, float *tile, int64_t ld, bool accumulate) {
    multiply(nr == NR ? WHOLE_PANEL : HALF_A_PANEL, mr, steps, a, b, tile, ld, accumulate);
}

static void micro_squares(int64_t mr, int64_t steps, const void *a, const void *b, float *tile, int64_t ld, bool accumulate) {
    multiply(SQUARES, mr, steps, a, b, tile, ld, accumulate);
}

/* --- packing --- */

/* Four vectors of integers within a byte, in order, as the steps of their block. */
LORA_INLINE __m512i steps_of(__m512i v0, __m512i v1, __m512i v2, __m512i v3) {
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i even_odd = _mm512_set4_epi32(0x0f0d0b09, 0x0e0c0a08, 0x07050301, 0x06040200);
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(v0, v1), _mm512_packs_epi32(v2, v3)); /* lane by lane: 4 of each */
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(in_order, bytes), even_odd);
}

/* Scales of 16 blocks from their largest magnitudes (as integers); inverse is what values are multiplied with. */
LORA_INLINE __m512 scales_for(__m512i top, __m512 *inverse) {
    __m512 t = _mm512_castsi512_ps(top), levels = _mm512_set1_ps(LORA_INT8_LEVELS);
    __mmask16 usable = _mm512_cmp_ps_mask(t, _mm512_set1_ps(LORA_INT8_TINY), _CMP_GE_OQ);
    __mmask16 finite = _mm512_cmplt_epu32_mask(top, _mm512_set1_epi32(0x7f800000));
    *inverse = _mm512_maskz_div_ps(usable & finite, levels, t);
    return _mm512_mask_blend_ps(finite, _mm512_set1_ps(NAN), _mm512_maskz_div_ps(usable, t, levels));
}

/* Lane i: the largest of vector i. Destroys them. */
LORA_INLINE __m512i largest_of_each(__m512i v[16]) {
    LORA_UNROLL_BY(8)
    for (int i = 0; i < 8; i++)
        v[i] = _mm512_max_epu32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    LORA_UNROLL_BY(4)
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_max_epu32(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
    LORA_UNROLL_BY(2)
    for (int i = 0; i < 2; i++)
        v[i] = _mm512_max_epu32(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x44), _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xee));
    return _mm512_max_epu32(_mm512_shuffle_i32x4(v[0], v[1], 0x88), _mm512_shuffle_i32x4(v[0], v[1], 0xdd));
}

LORA_INLINE __m512i load_16(const float *row, int64_t i, int64_t n) {
    return _mm512_maskz_loadu_epi32(lora_first_lanes(n - 16 * i), row + 16 * i);
}

/* One block of up to 16 rows: step s of them in steps[s], their scales. Values from n on and rows from n_rows on are zero. */
LORA_INLINE __m512 quantize_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, __m512i steps[16]) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (int64_t r = 0; r < 16; r++) {
        __m512i top = _mm512_setzero_si512();
        LORA_UNROLL_BY(4)
        for (int64_t i = 0; i < 4 && r < n_rows; i++) /* as integers NaN is above Inf */
            top = _mm512_max_epu32(top, _mm512_and_si512(load_16(source + r * ld, i, n), magnitude));
        steps[r] = top;
    }
    float inverses[LANES];
    __m512 inverse, scales = scales_for(largest_of_each(steps), &inverse);
    _mm512_storeu_ps(inverses, inverse);
    for (int64_t r = 0; r < 16; r++) {
        __m512i v[4];
        steps[r] = _mm512_setzero_si512();
        if (r >= n_rows) continue;
        LORA_UNROLL_BY(4)
        for (int64_t i = 0; i < 4; i++)
            v[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(load_16(source + r * ld, i, n)), _mm512_set1_ps(inverses[r])));
        steps[r] = steps_of(v[0], v[1], v[2], v[3]);
    }
    lora_transpose_16x16(steps);
    return scales;
}

static void pack_left_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    uint32_t *out = panel;
    __mmask16 lanes = lora_first_lanes(width);
    for (int64_t k = 0; k < n; k += BLOCK, out += lora_int8_left_words(width)) {
        __m512i steps[16], sum = _mm512_setzero_si512();
        __m512 scales = quantize_rows(source + k, ld, n_rows, n - k, steps);
        for (int64_t s = 0; s < STEPS; s++) {
            _mm512_mask_storeu_epi32(out + s * width, lanes, steps[s]);
            sum = multiply_add(_mm512_set1_epi8(1), steps[s], sum);
        }
        _mm512_storeu_ps((float *)out + STEPS * width, scales);
        _mm512_storeu_si512(out + STEPS * width + LORA_INT8_TERMS, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
    }
}

LORA_INLINE __m512i with_offset(__m512i bytes) { return _mm512_xor_si512(bytes, _mm512_set1_epi8(-LORA_INT8_OFFSET)); }

static void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += LANES) {
        uint32_t *out = (uint32_t *)panel + first;
        for (int64_t k = 0; k < n; k += BLOCK, out += lora_int8_right_words(width)) {
            __m512i steps[16];
            __m512 scales = quantize_rows(source + first * ld + k, ld, n_rows - first, n - k, steps);
            for (int64_t s = 0; s < STEPS; s++) _mm512_store_si512(out + s * width, with_offset(steps[s]));
            _mm512_store_ps((float *)out + STEPS * width, scales);
        }
    }
}

/* Values k, k + 2, k + 4, k + 6 of 16 columns: one step. Rows from n on are zero. */
LORA_INLINE __m512i quantize_4(const float *in, int64_t ld, int64_t k, int64_t n, __mmask16 from, __m512 inverse) {
    __m512i step = _mm512_setzero_si512();
    LORA_UNROLL_BY(4) for (int t = 3; t >= 0; t--) {
        __m512i q = _mm512_setzero_si512();
        if (k + 2 * t < n) q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(from, in + (k + 2 * t) * ld), inverse));
        step = _mm512_ternarylogic_epi32(_mm512_slli_epi32(step, 8), q, _mm512_set1_epi32(0xff), 0xf8); /* a | (b & c) */
    }
    return step;
}

static void pack_columns(const float *source, int64_t ld, int64_t n_cols, int64_t n, int64_t width, void *panel) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (int64_t first = 0; first < width; first += LANES) {
        uint32_t *out = (uint32_t *)panel + first;
        __mmask16 from = lora_first_lanes(n_cols - first);
        for (int64_t k = 0; k < n; k += BLOCK, out += lora_int8_right_words(width)) {
            const float *in = source + k * ld + first;
            int64_t here = lora_min_i64(BLOCK, n - k);
            __m512i top = _mm512_setzero_si512();
            for (int64_t i = 0; i < here; i++)
                top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_maskz_loadu_epi32(from, in + i * ld), magnitude));
            __m512 inverse, scale = scales_for(top, &inverse);
            for (int64_t s = 0; s < STEPS; s++)
                _mm512_store_si512(out + s * width, with_offset(quantize_4(in, ld, s / 2 * 8 + s % 2, here, from, inverse)));
            _mm512_store_ps((float *)out + STEPS * width, scale);
        }
    }
}

/* --- 4 bits --- */

LORA_INLINE float largest_entry(const float *lut) { return _mm512_reduce_max_ps(_mm512_abs_ps(_mm512_loadu_ps(lut))); }

/* The 16 entries, rounded and with their offset, in each lane of 16 bytes. */
LORA_INLINE __m512i byte_table(__m512 entries) {
    return with_offset(_mm512_broadcast_i32x4(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(entries))));
}

static void pack_nf4_rows(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel) {
    const float top = largest_entry(w->lut), levels = lora_int8_table_levels(w->lut);
    const __m512 unit = _mm512_set1_ps(top / levels);
    const __m512i table = byte_table(_mm512_mul_ps(_mm512_loadu_ps(w->lut), _mm512_set1_ps(levels / top)));
    const __m512i nibble = _mm512_set1_epi8(15);
    float scales[MAX_CHUNKS * LANES];
    for (int64_t first = 0; first < width; first += LANES) {
        int64_t here = lora_min_i64(lora_max_i64(n_rows - first, 0), LANES);
        lora_nf4_scales_16_rows(w, row + first, here, first_col, n, scales);
        for (int64_t k = 0; k < n; k += 2 * LORA_NF4_CHUNK) {
            __m512i words[16];
            lora_nf4_load_16_rows(w, row + first, here, first_col + k, n - k, words);
            for (int64_t c = k / BLOCK; c < lora_min_i64(k / BLOCK + 2, n / BLOCK); c++) {
                uint32_t *out = (uint32_t *)panel + c * lora_int8_right_words(width) + first;
                for (int64_t d = 0; d < 8; d++) {
                    __m512i word = words[(c - k / BLOCK) * 8 + d];
                    __m512i even = _mm512_and_si512(_mm512_srli_epi16(word, 4), nibble), odd = _mm512_and_si512(word, nibble);
                    _mm512_store_si512(out + 2 * d * width, _mm512_shuffle_epi8(table, even));
                    _mm512_store_si512(out + (2 * d + 1) * width, _mm512_shuffle_epi8(table, odd));
                }
                _mm512_store_ps((float *)out + STEPS * width, _mm512_mul_ps(_mm512_loadu_ps(scales + c * LANES), unit));
            }
        }
    }
}

/* Scales of up to 64 rows of one chunk, and the largest magnitude among them: not finite if one is not. */
LORA_INLINE float chunk_scales(const lora_nf4 *w, int64_t row, int64_t n, int64_t col, float scales[BLOCK]) {
    for (int64_t i = 0; i < n; i++) lora_nf4_chunk_scales(w, (row + i) * w->cols + col, 1, scales + i, 1);
    __m512i top = _mm512_setzero_si512();
    for (int64_t i = 0; i < BLOCK; i += LANES) /* as integers NaN is above Inf */
        top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_loadu_si512(scales + i), _mm512_set1_epi32(0x7fffffff)));
    return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32((int)_mm512_reduce_max_epu32(top))));
}

/* The tables of four rows, whose entries are their factors times lut: pairs[0] has that of row 0 in lanes 0 and 1 of 16 bytes, of row 1 in
 * lanes 2 and 3, pairs[1] those of rows 2 and 3. */
LORA_INLINE void pair_tables(__m512 lut, const float *factors, __m512i pairs[2]) {
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 1, 5, 9, 13, 1, 5, 9, 13);
    __m512i v[4];
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) v[i] = _mm512_cvtps_epi32(_mm512_mul_ps(lut, _mm512_set1_ps(factors[i])));
    __m512i bytes = with_offset(_mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3])));
    pairs[0] = _mm512_permutexvar_epi32(first, bytes);
    pairs[1] = _mm512_permutexvar_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(2)), bytes);
}

/* Two rows of 64 columns by their tables, the first in lanes 0 and 1: columns 8 u … 8 u + 3 in the first of these, 8 u + 4 … 8 u + 7
 * in the second, u < 4 in out[0], u >= 4 in out[1]. */
LORA_INLINE void decode_2_rows(const uint8_t *first, const uint8_t *second, __m512i table, __m512i out[2]) {
    const __m256i half = _mm256_setr_epi16(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    const __m512i order = _mm512_inserti64x4(_mm512_castsi256_si512(half), _mm256_add_epi16(half, _mm256_set1_epi16(16)), 1);
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)first));
    both = _mm512_permutexvar_epi16(order, _mm512_inserti64x4(both, _mm256_loadu_si256((const __m256i *)(const void *)second), 1));
    __m512i even = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble));
    __m512i odd = _mm512_shuffle_epi8(table, _mm512_and_si512(both, nibble));
    out[0] = _mm512_unpacklo_epi8(even, odd);
    out[1] = _mm512_unpackhi_epi8(even, odd);
}

/* Bytes of four vectors side by side. In pairs of rows, even ones first: words of the step of the even rows in lanes 0 and 1, of the
 * next step in lanes 2 and 3; columns 8 q … 8 q + 7 of 32 in out[q]. */
LORA_INLINE void interleave_4(__m512i r0, __m512i r1, __m512i r2, __m512i r3, __m512i out[4]) {
    __m512i low01 = _mm512_unpacklo_epi8(r0, r1), high01 = _mm512_unpackhi_epi8(r0, r1);
    __m512i low23 = _mm512_unpacklo_epi8(r2, r3), high23 = _mm512_unpackhi_epi8(r2, r3);
    out[0] = _mm512_unpacklo_epi16(low01, low23);
    out[1] = _mm512_unpackhi_epi16(low01, low23);
    out[2] = _mm512_unpacklo_epi16(high01, high23);
    out[3] = _mm512_unpackhi_epi16(high01, high23);
}

/* Eight rows of k of 64 columns: two steps of the two panels, or of one of them where the other is NULL. */
LORA_INLINE void pack_8_rows(const uint8_t *const rows[8], __m512 lut, const float *factors, uint32_t *const panels[2]) {
    __m512i tables[4], pairs[4][2];
    pair_tables(lut, factors, tables);
    pair_tables(lut, factors + 4, tables + 2);
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) decode_2_rows(rows[2 * i], rows[2 * i + 1], tables[i], pairs[i]);
    LORA_UNROLL_BY(2) for (int p = 0; p < 2; p++) {
        if (!panels[p]) continue;
        __m512i words[4];
        interleave_4(pairs[0][p], pairs[1][p], pairs[2][p], pairs[3][p], words);
        LORA_UNROLL_BY(4) for (int q = 0; q < 4; q++) {
            _mm256_store_si256((__m256i *)(void *)(panels[p] + 8 * q), _mm512_castsi512_si256(words[q]));
            _mm256_store_si256((__m256i *)(void *)(panels[p] + NR + 8 * q), _mm512_extracti64x4_epi64(words[q], 1));
        }
    }
}

/* One or two panels from column col on, which lie in one chunk; one block of n rows of k. */
LORA_INLINE void pack_square(const lora_nf4 *w, __m512 lut, float lut_top, int64_t row, int64_t n, int64_t col, int64_t n_panels,
                             uint32_t *out, int64_t panel_words) {
    float factors[BLOCK] = {0};
    const int64_t skip = col % LORA_NF4_CHUNK / NR, bytes = w->cols / 2;
    const lora_int8_scale q = lora_int8_scale_for(lut_top * chunk_scales(w, row, n, col - col % LORA_NF4_CHUNK, factors));
    for (int64_t k = 0; k < BLOCK; k += LANES)
        _mm512_storeu_ps(factors + k, _mm512_mul_ps(_mm512_loadu_ps(factors + k), _mm512_set1_ps(q.inverse)));
    const uint8_t *codes = w->codes + (row * w->cols + col - col % LORA_NF4_CHUNK) / 2;
    uint32_t *panels[2] = {skip ? NULL : out, skip ? out : n_panels > 1 ? out + panel_words : NULL};
    for (int64_t k = 0; k < BLOCK; k += 8) {
        const uint8_t *rows[8];
        LORA_UNROLL_BY(8) for (int64_t i = 0; i < 8; i++) {
            rows[i] = codes + lora_min_i64(k + i, n - 1) * bytes; /* what is missing has the factor 0 */
            __builtin_prefetch(rows[i] + BLOCK * bytes, 0, 2);
        }
        pack_8_rows(rows, lut, factors + k, panels);
        for (int p = 0; p < 2; p++)
            if (panels[p]) panels[p] += 2 * NR;
    }
    for (int p = 0; p < 2; p++)
        for (int64_t j = 0; j < NR && panels[p]; j += LANES) _mm512_store_ps((float *)panels[p] + j, _mm512_set1_ps(q.scale));
}

static void pack_nf4_columns(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                             int64_t panel_words) {
    const __m512 lut = _mm512_loadu_ps(w->lut);
    const float top = largest_entry(w->lut);
    uint32_t *out = panels;
    for (int64_t k = 0; k < n; k += BLOCK, out += lora_int8_right_words(NR))
        for (int64_t p = 0, here; p < n_panels; p += here) {
            int64_t col = first_col + p * NR;
            here = lora_min_i64((LORA_NF4_CHUNK - col % LORA_NF4_CHUNK) / NR, n_panels - p);
            pack_square(w, lut, top, row + k, lora_min_i64(BLOCK, n - k), col, here, out + p * panel_words, panel_words);
        }
}

void lora_gemm_fill_int8_vnni(lora_gemm_path *p) {
    p->micro = micro;
    p->micro_squares = micro_squares;
    p->pack_left_rows = pack_left_rows;
    p->pack_rows = pack_rows;
    p->pack_columns = pack_columns;
    p->pack_nf4_rows = pack_nf4_rows;
    p->pack_nf4_columns = pack_nf4_columns;
}

LORA_TARGET_END
#endif
