/* Register-blocked products of small tiles for the attention template. The including file defines MR (rows per register
 * block) beside what attention_lanes_tmpl.h asks for.
 *
 * A panel is NR = 2 * VLEN columns wide: MR x 2 accumulators, two loads and MR broadcasts per MR * 2 FMAs. */
#ifndef LORA_TMPL_ATTENTION_TILE_TMPL_H
#define LORA_TMPL_ATTENTION_TILE_TMPL_H

#include "lora_c/kernels/tmpl/attention_lanes_tmpl.h"

typedef enum tile_start { START_ZERO, START_ADD, START_SCALE } tile_start;

/* c[r][x] = start + sum_p a[r * rs + p * ks] * b[p][x]; mr and nv are literals where this is inlined, so the
 * accumulators are registers. START_SCALE multiplies the old c by scale[x] first (the online softmax correction). */
ATTN_INLINE void tile_mm(const int mr, const int nv, const tile_start start, int64_t k, const float *a, int64_t rs, int64_t ks,
                         const float *b, int64_t ldb, const float *scale, float *c, int64_t ldc) {
    V acc[MR][2];
    LORA_UNROLL_BY(16) for (int r = 0; r < mr; r++) {
        LORA_UNROLL_BY(2) for (int x = 0; x < nv; x++) {
            if (start == START_ZERO)
                acc[r][x] = v_set1(0.0f);
            else
                acc[r][x] = v_load(c + r * ldc + x * VLEN);
            if (start == START_SCALE) acc[r][x] = v_mul(acc[r][x], v_load(scale + x * VLEN));
        }
    }
    for (int64_t p = 0; p < k; p++) {
        V b0 = v_load(b + p * ldb);
        V b1 = nv > 1 ? v_load(b + p * ldb + VLEN) : b0;
        LORA_UNROLL_BY(16) for (int r = 0; r < mr; r++) {
            V x = v_set1(a[r * rs + p * ks]);
            acc[r][0] = v_fma(x, b0, acc[r][0]);
            if (nv > 1) acc[r][1] = v_fma(x, b1, acc[r][1]);
        }
    }
    LORA_UNROLL_BY(16) for (int r = 0; r < mr; r++) {
        LORA_UNROLL_BY(2) for (int x = 0; x < nv; x++) v_store(c + r * ldc + x * VLEN, acc[r][x]);
    }
}

/* The remainder of m by MR, one literal instance for each count (MR <= 8). */
#define TILE_CASE(n, nv, start, rs, ks)                                                                                                    \
    case n: tile_mm(n < MR ? n : MR, nv, start, k, a, rs, ks, b, ldb, scale, c, ldc); break;
#define TILE_REMAINDER(nv, start, rs, ks)                                                                                                  \
    switch (m) {                                                                                                                           \
        TILE_CASE(1, nv, start, rs, ks)                                                                                                    \
        TILE_CASE(2, nv, start, rs, ks)                                                                                                    \
        TILE_CASE(3, nv, start, rs, ks)                                                                                                    \
        TILE_CASE(4, nv, start, rs, ks)                                                                                                    \
        TILE_CASE(5, nv, start, rs, ks)                                                                                                    \
        TILE_CASE(6, nv, start, rs, ks)                                                                                                    \
        TILE_CASE(7, nv, start, rs, ks)                                                                                                    \
    }
#define TILE_LOOP(nv, start, rs, ks, step)                                                                                                 \
    for (; m >= MR; m -= MR, a += (step), c += MR * ldc) tile_mm(MR, nv, start, k, a, rs, ks, b, ldb, scale, c, ldc);                      \
    TILE_REMAINDER(nv, start, rs, ks)

/* c[m][nv * VLEN] = a[m][k] b[k][nv * VLEN], rows of a contiguous along k */
ATTN_NOINLINE void mm_dot(int64_t m, int nv, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc) {
    const float *scale = 0;
    if (nv == 2) {
        TILE_LOOP(2, START_ZERO, lda, 1, MR * lda)
    } else {
        TILE_LOOP(1, START_ZERO, lda, 1, MR * lda)
    }
}

/* c[m][nv * VLEN] = c + a[k][m]^T b[k][nv * VLEN], a contiguous along m */
ATTN_NOINLINE void mm_outer_add(int64_t m, int nv, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                                int64_t ldc) {
    const float *scale = 0;
    if (nv == 2) {
        TILE_LOOP(2, START_ADD, 1, lda, MR)
    } else {
        TILE_LOOP(1, START_ADD, 1, lda, MR)
    }
}

/* As mm_outer_add on c * scale[x], scale one value per column */
ATTN_NOINLINE void mm_outer_scaled(int64_t m, int nv, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                                   const float *scale, float *c, int64_t ldc) {
    if (nv == 2) {
        TILE_LOOP(2, START_SCALE, 1, lda, MR)
    } else {
        TILE_LOOP(1, START_SCALE, 1, lda, MR)
    }
}

#endif
