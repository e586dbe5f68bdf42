/* Attention tiles with bfloat16 operands (AVX512_BF16), forward.
 *
 * Lanes are query rows, as in attention_tmpl.h: S^T = K Q^T gives the scores of 32 rows as (keys, 32), the softmax runs down
 * the keys, two keys of a lane make one word of P, and O^T += V^T P^T needs no transpose. K and V are packed once per key
 * block for all the rows of the tile. */
#if defined(__x86_64__)
#include <float.h>
#include <immintrin.h>
#include <math.h>

#include "lora_c/kernels/attention_kernels.h"
#include "lora_c/kernels/tmpl/exp_tmpl.h"

LORA_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

#include "lora_c/kernels/x86/attention_bf16.h"

enum { KEYS = 9 * TALL }; /* per block */
/* A maximum that grows less than this (in log 2) leaves O and the sum as they are: P stays below 2^8 and its rounding error
 * is relative. Each lane decides for itself. */
#define LAZY_MAXIMUM 8.0f

typedef struct panel { /* 32 rows */
    uint32_t *q;       /* [pairs of D][32] */
    float *o;          /* [D][32] */
    float *max, *sum;  /* [32] */
} panel;

typedef struct forward_state {
    lora_gemm_path path;
    strips strips;
    int64_t steps; /* pairs of D */
    uint32_t *k;   /* panels of TALL keys, [steps][keys] */
    uint32_t *v;   /* strips of D, [pairs of keys][elements] */
    float *s;      /* [KEYS][32] */
    uint32_t *p;   /* [pairs of KEYS][32] */
    float *rows;   /* [KEYS][D]: of Q, 32 at a time; of V */
    float *panels;
} forward_state;

LORA_INLINE int64_t panel_floats(int64_t D) { return NR * (pairs_of(D) + D + 2); }

static int64_t forward_scratch(int64_t n_rows, int64_t D) {
    int64_t block = KEYS * (pairs_of(D) + NR + NR / 2) + pairs_of(KEYS) * D + KEYS * D;
    return lora_round_up(lora_div_up(n_rows, NR) * panel_floats(D) + block, VLEN) + 8 * VLEN;
}

static forward_state carve_forward(const lora_attention_forward_tile *t) {
    float *p = t->scratch;
    forward_state w = {.path = bf16_products(), .strips = strips_of(t->D), .steps = pairs_of(t->D)};
    w.k = carve_words(&p, KEYS * w.steps);
    w.v = carve_words(&p, pairs_of(KEYS) * t->D);
    w.s = carve(&p, KEYS * NR);
    w.p = carve_words(&p, pairs_of(KEYS) * NR);
    w.rows = carve(&p, KEYS * t->D);
    w.panels = p;
    return w;
}

static panel panel_at(const forward_state *w, int64_t D, int64_t index) {
    float *base = w->panels + index * panel_floats(D);
    panel p = {.o = base, .max = base + D * NR, .sum = base + (D + 1) * NR};
    p.q = (uint32_t *)(void *)(base + (D + 2) * NR);
    return p;
}

static void forward_begin(const lora_attention_forward_tile *t, const forward_state *w, int64_t index) {
    panel p = panel_at(w, t->D, index);
    /* scores in units of log 2, so that the softmax needs exp2 only; with a soft cap they become so behind it */
    float scale = t->softcap > 0 ? (float)((double)t->scale / (double)t->softcap) : (float)((double)t->scale * LOG2E);
    int64_t first = index * NR, n = lora_min_i64(t->n_queries * t->group - first, NR);
    gather_rows(t->q, t->ldq, t->group, first, n, t->D, scale, w->rows);
    w->path.pack_rows(w->rows, t->D, n, t->D, NR, p.q);
    for (int64_t i = 0; i < t->D * NR; i++) p.o[i] = 0.0f;
    for (int i = 0; i < NR; i++) {
        p.max[i] = -FLT_MAX; /* finite: -inf - (-inf) would be NaN for a lane that sees no key of a block */
        p.sum[i] = 0.0f;
    }
}

