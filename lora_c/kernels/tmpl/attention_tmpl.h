/* Attention tiles on vectors, forward and delta; see attention_tile_tmpl.h for what the including file defines and
 * attention_backward_tmpl.h for the gradient.
 *
 * Lanes are query rows. A panel of NR rows keeps Q^T (D, NR) and O^T (D, NR), so the maximum and the sum of the online
 * softmax are plain vertical operations, K and V enter as broadcasts from their natural layout, and nothing but Q and O
 * is ever transposed, once per task. Every lane is independent of its neighbours. */
#ifndef LORA_TMPL_ATTENTION_TMPL_H
#define LORA_TMPL_ATTENTION_TMPL_H

#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "lora_c/kernels/attention_kernels.h"
#include "lora_c/kernels/tmpl/attention_few_tmpl.h"
#include "lora_c/kernels/tmpl/attention_tile_tmpl.h"

#define LOG2E 1.44269504088896340736
#define LN2 0.69314718055994530942

enum { BLOCK = LORA_ATTENTION_BLOCK };

/* One panel: rows first .. first + n - 1 of the tile; nv vectors hold them. */
typedef struct panel {
    float *q, *o, *max, *sum;
    int64_t first_query, last_query;
    int nv;
} panel;

ATTN_INLINE panel panel_at(const lora_attention_forward_tile *t, float *state, int64_t index) {
    int64_t rows = t->n_queries * t->group, first = index * NR, last = lora_min_i64(first + NR, rows) - 1;
    float *base = state + index * NR * (2 * t->D + 2);
    return (panel){
        .q = base,
        .o = base + t->D * NR,
        .max = base + 2 * t->D * NR,
        .sum = base + 2 * t->D * NR + NR,
        .first_query = first / t->group,
        .last_query = last / t->group,
        .nv = last - first + 1 > VLEN ? 2 : 1,
    };
}

/* Row r of the tile in an array laid out as q; rows past the end repeat the last one. */
ATTN_INLINE int64_t row_offset(const lora_attention_forward_tile *t, int64_t r, int64_t ld) {
    r = lora_min_i64(r, t->n_queries * t->group - 1);
    return r / t->group * ld + r % t->group * t->D;
}

static ATTN_TARGET void forward_begin(const lora_attention_forward_tile *t, float *state, int64_t index) {
    panel p = panel_at(t, state, index);
    /* scores in units of log 2, so that the softmax needs exp2 only; with a soft cap they become so behind it */
    float scale = t->softcap > 0 ? (float)((double)t->scale / (double)t->softcap) : (float)((double)t->scale * LOG2E);
    int64_t rows = t->n_queries * t->group;
    for (int64_t r = 0; rows <= FEW && r < rows; r++)
        for (int64_t d = 0; d < t->D; d++) p.q[r * t->D + d] = t->q[row_offset(t, r, t->ldq) + d] * scale;
    for (int x = 0; rows > FEW && x < p.nv; x++) {
        const float *lanes[VLEN];
        for (int i = 0; i < VLEN; i++) lanes[i] = t->q + row_offset(t, index * NR + x * VLEN + i, t->ldq);
        pack_lanes(lanes, t->D, scale, p.q + x * VLEN);
    }
    for (int64_t i = 0; i < t->D * NR; i++) p.o[i] = 0.0f;
    for (int i = 0; i < NR; i++) {
        p.max[i] = -FLT_MAX; /* finite: -inf - (-inf) would be NaN for a lane that sees no key of a block */
        p.sum[i] = 0.0f;
    }
}

/* Scores of keys that a lane does not see become -inf. Keys from .. to - 1 of the block that begins at key0. */
static ATTN_TARGET void forward_mask(const lora_attention_forward_tile *t, int64_t index, int nv, int64_t key0, int64_t from, int64_t to,
                                     float *s) {
    float low[NR], high[NR];
    for (int i = 0; i < nv * VLEN; i++) {
        int64_t r = lora_min_i64(index * NR + i, t->n_queries * t->group - 1);
        int64_t last = t->last + r / t->group - key0;
        int64_t first = t->window > 0 ? last - t->window + 1 : 0;
        /* clamped: small integers are exact floats */
        high[i] = (float)lora_max_i64(lora_min_i64(last, BLOCK), -1);
        low[i] = (float)lora_min_i64(lora_max_i64(first, 0), BLOCK);
    }
    for (int x = 0; x < nv; x++) {
        V lo = v_load(low + x * VLEN), hi = v_load(high + x * VLEN);
        for (int64_t j = from; j < to; j++) {
            float *cell = s + j * NR + x * VLEN;
            v_store(cell, v_where_between(v_set1((float)j), lo, hi, v_load(cell), v_set1(-INFINITY)));
        }
    }
}

