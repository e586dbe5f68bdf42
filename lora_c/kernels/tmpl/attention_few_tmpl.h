/* Decoding: a forward tile of at most FEW rows would leave most lanes of a panel empty, so lanes are keys for the
 * scores (K is transposed in registers) and elements of the head for O. Each sum keeps the order it has in
 * attention_tmpl.h, over D and over keys, so the bits are the same. Q and O are (rows, D) here; scores stay (keys, NR). */
#ifndef LORA_TMPL_ATTENTION_FEW_TMPL_H
#define LORA_TMPL_ATTENTION_FEW_TMPL_H

#include "lora_c/kernels/tmpl/attention_tile_tmpl.h"

enum { FEW = 4, FEW_ACCUMULATORS = 8 };

/* x[i][lane] = keys[lane][i] for i < n <= VLEN */
ATTN_INLINE void load_transposed(const float *const *keys, int64_t d, int n, V *x) {
    if (n == VLEN) {
        LORA_UNROLL_BY(16) for (int i = 0; i < VLEN; i++) x[i] = v_load(keys[i] + d);
        v_transpose(x);
        return;
    }
    for (int i = 0; i < n; i++) {
        float lanes[VLEN];
        for (int lane = 0; lane < VLEN; lane++) lanes[lane] = keys[lane][d + i];
        x[i] = v_load(lanes);
    }
}

/* s[j][r] = k[j] . q[r] for n keys. Rows of v, needed right after, are asked for on the way. */
ATTN_INLINE void few_scores(const int rows, int64_t D, int64_t n, const float *k, int64_t ldk, const float *v, int64_t ldv, const float *q,
                            float *s) {
    for (int64_t j = 0; j < n; j += VLEN) {
        const float *keys[VLEN];
        for (int i = 0; i < VLEN; i++) {
            int64_t row = lora_min_i64(j + i, n - 1);
            keys[i] = k + row * ldk;
            prefetch_row(v + row * ldv, D);
            prefetch_row(k + lora_min_i64(row + 2 * VLEN, n - 1) * ldk, D);
        }
        V acc[FEW], x[VLEN];
        LORA_UNROLL_BY(4) for (int r = 0; r < rows; r++) acc[r] = v_set1(0.0f);
        for (int64_t d = 0; d < D; d += VLEN) {
            int width = (int)lora_min_i64(VLEN, D - d);
            load_transposed(keys, d, width, x);
            if (width == VLEN) {
                LORA_UNROLL_BY(16) for (int i = 0; i < VLEN; i++) {
                    LORA_UNROLL_BY(4) for (int r = 0; r < rows; r++) acc[r] = v_fma(x[i], v_set1(q[r * D + d + i]), acc[r]);
                }
            } else {
                for (int i = 0; i < width; i++)
                    LORA_UNROLL_BY(4) for (int r = 0; r < rows; r++) acc[r] = v_fma(x[i], v_set1(q[r * D + d + i]), acc[r]);
            }
        }
        LORA_UNROLL_BY(4) for (int r = 0; r < rows; r++) {
            float lanes[VLEN];
            v_store(lanes, acc[r]);
            for (int i = 0; i < VLEN && j + i < n; i++) s[(j + i) * NR + r] = lanes[i];
        }
    }
}

/* o[r] = o[r] * correction[r] + sum_j s[j][r] v[j], elements d .. of nv vectors; width floats of the last are used. */
ATTN_INLINE void few_values_at(const int rows, const int nv, int width, int64_t n, const float *v, int64_t ldv, const float *s,
                               const float *correction, float *o, int64_t ldo) {
    V acc[FEW][FEW_ACCUMULATORS];
    float part[VLEN] = {0};
    for (int r = 0; r < rows; r++) {
        LORA_UNROLL_BY(8) for (int x = 0; x < nv; x++) {
            const float *from = o + r * ldo + x * VLEN;
            if (width < VLEN) {
                for (int i = 0; i < width; i++) part[i] = from[i];
                from = part;
            }
            acc[r][x] = v_mul(v_load(from), v_set1(correction[r]));
        }
    }
    for (int64_t j = 0; j < n; j++) {
        LORA_UNROLL_BY(8) for (int x = 0; x < nv; x++) {
            const float *from = v + j * ldv + x * VLEN;
            if (width < VLEN) {
                for (int i = 0; i < width; i++) part[i] = from[i];
                from = part;
            }
            V y = v_load(from);
            LORA_UNROLL_BY(4) for (int r = 0; r < rows; r++) acc[r][x] = v_fma(v_set1(s[j * NR + r]), y, acc[r][x]);
        }
    }
    for (int r = 0; r < rows; r++) {
        LORA_UNROLL_BY(8) for (int x = 0; x < nv; x++) {
            v_store(part, acc[r][x]);
            for (int i = 0; i < (width < VLEN ? width : VLEN); i++) o[r * ldo + x * VLEN + i] = part[i];
        }
    }
}

ATTN_INLINE void few_values(const int rows, int64_t D, int64_t n, const float *v, int64_t ldv, const float *s, const float *correction,
                            float *o) {
    const int nv = FEW_ACCUMULATORS / rows;
    int64_t d = 0;
    for (; d + nv * VLEN <= D; d += nv * VLEN) few_values_at(rows, nv, VLEN, n, v + d, ldv, s, correction, o + d, D);
    for (; d + VLEN <= D; d += VLEN) few_values_at(rows, 1, VLEN, n, v + d, ldv, s, correction, o + d, D);
    if (d < D) few_values_at(rows, 1, (int)(D - d), n, v + d, ldv, s, correction, o + d, D);
}

ATTN_NOINLINE void mm_few_scores(int64_t rows, int64_t D, int64_t n, const float *k, int64_t ldk, const float *v, int64_t ldv,
                                 const float *q, float *s) {
    switch (rows) {
    case 1: few_scores(1, D, n, k, ldk, v, ldv, q, s); break;
    case 2: few_scores(2, D, n, k, ldk, v, ldv, q, s); break;
    case 3: few_scores(3, D, n, k, ldk, v, ldv, q, s); break;
    default: few_scores(4, D, n, k, ldk, v, ldv, q, s); break;
    }
}

ATTN_NOINLINE void mm_few_values(int64_t rows, int64_t D, int64_t n, const float *v, int64_t ldv, const float *s, const float *correction,
                                 float *o) {
    switch (rows) {
    case 1: few_values(1, D, n, v, ldv, s, correction, o); break;
    case 2: few_values(2, D, n, v, ldv, s, correction, o); break;
    case 3: few_values(3, D, n, v, ldv, s, correction, o); break;
    default: few_values(4, D, n, v, ldv, s, correction, o); break;
    }
}

#endif