/* n keys from key0 on. */
static void pack_keys(const lora_attention_forward_tile *t, const forward_state *w, int64_t key0, int64_t n) {
    const float *k = t->k + key0 * t->ldk, *v = t->v + key0 * t->ldv;
    for (int64_t j = 0; j < n; j += TALL) {
        int64_t here = lora_min_i64(TALL, n - j);
        w->path.pack_rows(k + j * t->ldk, t->ldk, here, t->D, here, w->k + j * w->steps);
    }
    copy_rows(v, t->ldv, n, t->D, w->rows, t->D); /* each strip reads all the rows, which are pages apart */
    for (int64_t d = 0; d < t->D; d += w->strips.width) {
        int64_t here = strip_at(w->strips, d);
        w->path.pack_columns(w->rows + d, t->D, here, n, here, w->v + d * pairs_of(n));
    }
}

/* Keys from .. to - 1 of a block: scores of those that a lane does not see become -inf. */
static void mask_scores(const lora_attention_forward_tile *t, int64_t index, int64_t key0, int64_t from, int64_t to, float *s) {
    int32_t low[NR], high[NR];
    for (int i = 0; i < NR; i++) {
        int64_t r = lora_min_i64(index * NR + i, t->n_queries * t->group - 1), last = t->last + r / t->group - key0;
        high[i] = (int32_t)lora_max_i64(lora_min_i64(last, KEYS), -1);
        low[i] = (int32_t)(t->window > 0 ? lora_min_i64(lora_max_i64(last - t->window + 1, 0), KEYS) : 0);
    }
    for (int x = 0; x < NR; x += VLEN) {
        __m512i lo = _mm512_loadu_si512(low + x), hi = _mm512_loadu_si512(high + x);
        for (int64_t j = from; j < to; j++) {
            __m512i key = _mm512_set1_epi32((int)j);
            __mmask16 seen = _mm512_cmple_epi32_mask(lo, key) & _mm512_cmple_epi32_mask(key, hi);
            v_store(s + j * NR + x, _mm512_mask_blend_ps(seen, _mm512_set1_ps(-INFINITY), v_load(s + j * NR + x)));
        }
    }
}

static void cap_scores(float softcap, int64_t from, int64_t to, float *s) {
    const V cap = v_set1((float)((double)softcap * LOG2E));
    for (int64_t i = from * NR; i < to * NR; i += VLEN) v_store(s + i, v_mul(cap, tanh_lanes(v_load(s + i))));
}

/* The new maxima; O and the sums move to them. */
static void raise_maxima(const panel *p, int64_t D, int64_t from, int64_t to, const float *s) {
    V top[4] = {v_set1(-INFINITY), v_set1(-INFINITY), v_set1(-INFINITY), v_set1(-INFINITY)}, correction[2];
    for (int64_t j = from; j < to; j += 2) {
        LORA_UNROLL_BY(4) for (int x = 0; x < 4; x++) top[x] = v_max(top[x], v_load(s + j * NR + x * VLEN));
    }
    __mmask16 raised[2];
    LORA_UNROLL_BY(2) for (int x = 0; x < 2; x++) {
        V old = v_load(p->max + x * VLEN), t = v_max(top[x], top[x + 2]);
        raised[x] = _mm512_cmp_ps_mask(t, v_add(old, v_set1(LAZY_MAXIMUM)), _CMP_NLE_UQ); /* NaN too: it shall show */
        V next = _mm512_mask_mov_ps(old, raised[x], t);
        correction[x] = exp2_short(v_sub(old, next));
        v_store(p->max + x * VLEN, next);
        v_store(p->sum + x * VLEN, v_mul(v_load(p->sum + x * VLEN), correction[x]));
    }
    if (!(raised[0] | raised[1])) return;
    for (int64_t i = 0; i < D * NR; i += NR) {
        LORA_UNROLL_BY(2) for (int x = 0; x < 2; x++) v_store(p->o + i + x * VLEN, v_mul(v_load(p->o + i + x * VLEN), correction[x]));
    }
}

/* words = exp2(s - max) by pairs of keys; adds to the sums. from and to are even. */
static void exponentials(const panel *p, int64_t from, int64_t to, const float *s, uint32_t *words) {
    V top[2] = {v_load(p->max), v_load(p->max + VLEN)}, total[2] = {v_load(p->sum), v_load(p->sum + VLEN)};
    for (int64_t j = from; j < to; j += 2) {
        LORA_UNROLL_BY(2) for (int x = 0; x < 2; x++) {
            V even = exp2_short(v_sub(v_load(s + j * NR + x * VLEN), top[x]));
            V odd = exp2_short(v_sub(v_load(s + (j + 1) * NR + x * VLEN), top[x]));
            total[x] = v_add(total[x], v_add(even, odd));
            _mm512_store_si512(words + j / 2 * NR + x * VLEN, pair(even, odd));
        }
    }
    v_store(p->sum, total[0]);
    v_store(p->sum + VLEN, total[1]);
}

