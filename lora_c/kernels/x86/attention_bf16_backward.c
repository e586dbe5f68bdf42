/* Attention tiles with bfloat16 operands (AVX512_BF16), gradient.
 *
 * Lanes are keys. Rows (query, head) go by in chunks of at most ROWS, in register tiles of TALL rows; per chunk and panel of
 * 32 keys
 *     S = Q K^T,  dP = dO V^T                (rows, 32)
 *     P = 2^(S - lse),  dS = P * (dP - delta)   one word: two rows of a key
 *     dV^T += dO^T P,  dK^T += Q^T dS        (D, 32), kept over all rows
 * and per tile of rows dQ = dS K, with dS once more as words of two keys of a row. Tiles in which no row sees a key of the
 * panel are skipped everywhere, so that a diagonal block costs little more than its half. Q and dO are packed once for all
 * the blocks of keys. */
#if defined(__x86_64__)
#include <float.h>
#include <immintrin.h>
#include <math.h>

#include "lora_c/kernels/attention_kernels.h"
#include "lora_c/kernels/tmpl/exp_tmpl.h"

LORA_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

#include "lora_c/kernels/x86/attention_bf16.h"

enum {
    BLOCK = 128,                           /* keys */
    ROWS = 8 * TALL,                       /* of a chunk */
    DS_TILE = BLOCK / 2 * TALL + VLEN - 1, /* words of dS of TALL rows; whole vectors are stored at its end */
};

typedef struct backward_state {
    lora_gemm_path path;
    strips strips;
    int64_t steps;        /* pairs of D */
    uint32_t *kt, *vt;    /* panels of 32 keys, [steps][32] */
    uint32_t *k;          /* panels of 32 elements of D (or 16), [pairs of keys][elements] */
    float *dk, *dv;       /* panels of 32 keys, [D][32] */
    float *rows;          /* [BLOCK][D]: of Q, dO, K, dK or dV */
    uint32_t *q, *dout;   /* all rows: tiles, [steps][rows] */
    uint32_t *qt, *doutt; /* all rows by chunks: strips of D, [pairs of rows][elements] */
    float *lse;           /* all rows, in units of log 2 */
    const float *delta;
    float *s, *dp;       /* [ROWS][32] */
    uint32_t *pw, *dsw;  /* [pairs of rows][32] */
    uint32_t *ds;        /* tiles of DS_TILE words, [pairs of keys][rows] */
    float *dq;           /* [ROWS][D rounded up to 16] */
    int32_t *low, *high; /* [ROWS], the first and last key of the tile that a row sees */
} backward_state;

static int64_t backward_scratch(int64_t n_rows, int64_t D) {
    int64_t wide = lora_round_up(D, VLEN), steps = pairs_of(D);
    int64_t keys = BLOCK * (2 * steps + wide / 2 + 3 * D);
    int64_t rows = lora_round_up(n_rows, 2) * (2 * steps + D + 1);
    int64_t chunk = ROWS * (2 * NR + NR + wide + 2) + ROWS / TALL * DS_TILE;
    return lora_round_up(keys + rows + chunk, VLEN) + 18 * VLEN;
}

static backward_state carve_backward(const lora_attention_backward_tile *t) {
    float *p = t->scratch;
    int64_t D = t->D, wide = lora_round_up(D, VLEN), n_rows = lora_round_up(t->n_queries * t->group, 2);
    backward_state w = {.path = bf16_products(), .strips = strips_of(D), .steps = pairs_of(D)};
    w.q = carve_words(&p, n_rows * w.steps);
    w.dout = carve_words(&p, n_rows * w.steps);
    w.qt = carve_words(&p, n_rows / 2 * D);
    w.doutt = carve_words(&p, n_rows / 2 * D);
    w.lse = carve(&p, n_rows);
    w.kt = carve_words(&p, BLOCK * w.steps);
    w.vt = carve_words(&p, BLOCK * w.steps);
    w.k = carve_words(&p, BLOCK / 2 * wide);
    w.dk = carve(&p, BLOCK * D);
    w.dv = carve(&p, BLOCK * D);
    w.rows = carve(&p, BLOCK * D);
    w.s = carve(&p, ROWS * NR);
    w.dp = carve(&p, ROWS * NR);
    w.pw = carve_words(&p, ROWS / 2 * NR);
    w.dsw = carve_words(&p, ROWS / 2 * NR);
    w.ds = carve_words(&p, ROWS / TALL * DS_TILE);
    w.dq = carve(&p, ROWS * wide);
    w.low = (int32_t *)(void *)carve(&p, ROWS);
    w.high = (int32_t *)(void *)carve(&p, ROWS);
    return w;
}

