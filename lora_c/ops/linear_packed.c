#include "lora_c/ops/linear_packed.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/dropout.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/gemm_packed.h"
#include "lora_c/ops/linear_costs.h"
#include "lora_c/ops/low_rank_sums.h"
#include "lora_c/ops/profile.h"

static lora_weight weight_a(const lora_adapter *a, int64_t K) { return lora_weight_f32(a->A, a->rank, K, K); }
static lora_weight weight_b(const lora_adapter *a, int64_t N) { return lora_weight_f32(a->B, N, a->rank, a->rank); }

/* c[m,n] (+)= alpha * a[m,k] * b[k,n]; a and b dense */
static lora_status product(lora_ctx *ctx, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t a_row_stride,
                           int64_t a_col_stride, const lora_weight *b, bool b_transposed, float *c, int64_t ldc, bool accumulate,
                           lora_error *err) {
    lora_gemm_args g = {m, n, k, alpha, a, a_row_stride, a_col_stride, b, b_transposed, c, ldc, accumulate, NULL, false};
    return lora_gemm(ctx, &g, err);
}

/* Low-rank products of a group and what dropout leaves of one input (or takes from one gradient). */
typedef struct workspace {
    float *t[LORA_LINEAR_LAYERS]; /* (M, R): s drop(x) A^T */
    float *u[LORA_LINEAR_LAYERS]; /* (M, R): s dy B */
    float *dropped;              /* (M, K) */
} workspace;

static lora_status get_workspace(lora_ctx *ctx, int64_t M, int64_t K, int n, const lora_adapter *const *adapters, workspace *ws,
                                 lora_error *err) {
    int64_t floats = 0;
    bool any_dropped = false;
    for (int i = 0; i < n; i++) {
        floats += adapters[i] ? 2 * lora_round_up(M * adapters[i]->rank, 16) : 0;
        any_dropped |= adapters[i] && adapters[i]->dropout > 0;
    }
    void *memory;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_LINEAR, (size_t)(floats + (any_dropped ? M * K : 0)) * sizeof(float), &memory, err));
    ws->dropped = (float *)memory + floats;
    float *next = memory;
    for (int i = 0; i < n; i++) {
        int64_t low = adapters[i] ? lora_round_up(M * adapters[i]->rank, 16) : 0;
        ws->t[i] = adapters[i] && adapters[i]->low ? adapters[i]->low : next;
        ws->u[i] = next + low;
        next += 2 * low;
    }
    return LORA_OK;
}

/* Packing memory of a chunk: the operand of length k, or one of length n_i for each i, and a low-rank one each. */
typedef struct lefts {
    const lora_gemm_path *path;
    float *wide[LORA_LINEAR_LAYERS], *low[LORA_LINEAR_LAYERS];
} lefts;

static lora_status get_lefts(lora_ctx *ctx, int64_t rows, int n, const int64_t *wide_k, const lora_adapter *const *adapters, lefts *l,
                             lora_error *err) {
    l->path = lora_gemm_path_of(ctx, ctx->precision);
    int64_t words = 0, at[2][LORA_LINEAR_LAYERS];
    for (int i = 0; i < n; i++) {
        at[0][i] = words;
        words += wide_k[i] ? lora_gemm_left_words(l->path, rows, wide_k[i]) : 0;
        at[1][i] = words;
        words += adapters[i] ? lora_gemm_left_words(l->path, rows, adapters[i]->rank) : 0;
    }
    void *memory;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_A, (size_t)words * sizeof(float), &memory, err));
    for (int i = 0; i < n; i++) {
        l->wide[i] = (float *)memory + at[0][i];
        l->low[i] = (float *)memory + at[1][i];
    }
    return LORA_OK;
}

static int64_t n_chunks(int64_t M) { return lora_div_up(M, LORA_GEMM_CHUNK); }
static int64_t chunk_row(int64_t M, int64_t chunk) { return M * chunk / n_chunks(M); }

/* --- forward --- */

/* t_i = s_i drop_i(x) A_i^T for the adapters with dropout, whole. */
static lora_status dropped_low(lora_ctx *ctx, int64_t M, int64_t K, const float *x, int64_t ldx, int n, const lora_adapter *const *adapters,
                               workspace *ws, lora_error *err) {
    for (int i = 0; i < n; i++) {
        const lora_adapter *a = adapters[i];
        if (!a || a->dropout == 0) continue;
        lora_weight A = weight_a(a, K);
        lora_dropout(ctx, a, M, K, x, ldx, ws->dropped, K, false);
        LORA_TRY(product(ctx, M, a->rank, K, a->scale, ws->dropped, K, 1, &A, true, ws->t[i], a->rank, false, err));
    }
    return LORA_OK;
}