/* s = softcap * tanh(s), in units of log 2, for keys from .. to - 1. */
static ATTN_TARGET void forward_softcap(int nv, int64_t from, int64_t to, float softcap, float *s) {
    const V cap = v_set1((float)((double)softcap * LOG2E));
    for (int64_t j = from; j < to; j++)
        for (int x = 0; x < nv; x++) v_store(s + j * NR + x * VLEN, v_mul(cap, tanh_lanes(v_load(s + j * NR + x * VLEN))));
}

/* s = exp2(s - max) in place for keys from .. to - 1; correction = exp2(old max - new max). */
ATTN_INLINE void forward_softmax(const int nv, int64_t from, int64_t to, float *s, float *max, float *sum, float *correction) {
    V old[2], top[2], total[2];
    LORA_UNROLL_BY(2) for (int x = 0; x < nv; x++) old[x] = top[x] = v_load(max + x * VLEN);
    for (int64_t j = from; j < to; j++) {
        LORA_UNROLL_BY(2) for (int x = 0; x < nv; x++) top[x] = v_max(top[x], v_load(s + j * NR + x * VLEN));
    }
    LORA_UNROLL_BY(2) for (int x = 0; x < nv; x++) {
        V c = exp2_lanes(v_sub(old[x], top[x]));
        v_store(correction + x * VLEN, c);
        v_store(max + x * VLEN, top[x]);
        total[x] = v_mul(v_load(sum + x * VLEN), c);
    }
    for (int64_t j = from; j < to; j++) {
        LORA_UNROLL_BY(2) for (int x = 0; x < nv; x++) {
            V p = exp2_lanes(v_sub(v_load(s + j * NR + x * VLEN), top[x]));
            v_store(s + j * NR + x * VLEN, p);
            total[x] = v_add(total[x], p);
        }
    }
    LORA_UNROLL_BY(2) for (int x = 0; x < nv; x++) v_store(sum + x * VLEN, total[x]);
}

/* One panel against keys key0 .. key0 + n - 1, whose rows start at k and v. */
static ATTN_TARGET void forward_block(const lora_attention_forward_tile *t, float *state, int64_t index, int64_t key0, int64_t n,
                                      const float *k, int64_t ldk, const float *v, int64_t ldv, float *s) {
    panel p = panel_at(t, state, index);
    int64_t seen_by_all = t->last + p.first_query, seen_by_any = t->last + p.last_query;
    int64_t from = 0, from_all = 0; /* first key in some window, in every window */
    if (t->window > 0) {
        from = lora_max_i64(seen_by_all - t->window + 1 - key0, 0);
        from_all = lora_max_i64(seen_by_any - t->window + 1 - key0, 0);
    }
    int64_t to = lora_min_i64(n, seen_by_any + 1 - key0), to_all = lora_max_i64(seen_by_all + 1 - key0, from);
    if (from >= to) return;
    int64_t rows = t->n_queries * t->group;
    if (rows <= FEW)
        mm_few_scores(rows, t->D, to - from, k + from * ldk, ldk, v + from * ldv, ldv, p.q, s + from * NR);
    else
        mm_dot(to - from, p.nv, t->D, k + from * ldk, ldk, p.q, NR, s + from * NR, NR);
    if (t->softcap > 0) forward_softcap(p.nv, from, to, t->softcap, s);
    if (from_all > from) forward_mask(t, index, p.nv, key0, from, lora_min_i64(from_all, to), s);
    if (to_all < to) forward_mask(t, index, p.nv, key0, to_all, to, s);
    float correction[NR];
    if (p.nv == 2)
        forward_softmax(2, from, to, s, p.max, p.sum, correction);
    else
        forward_softmax(1, from, to, s, p.max, p.sum, correction);
    if (rows <= FEW)
        mm_few_values(rows, t->D, to - from, v + from * ldv, ldv, s + from * NR, correction, p.o);
    else
        mm_outer_scaled(t->D, p.nv, to - from, v + from * ldv, ldv, s + from * NR, NR, correction, p.o, NR);
}