/* Q is packed times the first, so that scores come in units of log 2 or, with a soft cap, of the cap; dK comes by the second. */
static float score_factor(const lora_attention_backward_tile *t) {
    return t->softcap > 0 ? (float)((double)t->scale / (double)t->softcap) : (float)((double)t->scale * LOG2E);
}
static float dk_factor(const lora_attention_backward_tile *t) { return t->softcap > 0 ? t->softcap : (float)LN2; }

/* Width of the register tile for elements d .. of D. */
LORA_INLINE int64_t columns_at(int64_t D, int64_t d) { return D - d > VLEN ? NR : VLEN; }

static void begin_keys(const lora_attention_backward_tile *t, const backward_state *w) {
    copy_rows(t->k, t->ldk, t->n_keys, t->D, w->rows, t->D); /* read twice */
    for (int64_t j = 0; j < t->n_keys; j += NR) {
        int64_t n = lora_min_i64(NR, t->n_keys - j);
        for (int64_t i = j; i < j + n; i++) prefetch_row(t->v + i * t->ldv, t->D);
        w->path.pack_rows(w->rows + j * t->D, t->D, n, t->D, NR, w->kt + j * w->steps);
        w->path.pack_rows(t->v + j * t->ldv, t->ldv, n, t->D, NR, w->vt + j * w->steps);
    }
    for (int64_t d = 0; d < t->D; d += NR) {
        int64_t width = columns_at(t->D, d);
        w->path.pack_columns(w->rows + d, t->D, lora_min_i64(width, t->D - d), t->n_keys, width, w->k + d * pairs_of(t->n_keys));
    }
    for (int64_t i = 0; i < BLOCK * t->D; i++) w->dk[i] = w->dv[i] = 0.0f;
}

/* As rows of the products S and dP, and as columns of dK^T and dV^T. */
static void pack_both(const backward_state *w, int64_t n, int64_t D, uint32_t *tiles, uint32_t *strips) {
    for (int64_t r = 0; r < n; r += TALL) {
        int64_t here = lora_min_i64(TALL, n - r);
        w->path.pack_rows(w->rows + r * D, D, here, D, here, tiles + r * w->steps);
    }
    for (int64_t d = 0; d < D; d += w->strips.width) {
        int64_t here = strip_at(w->strips, d);
        w->path.pack_columns(w->rows + d, D, here, n, here, strips + d * pairs_of(n));
    }
}

static void attention_backward_begin(const lora_attention_backward_tile *t) {
    backward_state w = carve_backward(t);
    int64_t rows = t->n_queries * t->group;
    for (int64_t first = 0; first < rows; first += ROWS) {
        int64_t n = lora_min_i64(ROWS, rows - first), tiles = first * w.steps, strips = first / 2 * t->D;
        gather_rows(t->q, t->ldq, t->group, first, n, t->D, score_factor(t), w.rows);
        pack_both(&w, n, t->D, w.q + tiles, w.qt + strips);
        gather_rows(t->dout, t->lddo, t->group, first, n, t->D, 1.0f, w.rows);
        pack_both(&w, n, t->D, w.dout + tiles, w.doutt + strips);
    }
    for (int64_t i = 0; i < t->n_queries; i++)
        for (int64_t h = 0; h < t->group; h++) w.lse[i * t->group + h] = (float)((double)t->lse[i * t->ld_lse + h] * LOG2E);
}

static void find_seen_keys(const lora_attention_backward_tile *t, const backward_state *w, int64_t first, int64_t n) {
    for (int64_t r = 0; r < n; r++) {
        int64_t last = t->last + (first + r) / t->group;
        w->high[r] = (int32_t)lora_max_i64(lora_min_i64(last, t->n_keys - 1), -1);
        w->low[r] = (int32_t)(t->window > 0 ? lora_min_i64(lora_max_i64(last - t->window + 1, 0), BLOCK) : 0);
    }
}

/* Which of the 32 keys from key0 on row r sees. */
LORA_INLINE uint32_t seen_keys(const backward_state *w, int64_t r, int64_t key0) {
    int64_t from = lora_min_i64(lora_max_i64(w->low[r] - key0, 0), NR), to = lora_min_i64(lora_max_i64(w->high[r] + 1 - key0, 0), NR);
    return (uint32_t)((1ull << to) - 1) & ~(uint32_t)((1ull << from) - 1);
}

typedef struct cells {
    V p, ds;
} cells;