/* The same for the others, rows of one chunk, from packed x. */
static lora_status plain_low(lora_ctx *ctx, int64_t K, const lora_gemm_left *x, int64_t row, int n, const lora_adapter *const *adapters,
                             workspace *ws, lora_error *err) {
    lora_gemm_output low[LORA_LINEAR_LAYERS];
    lora_weight A[LORA_LINEAR_LAYERS];
    int n_low = 0;
    for (int i = 0; i < n; i++) {
        const lora_adapter *a = adapters[i];
        if (!a || a->dropout > 0) continue;
        A[i] = weight_a(a, K);
        low[n_low++] = (lora_gemm_output){.n = a->rank, .alpha = a->scale, .n_terms = 1, .terms = {{x, &A[i], true}},
                                          .c = ws->t[i] + row * a->rank, .ldc = a->rank};
    }
    return n_low ? lora_gemm_run(ctx, low, n_low, err) : LORA_OK;
}

static lora_status forward_chunk(lora_ctx *ctx, int64_t row, int64_t rows, const float *x, int64_t ldx, int n,
                                 const lora_linear_layer *outputs, const lora_adapter *const *adapters, const lefts *l, workspace *ws,
                                 lora_error *err) {
    int64_t K = outputs[0].w->cols;
    lora_gemm_left left, low[LORA_LINEAR_LAYERS];
    lora_gemm_output sums[LORA_LINEAR_LAYERS];
    lora_weight B[LORA_LINEAR_LAYERS];
    lora_gemm_pack_left(ctx, l->path, rows, K, x + row * ldx, ldx, 1, l->wide[0], &left);
    LORA_TRY(plain_low(ctx, K, &left, row, n, adapters, ws, err));
    for (int i = 0; i < n; i++) {
        const lora_linear_layer *o = outputs + i;
        sums[i] = (lora_gemm_output){.n = o->w->rows, .alpha = 1, .n_terms = 1, .terms = {{&left, o->w, true}}, .c = o->y + row * o->ldy,
                                     .ldc = o->ldy, .accumulate = o->accumulate, .bias = o->bias};
        const lora_adapter *a = adapters[i];
        if (!a) continue;
        B[i] = weight_b(a, o->w->rows);
        lora_gemm_pack_left(ctx, l->path, rows, a->rank, ws->t[i] + row * a->rank, a->rank, 1, l->low[i], &low[i]);
        sums[i].terms[sums[i].n_terms++] = (lora_gemm_term){&low[i], &B[i], true};
    }
    return lora_gemm_run(ctx, sums, n, err);
}

lora_status lora_linear_packed_forward(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int n, const lora_linear_layer *outputs,
                                       lora_error *err) {
    int64_t K = outputs[0].w->cols, wide_k[LORA_LINEAR_LAYERS] = {K};
    const lora_adapter *adapters[LORA_LINEAR_LAYERS];
    for (int i = 0; i < n; i++) adapters[i] = outputs[i].adapter;
    workspace ws;
    lefts l;
    LORA_TRY(get_workspace(ctx, M, K, n, adapters, &ws, err));
    LORA_TRY(dropped_low(ctx, M, K, x, ldx, n, adapters, &ws, err));
    LORA_TRY(get_lefts(ctx, lora_div_up(M, n_chunks(M)), n, wide_k, adapters, &l, err));
    for (int64_t c = 0; c < n_chunks(M); c++) {
        int64_t row = chunk_row(M, c), rows = chunk_row(M, c + 1) - row;
        LORA_TRY(forward_chunk(ctx, row, rows, x, ldx, n, outputs, adapters, &l, &ws, err));
    }
    return LORA_OK;
}

/* --- backward --- */

