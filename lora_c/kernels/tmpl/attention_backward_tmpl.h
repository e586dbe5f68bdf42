/* The gradient of one attention tile (FlashAttention-2, algorithm 2), on the pieces of attention_tile_tmpl.h.
 *
 * Rows (query, head) go by in chunks of ROWS. Per chunk
 *   S  = Q K^T,  dP = dO V^T      (ROWS, keys)   broadcasts of Q and dO rows against panels of K^T and V^T
 *   P  = exp(scale * S - lse),  dS = scale * P * (dP - delta)
 *   dV += P^T dO,  dK += dS^T Q   (keys, D)      broadcasts of P and dS columns against rows of dO and Q
 *   dQ  = dS K                    (ROWS, D)      broadcasts of dS rows against rows of K
 * so K and V are transposed once per tile and nothing else is. */
#ifndef LORA_TMPL_ATTENTION_BACKWARD_TMPL_H
#define LORA_TMPL_ATTENTION_BACKWARD_TMPL_H

#include "lora_c/kernels/tmpl/attention_tmpl.h"

enum { ROWS = 48 };

typedef struct backward_scratch {
    int64_t width;        /* D rounded up to whole vectors; the padding is 0 */
    float *k;             /* (keys, width) */
    float *kt, *vt;       /* panels of (D, NR) */
    float *dk, *dv;       /* (keys, width) */
    float *q, *dout, *dq; /* (ROWS, width) */
    float *s, *dp;        /* (ROWS, BLOCK); then P and dS */
    float *lse, *delta;   /* (ROWS); lse in units of log 2 */
} backward_scratch;

static backward_scratch backward_carve(const lora_attention_backward_tile *t) {
    float *p = t->scratch;
    int64_t width = lora_round_up(t->D, VLEN);
    return (backward_scratch){
        .width = width,
        .k = carve(&p, BLOCK * width),
        .kt = carve(&p, BLOCK * width),
        .vt = carve(&p, BLOCK * width),
        .dk = carve(&p, BLOCK * width),
        .dv = carve(&p, BLOCK * width),
        .q = carve(&p, ROWS * width),
        .dout = carve(&p, ROWS * width),
        .dq = carve(&p, ROWS * width),
        .s = carve(&p, ROWS * BLOCK),
        .dp = carve(&p, ROWS * BLOCK),
        .lse = carve(&p, ROWS),
        .delta = carve(&p, ROWS),
    };
}

static ATTN_TARGET void backward_pack_keys(const lora_attention_backward_tile *t, const backward_scratch *w) {
    copy_rows(t->k, t->ldk, t->n_keys, t->D, w->k, w->width);
    for (int64_t j = 0; j < t->n_keys; j++) prefetch_row(t->v + j * t->ldv, t->D);
    for (int64_t j = 0; j < t->n_keys; j += VLEN) {
        const float *k[VLEN], *v[VLEN];
        for (int i = 0; i < VLEN; i++) { /* columns past the last key repeat it and are masked later */
            int64_t row = lora_min_i64(j + i, t->n_keys - 1);
            k[i] = t->k + row * t->ldk;
            v[i] = t->v + row * t->ldv;
        }
        int64_t at = j / NR * NR * t->D + j % NR;
        pack_lanes(k, t->D, 1.0f, w->kt + at);
        pack_lanes(v, t->D, 1.0f, w->vt + at);
    }
    for (int64_t i = 0; i < t->n_keys * w->width; i++) w->dk[i] = w->dv[i] = 0.0f;
}

static ATTN_TARGET void backward_copy_rows(const lora_attention_backward_tile *t, const backward_scratch *w, int64_t first, int64_t n) {
    for (int64_t r = 0; r < n; r++) {
        int64_t i = (first + r) / t->group, h = (first + r) % t->group;
        copy_row(t->q + i * t->ldq + h * t->D, t->D, w->q + r * w->width, w->width);
        copy_row(t->dout + i * t->lddo + h * t->D, t->D, w->dout + r * w->width, w->width);
        w->lse[r] = (float)((double)t->lse[i * t->ld_lse + h] * LOG2E);
        w->delta[r] = t->delta[i * t->group + h];
    }
}

/* Columns from .. to - 1 (whole vectors) of one row: s becomes P, dp becomes dS. low .. high: the keys it sees. */
ATTN_INLINE void backward_softmax_row(const bool masked, const bool capped, const lora_attention_backward_tile *t, float *s, float *dp,
                                      int64_t from, int64_t to, float lse, float delta, float low, float high) {
    const V c = v_set1((float)((double)(capped ? t->softcap : t->scale) * LOG2E)), l = v_set1(-lse), d = v_set1(delta);
    const V inner = v_set1(capped ? (float)((double)t->scale / (double)t->softcap) : 0.0f);
    const V scale = v_set1(t->scale), lo = v_set1(low), hi = v_set1(high), zero = v_set1(0.0f);
    for (int64_t j = from; j < to; j += VLEN) {
        V x = v_load(s + j);
        if (capped) x = tanh_lanes(v_mul(x, inner));
        V p = exp2_lanes(v_fma(x, c, l));
        V ds = v_mul(v_mul(p, scale), v_sub(v_load(dp + j), d));
        if (capped) ds = v_mul(ds, v_sub(v_set1(1.0f), v_mul(x, x)));
        if (masked) {
            V key = v_add(v_set1((float)j), v_iota());
            p = v_where_between(key, lo, hi, p, zero);
            ds = v_where_between(key, lo, hi, ds, zero);
        }
        v_store(s + j, p);
        v_store(dp + j, ds);
    }
}

