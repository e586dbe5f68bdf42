/* int8 products (AVX512_VNNI). The sums of blocks stay in registers beside those of the block at work, so a panel of A is multiplied in
 * two halves of up to seven rows: 14 + 14 accumulators, two vectors of B and one of A. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"

#define TARGET "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
LORA_TARGET_BEGIN(TARGET)

#include "lora_c/kernels/tmpl/gemm_nf4_avx512.h"

enum { LANES = 16, BLOCK = LORA_GEMM_SCALE_BLOCK, STEPS = LORA_INT8_STEPS, ROWS = 7, MAX_CHUNKS = LORA_GEMM_MAX_KC / LORA_NF4_CHUNK };

/* --- products --- */

/* As an instruction and not as an intrinsic, after which gcc 12 keeps a copy of every accumulator on the stack. */
LORA_INLINE __m512i multiply_add(__m512i unsigned_b, __m512i a, __m512i c) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(unsigned_b), "v"(a));
    return c;
}

#define UNROLL LORA_UNROLL_BY(16)

/* Rows of a panel of A that is width words wide. */
LORA_INLINE void multiply_rows(const int rows, const int vectors, int64_t width, int64_t blocks, const uint32_t *a, const uint32_t *b,
                               float *tile, int64_t ld, bool accumulate) {
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
        const float *scales = (const float *)a;
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) sums[i][j] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(c[i][j]),
                            _mm512_mul_ps(_mm512_set1_ps(scales[i]), _mm512_load_ps((const float *)b + j * LANES)), sums[i][j]);
        a += 2 * LORA_INT8_TERMS;
        b += vectors * LANES;
    } while (--blocks > 0);
    UNROLL for (int i = 0; i < rows; i++, tile += ld) {
        __asm__("" : "+r"(tile)); /* no addresses of all the rows beforehand */
        UNROLL for (int j = 0; j < vectors; j++) _mm512_storeu_ps(tile + j * LANES, sums[i][j]);
    }
}

#define INSTANCE(rows, vectors)                                                                                                            \
    static void micro_##rows##x##vectors##_int8(int64_t width, int64_t blocks, const uint32_t *a, const uint32_t *b, float *tile,          \
                                                int64_t ld, bool accumulate) {                                                             \
        if (accumulate)                                                                                                                    \
            multiply_rows(rows, vectors, width, blocks, a, b, tile, ld, true);                                                             \
        else                                                                                                                               \
            multiply_rows(rows, vectors, width, blocks, a, b, tile, ld, false);                                                            \
    }
#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define EACH(rows) INSTANCE(rows, 1) INSTANCE(rows, 2)
#define ENTRY(rows) {micro_##rows##x1_int8, micro_##rows##x2_int8},
ALL_ROWS(EACH)

static void micro(int64_t mr, int64_t nr, int64_t steps, const void *a_panel, const void *b_panel, float *tile, int64_t ld,
                  bool accumulate) {
    static void (*const instances[ROWS][2])(int64_t, int64_t, const uint32_t *, const uint32_t *, float *, int64_t,
                                            bool) = {ALL_ROWS(ENTRY)};
    const int64_t first = mr <= ROWS ? mr : (mr + 1) / 2, blocks = steps / STEPS;
    const uint32_t *a = a_panel;
    for (int64_t i = 0, n = first; i < mr; i += n, n = mr - i)
        instances[n - 1][nr / LANES - 1](mr, blocks, a + i, b_panel, tile + i * ld, ld, accumulate);
}

/* --- packing --- */

/* Four vectors of integers within a byte, in order, as the steps of their block. */
LORA_INLINE __m512i steps_of(__m512i v0, __m512i v1, __m512i v2, __m512i v3) {
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i even_odd = _mm512_set4_epi32(0x0f0d0b09, 0x0e0c0a08, 0x07050301, 0x06040200);
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(v0, v1), _mm512_packs_epi32(v2, v3)); /* lane by lane: 4 of each */
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(in_order, bytes), even_odd);
}