/* u_i = s_i dy_i B_i, and dx of one chunk. */
static lora_status backward_chunk(lora_ctx *ctx, int64_t row, int64_t rows, int n, const lora_linear_gradient *g,
                                  const lora_adapter *const *adapters, float *dx, int64_t lddx, bool accumulate, const lefts *l,
                                  workspace *ws, lora_error *err) {
    int64_t K = g[0].w->cols;
    lora_gemm_left wide[LORA_LINEAR_LAYERS], low[LORA_LINEAR_LAYERS];
    lora_gemm_output low_outputs[LORA_LINEAR_LAYERS];
    lora_gemm_output sum = {.n = K, .alpha = 1, .c = dx + (dx ? row * lddx : 0), .ldc = lddx, .accumulate = accumulate};
    lora_weight A[LORA_LINEAR_LAYERS], B[LORA_LINEAR_LAYERS];
    int n_low = 0;
    for (int i = 0; i < n; i++) {
        const lora_adapter *a = adapters[i];
        if (!dx && !a) continue;
        lora_gemm_pack_left(ctx, l->path, rows, g[i].w->rows, g[i].dy + row * g[i].lddy, g[i].lddy, 1, l->wide[i], &wide[i]);
        sum.terms[sum.n_terms++] = (lora_gemm_term){&wide[i], g[i].w, false};
        if (!a) continue;
        B[i] = weight_b(a, g[i].w->rows);
        low_outputs[n_low++] = (lora_gemm_output){.n = a->rank, .alpha = a->scale, .n_terms = 1, .terms = {{&wide[i], &B[i], false}},
                                                  .c = ws->u[i] + row * a->rank, .ldc = a->rank};
    }
    if (n_low) LORA_TRY(lora_gemm_run(ctx, low_outputs, n_low, err));
    if (!dx) return LORA_OK;
    for (int i = 0; i < n; i++) {
        const lora_adapter *a = adapters[i];
        if (!a || a->dropout > 0) continue;
        A[i] = weight_a(a, K);
        lora_gemm_pack_left(ctx, l->path, rows, a->rank, ws->u[i] + row * a->rank, a->rank, 1, l->low[i], &low[i]);
        sum.terms[sum.n_terms++] = (lora_gemm_term){&low[i], &A[i], false};
    }
    return lora_gemm_run(ctx, &sum, 1, err);
}

static bool trains(const lora_adapter *a) { return a && (a->dA || a->dB); }

/* t_i = s_i drop_i(x) A_i^T again, for dB, where forward has not left it. */
static lora_status low_again(lora_ctx *ctx, int64_t M, int64_t K, const float *x, int64_t ldx, int n, const lora_adapter *const *adapters,
                             workspace *ws, lora_error *err) {
    const lora_adapter *wanted[LORA_LINEAR_LAYERS];
    int64_t wide_k[LORA_LINEAR_LAYERS] = {K};
    bool any = false;
    for (int i = 0; i < n; i++) {
        wanted[i] = adapters[i] && adapters[i]->dB && !adapters[i]->low ? adapters[i] : NULL;
        any |= wanted[i] && wanted[i]->dropout == 0;
    }
    lefts l;
    LORA_TRY(dropped_low(ctx, M, K, x, ldx, n, wanted, ws, err));
    if (!any) return LORA_OK;
    LORA_TRY(get_lefts(ctx, lora_div_up(M, n_chunks(M)), 1, wide_k, (const lora_adapter *const[]){NULL}, &l, err));
    for (int64_t c = 0; c < n_chunks(M); c++) {
        int64_t row = chunk_row(M, c);
        lora_gemm_left left;
        lora_gemm_pack_left(ctx, l.path, chunk_row(M, c + 1) - row, K, x + row * ldx, ldx, 1, l.wide[0], &left);
        LORA_TRY(plain_low(ctx, K, &left, row, n, wanted, ws, err));
    }
    return LORA_OK;
}

static lora_low_rank_sum sum_of_dA(int64_t K, const float *x, int64_t ldx, const lora_adapter *a, const float *u) {
    return (lora_low_rank_sum){.low = u, .rank = a->rank, .wide = x, .ld = ldx, .cols = K, .alpha = 1, .out = a->dA};
}