static ATTN_TARGET void forward_end(const lora_attention_forward_tile *t, float *state, int64_t index) {
    panel p = panel_at(t, state, index);
    int64_t rows = t->n_queries * t->group;
    float factor[NR];
    for (int i = 0; i < p.nv * VLEN; i++) factor[i] = 1.0f / p.sum[i];
    for (int64_t r = 0; rows <= FEW && r < rows; r++)
        for (int64_t d = 0; d < t->D; d++) t->o[row_offset(t, r, t->ldo) + d] = p.o[r * t->D + d] * factor[r];
    for (int x = 0; rows > FEW && x < p.nv; x++) {
        int64_t first = index * NR + x * VLEN;
        float *out[VLEN];
        for (int i = 0; i < VLEN; i++) out[i] = t->o + row_offset(t, first + i, t->ldo);
        unpack_lanes(p.o + x * VLEN, factor + x * VLEN, t->D, out, (int)lora_min_i64(rows - first, VLEN));
    }
    if (!t->lse) return;
    int64_t n = lora_min_i64(rows - index * NR, NR);
    for (int64_t i = 0; i < n; i++) {
        int64_t r = index * NR + i;
        t->lse[r / t->group * t->ld_lse + r % t->group] = (float)((double)p.max[i] * LN2 + log((double)p.sum[i]));
    }
}

static ATTN_TARGET void attention_forward(const lora_attention_forward_tile *t) {
    int64_t n_panels = lora_div_up(t->n_queries * t->group, NR), D = t->D;
    float *scratch = t->scratch;
    float *s = carve(&scratch, BLOCK * NR);
    float *k_copy = carve(&scratch, BLOCK * D), *v_copy = carve(&scratch, BLOCK * D);
    float *state = carve(&scratch, n_panels * NR * (2 * D + 2));
    for (int64_t i = 0; i < BLOCK * NR; i++) s[i] = 0.0f; /* with few rows the other lanes are never written: keep them finite and normal */
    for (int64_t i = 0; i < n_panels; i++) forward_begin(t, state, i);
    int64_t n_keys = t->last + t->n_queries;
    int64_t key0 = t->window > 0 ? lora_max_i64(t->last - t->window + 1, 0) / BLOCK * BLOCK : 0;
    for (; key0 < n_keys; key0 += BLOCK) {
        int64_t n = lora_min_i64(BLOCK, n_keys - key0);
        const float *k = t->k + key0 * t->ldk, *v = t->v + key0 * t->ldv;
        if (n_panels <= 2) { /* little reuse (decode): read in place */
            for (int64_t i = 0; i < n_panels; i++) forward_block(t, state, i, key0, n, k, t->ldk, v, t->ldv, s);
            continue;
        }
        /* a dense copy: rows of a fused qkv buffer are whole pages apart, which wastes the TLB and L1 sets */
        copy_rows(k, t->ldk, n, D, k_copy, D);
        copy_rows(v, t->ldv, n, D, v_copy, D);
        for (int64_t i = 0; i < n_panels; i++) forward_block(t, state, i, key0, n, k_copy, D, v_copy, D, s);
    }
    for (int64_t i = 0; i < n_panels; i++) forward_end(t, state, i);
}

static ATTN_TARGET void attention_delta(int64_t M, int64_t n_heads, int64_t D, const float *dout, int64_t lddo, const float *o, int64_t ldo,
                                        float *delta) {
    for (int64_t m = 0; m < M; m++) {
        for (int64_t h = 0; h < n_heads; h++) {
            const float *a = dout + m * lddo + h * D, *b = o + m * ldo + h * D;
            V acc = v_set1(0.0f);
            float lanes[VLEN];
            int64_t d = 0;
            for (; d + VLEN <= D; d += VLEN) acc = v_fma(v_load(a + d), v_load(b + d), acc);
            v_store(lanes, acc);
            for (int half = VLEN / 2; half > 0; half /= 2) /* a tree: a chain of additions would take as long as the rest */
                for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
            float sum = lanes[0];
            for (; d < D; d++) sum += a[d] * b[d];
            delta[m * n_heads + h] = sum;
        }
    }
}

#endif