/* 64 values of one row as 16 steps; values from n on are zero. */
LORA_INLINE float quantize_row(const float *row, int64_t n, __m512i *steps) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i v[4], top = _mm512_setzero_si512();
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) {
        v[i] = _mm512_maskz_loadu_epi32(lora_first_lanes(n - 16 * i), row + 16 * i);
        top = _mm512_max_epu32(top, _mm512_and_si512(v[i], magnitude)); /* as integers NaN is above Inf */
    }
    lora_int8_scale q = lora_int8_scale_for(_mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32((int)_mm512_reduce_max_epu32(top)))));
    __m512 inverse = _mm512_set1_ps(q.inverse);
    LORA_UNROLL_BY(4) for (int i = 0; i < 4; i++) v[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(v[i]), inverse));
    *steps = steps_of(v[0], v[1], v[2], v[3]);
    return q.scale;
}

/* One block of up to 16 rows: step s of them in steps[s]. */
LORA_INLINE void quantize_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, __m512i steps[16], float scales[LANES]) {
    for (int64_t i = 0; i < LANES; i++) {
        steps[i] = _mm512_setzero_si512();
        scales[i] = 0;
        if (i < n_rows) scales[i] = quantize_row(source + i * ld, n, steps + i);
    }
    lora_transpose_16x16(steps);
}

static void pack_left_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    uint32_t *out = panel;
    __mmask16 lanes = lora_first_lanes(width);
    for (int64_t k = 0; k < n; k += BLOCK, out += lora_int8_left_words(width)) {
        __m512i steps[16], sum = _mm512_setzero_si512();
        float scales[LANES];
        quantize_rows(source + k, ld, n_rows, n - k, steps, scales);
        for (int64_t s = 0; s < STEPS; s++) {
            _mm512_mask_storeu_epi32(out + s * width, lanes, steps[s]);
            sum = multiply_add(_mm512_set1_epi8(1), steps[s], sum);
        }
        _mm512_storeu_ps((float *)out + STEPS * width, _mm512_loadu_ps(scales));
        _mm512_storeu_si512(out + STEPS * width + LORA_INT8_TERMS, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
    }
}

LORA_INLINE __m512i with_offset(__m512i bytes) { return _mm512_xor_si512(bytes, _mm512_set1_epi8(-LORA_INT8_OFFSET)); }

static void pack_rows(const float *source, int64_t ld, int64_t n_rows, int64_t n, int64_t width, void *panel) {
    for (int64_t first = 0; first < width; first += LANES) {
        uint32_t *out = (uint32_t *)panel + first;
        for (int64_t k = 0; k < n; k += BLOCK, out += lora_int8_right_words(width)) {
            __m512i steps[16];
            float scales[LANES];
            quantize_rows(source + first * ld + k, ld, n_rows - first, n - k, steps, scales);
            for (int64_t s = 0; s < STEPS; s++) _mm512_store_si512(out + s * width, with_offset(steps[s]));
            _mm512_store_ps((float *)out + STEPS * width, _mm512_loadu_ps(scales));
        }
    }
}

/* Scales of 16 columns from their largest magnitudes (as integers); inverse is what values are multiplied with. */
LORA_INLINE __m512 scales_for(__m512i top, __m512 *inverse) {
    __m512 t = _mm512_castsi512_ps(top), levels = _mm512_set1_ps(LORA_INT8_LEVELS);
    __mmask16 usable = _mm512_cmp_ps_mask(t, _mm512_set1_ps(LORA_INT8_TINY), _CMP_GE_OQ);
    __mmask16 finite = _mm512_cmplt_epu32_mask(top, _mm512_set1_epi32(0x7f800000));
    *inverse = _mm512_maskz_div_ps(usable & finite, levels, t);
    return _mm512_mask_blend_ps(finite, _mm512_set1_ps(NAN), _mm512_maskz_div_ps(usable, t, levels));
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
    __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(entries));
    return with_offset(_mm512_broadcast_i32x4(bytes));
}

static void pack_nf4_rows(const lora_nf4 *w, int64_t row, int64_t n_rows, int64_t first_col, int64_t n, int64_t width, void *panel) {
    const float top = largest_entry(w->lut);
    const __m512 unit = _mm512_set1_ps(top / LORA_INT8_LEVELS);
    const __m512i table = byte_table(_mm512_mul_ps(_mm512_loadu_ps(w->lut), _mm512_set1_ps(LORA_INT8_LEVELS / top)));
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

/* 64 columns of one row: as many bytes, lane L of 16 bytes having columns 4 L … 4 L + 3 of each of the four runs of 16. */
LORA_INLINE __m512i decode_64(const uint8_t *codes, __m512i table) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i twice = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
    __m512i indices = _mm512_ternarylogic_epi32(_mm512_and_si512(_mm512_srli_epi16(twice, 4), _mm512_set1_epi16(0x0f)),
                                                _mm512_slli_epi16(twice, 8), _mm512_set1_epi16(0x0f00), 0xf8); /* a | (b & c) */
    return _mm512_shuffle_epi8(table, _mm512_permutexvar_epi32(order, indices));
}