/* One panel against n keys from key0 on. */
static void forward_block(const lora_attention_forward_tile *t, const forward_state *w, int64_t index, int64_t key0, int64_t n) {
    int64_t rows = t->n_queries * t->group, last_row = lora_min_i64((index + 1) * NR, rows) - 1;
    int64_t first_last = t->last + index * NR / t->group - key0, last_last = t->last + last_row / t->group - key0;
    int64_t from = 0, from_all = 0, to = lora_min_i64(n, last_last + 1); /* keys that some row sees, that every row sees */
    if (t->window > 0) {
        from = lora_max_i64(first_last - t->window + 1, 0);
        from_all = lora_min_i64(lora_max_i64(last_last - t->window + 1, 0), to);
    }
    if (from >= to) return;
    int64_t to_all = lora_max_i64(lora_min_i64(to, first_last + 1), from), even = from / 2 * 2, even_to = lora_round_up(to, 2);
    panel p = panel_at(w, t->D, index);
    for (int64_t j = from / TALL * TALL; j < to; j += TALL)
        w->path.micro(lora_min_i64(TALL, n - j), NR, w->steps, w->k + j * w->steps, p.q, w->s + j * NR, NR, false);
    if (t->softcap > 0) cap_scores(t->softcap, from, to, w->s);
    if (from_all > even) mask_scores(t, index, key0, even, from_all, w->s);
    if (to_all < even_to) mask_scores(t, index, key0, to_all, even_to, w->s);
    raise_maxima(&p, t->D, even, even_to, w->s);
    exponentials(&p, even, even_to, w->s, w->p);
    for (int64_t d = 0; d < t->D; d += w->strips.width) {
        int64_t here = strip_at(w->strips, d);
        w->path.micro(here, NR, (even_to - even) / 2, w->v + d * pairs_of(n) + even / 2 * here, w->p + even / 2 * NR, p.o + d * NR, NR,
                      true);
    }
}

static void forward_end(const lora_attention_forward_tile *t, const forward_state *w, int64_t index) {
    panel p = panel_at(w, t->D, index);
    int64_t first = index * NR, n = lora_min_i64(t->n_queries * t->group - first, NR);
    float factor[NR];
    for (int i = 0; i < NR; i++) factor[i] = 1.0f / p.sum[i];
    for (int64_t x = 0; x < n; x += VLEN) {
        float *out[VLEN];
        for (int64_t i = 0; i < VLEN; i++) {
            int64_t r = first + lora_min_i64(x + i, n - 1);
            out[i] = t->o + r / t->group * t->ldo + r % t->group * t->D;
        }
        unpack_lanes(p.o + x, factor + x, t->D, out, (int)lora_min_i64(n - x, VLEN));
    }
    for (int64_t i = 0; t->lse && i < n; i++) {
        int64_t r = first + i;
        t->lse[r / t->group * t->ld_lse + r % t->group] = (float)((double)p.max[i] * LN2 + log((double)p.sum[i]));
    }
}

static void attention_forward(const lora_attention_forward_tile *t) {
    forward_state w = carve_forward(t);
    int64_t n_panels = lora_div_up(t->n_queries * t->group, NR), n_keys = t->last + t->n_queries;
    for (int64_t i = 0; i < n_panels; i++) forward_begin(t, &w, i);
    int64_t key0 = t->window > 0 ? lora_max_i64(t->last - t->window + 1, 0) / KEYS * KEYS : 0;
    for (; key0 < n_keys; key0 += KEYS) {
        int64_t n = lora_min_i64(KEYS, n_keys - key0);
        pack_keys(t, &w, key0, n);
        for (int64_t i = 0; i < n_panels; i++) forward_block(t, &w, i, key0, n);
    }
    for (int64_t i = 0; i < n_panels; i++) forward_end(t, &w, i);
}

void lora_attention_init_bf16_forward(lora_attention_kernels *k) {
    k->forward_scratch = forward_scratch;
    k->forward = attention_forward;
}

LORA_TARGET_END
#endif