/* dA_i += u_i^T drop_i(x), dB_i += dy_i^T t_i: those of whole x at once, those of a dropped x one by one. */
static lora_status adapter_gradients(lora_ctx *ctx, int64_t M, int64_t K, const float *x, int64_t ldx, int n, const lora_linear_gradient *g,
                                     const lora_adapter *const *adapters, const workspace *ws, lora_error *err) {
    lora_low_rank_sum sums[LORA_LOW_RANK_SUMS];
    int n_sums = 0;
    for (int i = 0; i < n; i++)
        if (adapters[i] && adapters[i]->dA && adapters[i]->dropout == 0) sums[n_sums++] = sum_of_dA(K, x, ldx, adapters[i], ws->u[i]);
    for (int i = 0; i < n; i++)
        if (adapters[i] && adapters[i]->dB)
            sums[n_sums++] = (lora_low_rank_sum){.low = ws->t[i], .rank = adapters[i]->rank, .wide = g[i].dy, .ld = g[i].lddy,
                                                 .cols = g[i].w->rows, .alpha = 1, .out = adapters[i]->dB, .transposed = true};
    LORA_TRY(lora_low_rank_sums(ctx, M, n_sums, sums, err));
    for (int i = 0; i < n; i++) {
        if (!adapters[i] || !adapters[i]->dA || adapters[i]->dropout == 0) continue;
        lora_dropout(ctx, adapters[i], M, K, x, ldx, ws->dropped, K, false);
        lora_low_rank_sum dA = sum_of_dA(K, ws->dropped, K, adapters[i], ws->u[i]);
        LORA_TRY(lora_low_rank_sums(ctx, M, 1, &dA, err));
    }
    return LORA_OK;
}

/* dx += drop_i'(u_i A_i) of the adapters with dropout. */
static lora_status dropped_input_gradients(lora_ctx *ctx, int64_t M, int64_t K, int n, const lora_adapter *const *adapters, float *dx,
                                           int64_t lddx, const workspace *ws, lora_error *err) {
    for (int i = 0; i < n; i++) {
        const lora_adapter *a = adapters[i];
        if (!a || a->dropout == 0) continue;
        lora_weight A = weight_a(a, K);
        LORA_TRY(product(ctx, M, K, a->rank, 1, ws->u[i], a->rank, 1, &A, false, ws->dropped, K, false, err));
        lora_dropout(ctx, a, M, K, ws->dropped, K, dx, lddx, true);
    }
    return LORA_OK;
}

lora_status lora_linear_packed_backward(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int n, const lora_linear_gradient *g,
                                        float *dx, int64_t lddx, bool accumulate_dx, lora_error *err) {
    int64_t K = g[0].w->cols, wide_k[LORA_LINEAR_LAYERS];
    const lora_adapter *adapters[LORA_LINEAR_LAYERS];
    bool any_trains = false, any_adapter = false;
    for (int i = 0; i < n; i++) {
        adapters[i] = dx || trains(g[i].adapter) ? g[i].adapter : NULL;
        wide_k[i] = g[i].w->rows;
        any_trains |= trains(g[i].adapter);
        any_adapter |= adapters[i] != NULL;
    }
    workspace ws;
    lefts l;
    LORA_TRY(get_workspace(ctx, M, K, n, adapters, &ws, err));
    int64_t began = lora_profile_begin(ctx);
    if (dx || any_adapter) {
        LORA_TRY(get_lefts(ctx, lora_div_up(M, n_chunks(M)), n, wide_k, adapters, &l, err));
        for (int64_t c = 0; c < n_chunks(M); c++) {
            int64_t row = chunk_row(M, c);
            LORA_TRY(backward_chunk(ctx, row, chunk_row(M, c + 1) - row, n, g, adapters, dx, lddx, accumulate_dx, &l, &ws, err));
        }
        lora_count_backward(ctx, began, M, n, g, dx != NULL);
    }
    began = lora_profile_begin(ctx);
    if (any_trains) LORA_TRY(low_again(ctx, M, K, x, ldx, n, adapters, &ws, err));
    LORA_TRY(adapter_gradients(ctx, M, K, x, ldx, n, g, adapters, &ws, err));
    if (dx) LORA_TRY(dropped_input_gradients(ctx, M, K, n, adapters, dx, lddx, &ws, err));
    if (any_adapter) lora_count_adapter_gradient(ctx, began, M, n, g);
    for (int i = 0; i < n; i++) {
        if (!g[i].dW) continue;
        began = lora_profile_begin(ctx);
        lora_weight in = lora_weight_f32(x, M, K, ldx);
        LORA_TRY(product(ctx, g[i].w->rows, K, M, 1, g[i].dy, 1, g[i].lddy, &in, false, g[i].dW, K, true, err));
        lora_count_weight_gradient(ctx, began, M, g[i].w->rows, K);
    }
    return LORA_OK;
}