/* A step of 64 columns from the bytes of its four rows, four vectors of 16 columns in order. */
LORA_INLINE void interleave_4(__m512i r0, __m512i r1, __m512i r2, __m512i r3, __m512i out[4]) {
    __m512i low01 = _mm512_unpacklo_epi8(r0, r1), high01 = _mm512_unpackhi_epi8(r0, r1);
    __m512i low23 = _mm512_unpacklo_epi8(r2, r3), high23 = _mm512_unpackhi_epi8(r2, r3);
    out[0] = _mm512_unpacklo_epi16(low01, low23);
    out[1] = _mm512_unpackhi_epi16(low01, low23);
    out[2] = _mm512_unpacklo_epi16(high01, high23);
    out[3] = _mm512_unpackhi_epi16(high01, high23);
}

/* n_vectors vectors of 16 columns from column col on, which lie in one chunk, one block of n rows of k. */
LORA_INLINE void pack_square(const lora_nf4 *w, __m512 lut, float lut_top, int64_t row, int64_t n, int64_t col, int64_t n_vectors,
                             uint32_t *out, int64_t panel_words) {
    enum { NR = 2 * LANES };
    float scales[BLOCK] = {0};
    const int64_t chunk = col - col % LORA_NF4_CHUNK, skip = col % LORA_NF4_CHUNK / LANES, bytes = w->cols / 2;
    lora_int8_scale q = lora_int8_scale_for(lut_top * chunk_scales(w, row, n, chunk, scales));
    const __m512 inverse = _mm512_set1_ps(q.inverse);
    const uint8_t *codes = w->codes + (row * w->cols + chunk) / 2;
    for (int64_t s = 0; s < STEPS; s++) {
        __m512i r[4], vectors[4];
        LORA_UNROLL_BY(4) for (int64_t t = 0; t < 4; t++) {
            int64_t k = s / 2 * 8 + 2 * t + s % 2;
            r[t] = decode_64(codes + lora_min_i64(k, n - 1) * bytes,
                             byte_table(_mm512_mul_ps(_mm512_mul_ps(lut, _mm512_set1_ps(scales[k])), inverse)));
        }
        interleave_4(r[0], r[1], r[2], r[3], vectors);
        for (int64_t v = 0; v < n_vectors; v++) _mm512_store_si512(out + v / 2 * panel_words + s * NR + v % 2 * LANES, vectors[skip + v]);
    }
    for (int64_t v = 0; v < n_vectors; v++)
        _mm512_store_ps((float *)out + v / 2 * panel_words + STEPS * NR + v % 2 * LANES, _mm512_set1_ps(q.scale));
}

static void pack_nf4_columns(const lora_nf4 *w, int64_t row, int64_t n, int64_t first_col, int64_t n_panels, void *panels,
                             int64_t panel_words) {
    enum { NR = 2 * LANES };
    const __m512 lut = _mm512_loadu_ps(w->lut);
    const float top = largest_entry(w->lut);
    uint32_t *out = panels;
    for (int64_t k = 0; k < n; k += BLOCK, out += lora_int8_right_words(NR))
        for (int64_t p = 0, here; p < n_panels; p += here) {
            int64_t col = first_col + p * NR;
            here = lora_min_i64((LORA_NF4_CHUNK - col % LORA_NF4_CHUNK) / NR, n_panels - p);
            pack_square(w, lut, top, row + k, lora_min_i64(BLOCK, n - k), col, 2 * here, out + p * panel_words, panel_words);
        }
}

void lora_gemm_fill_int8_vnni(lora_gemm_path *p) {
    p->micro = micro;
    p->pack_left_rows = pack_left_rows;
    p->pack_rows = pack_rows;
    p->pack_columns = pack_columns;
    p->pack_nf4_rows = pack_nf4_rows;
    p->pack_nf4_columns = pack_nf4_columns;
}

LORA_TARGET_END
#endif