/* One row and 16 keys. */
LORA_INLINE cells softmax_gradient(const bool capped, const lora_attention_backward_tile *t, __mmask16 seen, V s, V dp, float lse,
                                   float delta) {
    cells c;
    if (capped) s = tanh_lanes(s);
    V x = capped ? v_mul(s, v_set1((float)((double)t->softcap * LOG2E))) : s;
    c.p = exp2_short_masked(seen, v_sub(x, v_set1(lse)));
    c.ds = _mm512_maskz_mul_ps(seen, c.p, v_sub(dp, v_set1(delta)));
    if (capped) c.ds = _mm512_maskz_mul_ps(seen, c.ds, v_sub(v_set1(1.0f), v_mul(s, s)));
    return c;
}

/* Scores and dP of tile r .. r + n - 1 become words of P and dS by pairs of rows, and words of dS by pairs of keys. */
ATTN_INLINE void tile_words(const bool capped, const lora_attention_backward_tile *t, const backward_state *w, int64_t r, int64_t n,
                            int64_t key0) {
    __m512i by_keys[VLEN];
    for (int64_t i = 0; i < n; i += 2) {
        cells c[2][2];
        LORA_UNROLL_BY(2) for (int64_t y = 0; y < 2; y++) {
            int64_t row = lora_min_i64(r + i + y, r + n - 1);
            uint32_t seen = i + y < n ? seen_keys(w, row, key0) : 0;
            LORA_UNROLL_BY(2) for (int x = 0; x < 2; x++) {
                c[y][x] = softmax_gradient(capped, t, (__mmask16)(seen >> VLEN * x), v_load(w->s + row * NR + x * VLEN),
                                           v_load(w->dp + row * NR + x * VLEN), w->lse[row], w->delta[row]);
            }
            by_keys[i + y] = narrow_32(c[y][0].ds, c[y][1].ds);
        }
        LORA_UNROLL_BY(2) for (int x = 0; x < 2; x++) {
            _mm512_store_si512(w->pw + (r + i) / 2 * NR + x * VLEN, pair(c[0][x].p, c[1][x].p));
            _mm512_store_si512(w->dsw + (r + i) / 2 * NR + x * VLEN, pair(c[0][x].ds, c[1][x].ds));
        }
    }
    for (int64_t i = n; i < VLEN; i++) by_keys[i] = _mm512_setzero_si512();
    lora_transpose_16x16(by_keys);
    uint32_t *out = w->ds + r / TALL * DS_TILE + key0 / 2 * n;
    LORA_UNROLL_BY(16)
    for (int64_t i = 0; i < VLEN; i++) _mm512_storeu_si512(out + i * n, by_keys[i]); /* what is too much the next one overwrites */
}

ATTN_NOINLINE void tile_words_plain(const lora_attention_backward_tile *t, const backward_state *w, int64_t r, int64_t n, int64_t key0) {
    tile_words(false, t, w, r, n, key0);
}
ATTN_NOINLINE void tile_words_capped(const lora_attention_backward_tile *t, const backward_state *w, int64_t r, int64_t n, int64_t key0) {
    tile_words(true, t, w, r, n, key0);
}

/* dK^T and dV^T of 32 keys, dS of those keys for all rows, from the chunk's n rows. */
static void key_panel(const lora_attention_backward_tile *t, const backward_state *w, int64_t n, int64_t key0) {
    int64_t from = n, to = 0; /* the tiles with a row that sees one of the keys */
    for (int64_t r = 0; r < n; r += TALL) {
        int64_t here = lora_min_i64(TALL, n - r);
        if (w->high[r + here - 1] < key0 || w->low[r] >= key0 + NR) continue;
        from = lora_min_i64(from, r);
        to = r + here;
        w->path.micro(here, NR, w->steps, w->q + r * w->steps, w->kt + key0 * w->steps, w->s + r * NR, NR, false);
        w->path.micro(here, NR, w->steps, w->dout + r * w->steps, w->vt + key0 * w->steps, w->dp + r * NR, NR, false);
        (t->softcap > 0 ? tile_words_capped : tile_words_plain)(t, w, r, here, key0);
    }
    if (from >= to) return;
    for (int64_t d = 0; d < t->D; d += w->strips.width) {
        int64_t width = strip_at(w->strips, d), at = d * pairs_of(n) + from / 2 * width, steps = pairs_of(to - from);
        w->path.micro(width, NR, steps, w->doutt + at, w->pw + from / 2 * NR, w->dv + key0 * t->D + d * NR, NR, true);
        w->path.micro(width, NR, steps, w->qt + at, w->dsw + from / 2 * NR, w->dk + key0 * t->D + d * NR, NR, true);
    }
}