/* What this chunk writes last and what the next one reads first, asked for row by row during the softmax. */
ATTN_INLINE void backward_prefetch(const lora_attention_backward_tile *t, int64_t row) {
    int64_t i = row / t->group, h = row % t->group;
    prefetch_row(t->dq + i * t->lddq + h * t->D, t->D);
    row = lora_min_i64(row + ROWS, t->n_queries * t->group - 1);
    i = row / t->group, h = row % t->group;
    prefetch_row(t->q + i * t->ldq + h * t->D, t->D);
    prefetch_row(t->dout + i * t->lddo + h * t->D, t->D);
}

static ATTN_TARGET void backward_softmax(const lora_attention_backward_tile *t, const backward_scratch *w, int64_t first, int64_t n,
                                         int64_t from, int64_t to) {
    for (int64_t r = 0; r < n; r++) {
        int64_t last = t->last + (first + r) / t->group;
        int64_t high = lora_min_i64(last, t->n_keys - 1);
        int64_t low = t->window > 0 ? lora_max_i64(last - t->window + 1, 0) : 0;
        low = lora_min_i64(low, BLOCK); /* small integers are exact floats */
        float *s = w->s + r * BLOCK, *dp = w->dp + r * BLOCK;
        backward_prefetch(t, first + r);
        bool masked = low > from || high < to - 1;
        if (t->softcap > 0)
            backward_softmax_row(true, true, t, s, dp, from, to, w->lse[r], w->delta[r], (float)low, (float)high);
        else if (masked)
            backward_softmax_row(true, false, t, s, dp, from, to, w->lse[r], w->delta[r], (float)low, (float)high);
        else
            backward_softmax_row(false, false, t, s, dp, from, to, w->lse[r], w->delta[r], 0.0f, 0.0f);
    }
}

/* Rows that see no key of the first tile. */
static ATTN_TARGET void zero_dq(const lora_attention_backward_tile *t, int64_t first, int64_t n) {
    for (int64_t r = first; r < first + n; r++)
        for (int64_t d = 0; d < t->D; d++) t->dq[r / t->group * t->lddq + r % t->group * t->D + d] = 0.0f;
}

/* Rows first .. first + n - 1 of the tile. */
static ATTN_TARGET void backward_chunk(const lora_attention_backward_tile *t, const backward_scratch *w, int64_t first, int64_t n) {
    int64_t first_query = first / t->group, last_query = (first + n - 1) / t->group;
    int64_t from = t->window > 0 ? lora_max_i64(t->last + first_query - t->window + 1, 0) : 0;
    int64_t to = lora_min_i64(t->last + last_query + 1, t->n_keys);
    if (from >= to) {
        if (!t->accumulate_dq) zero_dq(t, first, n);
        return;
    }
    from = from / NR * NR;
    int64_t to_vector = lora_round_up(to, VLEN), width = w->width;
    backward_copy_rows(t, w, first, n);
    for (int64_t j = from; j < to_vector; j += NR) {
        int nv = to_vector - j > VLEN ? 2 : 1;
        mm_dot(n, nv, t->D, w->q, width, w->kt + j * t->D, NR, w->s + j, BLOCK);
        mm_dot(n, nv, t->D, w->dout, width, w->vt + j * t->D, NR, w->dp + j, BLOCK);
    }
    backward_softmax(t, w, first, n, from, to_vector);
    for (int64_t d = 0; d < width; d += NR) {
        int nv = width - d > VLEN ? 2 : 1;
        int64_t at = from * width + d;
        mm_outer_add(to - from, nv, n, w->s + from, BLOCK, w->dout + d, width, w->dv + at, width);
        mm_outer_add(to - from, nv, n, w->dp + from, BLOCK, w->q + d, width, w->dk + at, width);
        mm_dot(n, nv, to - from, w->dp + from, BLOCK, w->k + at, width, w->dq + d, width);
    }
    for (int64_t r = 0; r < n; r++) {
        int64_t i = (first + r) / t->group, h = (first + r) % t->group;
        write_row(w->dq + r * width, t->D, t->accumulate_dq, t->dq + i * t->lddq + h * t->D);
    }
}

static ATTN_TARGET void attention_backward(const lora_attention_backward_tile *t) {
    backward_scratch w = backward_carve(t);
    backward_pack_keys(t, &w);
    int64_t rows = t->n_queries * t->group;
    for (int64_t first = 0; first < rows; first += ROWS) backward_chunk(t, &w, first, lora_min_i64(ROWS, rows - first));
    for (int64_t j = 0; j < t->n_keys; j++) {
        write_row(w.dk + j * w.width, t->D, t->accumulate_keys, t->dk + j * t->lddk);
        write_row(w.dv + j * w.width, t->D, t->accumulate_keys, t->dv + j * t->lddv);
    }
}

#endif
