/* exp2, tanh and the moves between rows and lanes of the attention kernels. The including file defines the vector type V
 * with VLEN lanes, ATTN_TARGET and the v_* operations, all static, so that each rung has its own copy. */
#ifndef LORA_TMPL_ATTENTION_LANES_TMPL_H
#define LORA_TMPL_ATTENTION_LANES_TMPL_H

#include <math.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/tmpl/exp_tmpl.h"

enum { NR = 2 * VLEN };

#define ATTN_INLINE static inline __attribute__((always_inline)) ATTN_TARGET
#define ATTN_NOINLINE static __attribute__((noinline, unused)) ATTN_TARGET /* no file calls all of them */

/* 2^x for x <= 127, relative error < 3e-7; exactly 0 below -126.5 (so masked scores, -inf, vanish), NaN stays NaN.
 * Adding 1.5 * 2^23 + 127 rounds x to an integer n and leaves n + 127, the exponent field of 2^n, in the low bits
 * (0 for n = -127); then a degree 6 minimax polynomial of 2^r, |r| <= 1/2 (error 2e-9). */
ATTN_INLINE V exp2_lanes(V x) {
    const V low = v_set1(-127.0f), magic = v_set1(12582912.0f + 127.0f);
    V c = v_max(low, x);
    V t = v_add(c, magic);
    V r = v_sub(c, v_sub(t, magic));
    V p = v_set1(0.00015353361959569156f);
    p = v_fma(p, r, v_set1(0.0013398875016719103f));
    p = v_fma(p, r, v_set1(0.00961843691766262f));
    p = v_fma(p, r, v_set1(0.055503323674201965f));
    p = v_fma(p, r, v_set1(0.24022647738456726f));
    p = v_fma(p, r, v_set1(0.6931471824645996f));
    p = v_fma(p, r, v_set1(1.0f));
    return v_mul(p, v_low_bits_to_exponent(t));
}

/* tanh: an odd polynomial near 0 (Cephes tanhf), 1 - 2 / (e^2x + 1) beyond. */
ATTN_INLINE V tanh_lanes(V x) {
    const V one = v_set1(1.0f), limit = v_set1(LORA_TANH_SMALL), below = v_set1(-LORA_TANH_SMALL);
    V z = v_mul(x, x), p = v_set1(LORA_TANH_C4);
    p = v_fma(p, z, v_set1(LORA_TANH_C3));
    p = v_fma(p, z, v_set1(LORA_TANH_C2));
    p = v_fma(p, z, v_set1(LORA_TANH_C1));
    p = v_fma(p, z, v_set1(LORA_TANH_C0));
    V small = v_fma(v_mul(p, z), x, x);
    V top = v_where_between(x, v_set1(20.0f), v_set1(INFINITY), v_set1(20.0f), x); /* exp2_lanes ends at 127 */
    V e = exp2_lanes(v_mul(top, v_set1(2.88539008177792681472f)));                 /* 2 / ln 2 */
    V large = v_sub(one, v_div(v_set1(2.0f), v_add(e, one)));
    return v_where_between(x, below, limit, small, large);
}

/* dst[d][lane] = scale * rows[lane][d] for VLEN lanes; rows of dst are NR apart. */
ATTN_NOINLINE void pack_lanes(const float *const *rows, int64_t D, float scale, float *dst) {
    V x[VLEN], s = v_set1(scale);
    int64_t d = 0;
    for (; d + VLEN <= D; d += VLEN) {
        LORA_UNROLL_BY(16) for (int i = 0; i < VLEN; i++) x[i] = v_load(rows[i] + d);
        v_transpose(x);
        LORA_UNROLL_BY(16) for (int i = 0; i < VLEN; i++) v_store(dst + (d + i) * NR, v_mul(x[i], s));
    }
    for (; d < D; d++)
        for (int i = 0; i < VLEN; i++) dst[d * NR + i] = rows[i][d] * scale;
}

/* rows[lane][d] = src[d][lane] * factor[lane] for the first n_lanes lanes; the reverse of pack_lanes. */
ATTN_NOINLINE void unpack_lanes(const float *src, const float *factor, int64_t D, float *const *rows, int n_lanes) {
    V x[VLEN], f = v_load(factor);
    int64_t d = 0;
    for (; d + VLEN <= D; d += VLEN) {
        LORA_UNROLL_BY(16) for (int i = 0; i < VLEN; i++) x[i] = v_mul(v_load(src + (d + i) * NR), f);
        v_transpose(x);
        LORA_UNROLL_BY(16) for (int i = 0; i < VLEN; i++) {
            if (i < n_lanes) v_store(rows[i] + d, x[i]);
        }
    }
    for (; d < D; d++)
        for (int i = 0; i < n_lanes; i++) rows[i][d] = src[d * NR + i] * factor[i];
}

/* dst[r][d] = src[r][d], d < D, and 0 for D <= d < ld_dst */
ATTN_INLINE void copy_row(const float *src, int64_t D, float *dst, int64_t ld_dst) {
    int64_t d = 0;
    for (; d + VLEN <= D; d += VLEN) v_store(dst + d, v_load(src + d));
    for (; d < D; d++) dst[d] = src[d];
    for (; d < ld_dst; d++) dst[d] = 0.0f;
}

/* Asks for a row that is needed soon: no hardware prefetcher follows short rows that are pages apart. */
ATTN_INLINE void prefetch_row(const float *row, int64_t D) {
    for (int64_t d = 0; d < D; d += 16) __builtin_prefetch(row + d);
    __builtin_prefetch(row + D - 1);
}

/* n rows by copy_row */
ATTN_NOINLINE void copy_rows(const float *src, int64_t ld, int64_t n, int64_t D, float *dst, int64_t ld_dst) {
    enum { AHEAD = 12 };
    for (int64_t j = 0; j < n; j++) {
        if (j + AHEAD < n) prefetch_row(src + (j + AHEAD) * ld, D);
        copy_row(src + j * ld, D, dst + j * ld_dst, ld_dst);
    }
}

/* dst[d] = src[d] or dst[d] + src[d], d < D */
ATTN_INLINE void write_row(const float *src, int64_t D, bool add, float *dst) {
    int64_t d = 0;
    for (; d + VLEN <= D; d += VLEN) {
        V x = v_load(src + d);
        v_store(dst + d, add ? v_add(v_load(dst + d), x) : x);
    }
    for (; d < D; d++) dst[d] = add ? dst[d] + src[d] : src[d];
}

/* The next n floats of a scratch buffer, 64-byte aligned. */
static float *carve(float **scratch, int64_t n) {
    float *p = *scratch;
    *scratch += lora_round_up(n, 16);
    return p;
}

#endif