/* dst = (dst +) scale * row r. */
static void write_dq(const lora_attention_backward_tile *t, const backward_state *w, int64_t r, float *dst) {
    const float *dq = w->dq + r * lora_round_up(t->D, VLEN);
    const V scale = v_set1(t->scale);
    for (int64_t d = 0; d < t->D; d += VLEN) {
        __mmask16 lanes = lora_first_lanes(t->D - d);
        V old = t->accumulate_dq ? _mm512_maskz_loadu_ps(lanes, dst + d) : v_set1(0.0f);
        _mm512_mask_storeu_ps(dst + d, lanes, v_fma(v_load(dq + d), scale, old));
    }
}

/* dQ of one tile of rows. */
static void tile_dq(const lora_attention_backward_tile *t, const backward_state *w, int64_t first, int64_t r, int64_t n) {
    int64_t from = w->low[r] / NR * NR, to = w->high[r + n - 1] + 1;
    int64_t wide = lora_round_up(t->D, VLEN);
    if (from >= to) {
        if (t->accumulate_dq) return;
        for (int64_t i = 0; i < n * wide; i++) w->dq[r * wide + i] = 0.0f;
    }
    for (int64_t i = 0; i < n; i++) prefetch_row(t->dq + (first + r + i) / t->group * t->lddq + (first + r + i) % t->group * t->D, t->D);
    for (int64_t d = 0; d < t->D && from < to; d += NR) {
        int64_t width = columns_at(t->D, d);
        w->path.micro(n, width, pairs_of(to - from), w->ds + r / TALL * DS_TILE + from / 2 * n,
                      w->k + d * pairs_of(t->n_keys) + from / 2 * width, w->dq + r * wide + d, wide, false);
    }
    for (int64_t i = r; i < r + n; i++) write_dq(t, w, i, t->dq + (first + i) / t->group * t->lddq + (first + i) % t->group * t->D);
}

/* Rows first .. first + n - 1; all is what attention_backward_begin left. */
static void chunk(const lora_attention_backward_tile *t, const backward_state *all, int64_t first, int64_t n) {
    backward_state here = *all, *w = &here;
    w->q += first * w->steps, w->dout += first * w->steps;
    w->qt += first / 2 * t->D, w->doutt += first / 2 * t->D;
    w->lse += first, w->delta = t->delta + first;
    find_seen_keys(t, w, first, n);
    for (int64_t key0 = 0; key0 < t->n_keys; key0 += NR) key_panel(t, w, n, key0);
    for (int64_t r = 0; r < n; r += TALL) tile_dq(t, w, first, r, lora_min_i64(TALL, n - r));
}

/* Rows of dK or dV from the panels of src. */
static void write_keys(const lora_attention_backward_tile *t, const backward_state *w, const float *src, float factor, float *dst,
                       int64_t ld) {
    float factors[VLEN];
    v_store(factors, v_set1(factor));
    for (int64_t j = 0; j < t->n_keys; j += VLEN) {
        int64_t n = lora_min_i64(VLEN, t->n_keys - j);
        float *rows[VLEN];
        for (int64_t i = 0; i < VLEN; i++) {
            rows[i] = w->rows + i * t->D;
            prefetch_row(dst + lora_min_i64(j + i, t->n_keys - 1) * ld, t->D);
        }
        unpack_lanes(src + j / NR * NR * t->D + j % NR, factors, t->D, rows, (int)n);
        for (int64_t i = 0; i < n; i++) write_row(rows[i], t->D, t->accumulate_keys, dst + (j + i) * ld);
    }
}

static void attention_backward(const lora_attention_backward_tile *t) {
    backward_state w = carve_backward(t);
    int64_t rows = t->n_queries * t->group;
    begin_keys(t, &w);
    for (int64_t first = 0; first < rows; first += ROWS) chunk(t, &w, first, lora_min_i64(ROWS, rows - first));
    write_keys(t, &w, w.dk, dk_factor(t), t->dk, t->lddk);
    write_keys(t, &w, w.dv, 1.0f, t->dv, t->lddv);
}

void lora_attention_init_bf16_backward(lora_attention_kernels *k) {
    k->key_block = BLOCK;
    k->backward_begin = attention_backward_begin;
    k->backward_scratch = backward_scratch;
    k->backward = attention_backward;
}

LORA_TARGET_END
#endif
