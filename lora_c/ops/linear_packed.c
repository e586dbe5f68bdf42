#include "lora_c/ops/linear_packed.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/dropout.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/gemm_packed.h"
#include "lora_c/ops/linear_costs.h"
#include "lora_c/ops/low_rank_sums.h"
#include "lora_c/ops/profile.h"

/* --- what a call works with --- */

/* The adapter of a layer in this call, and its low-rank products. */
typedef struct low_rank {
    const lora_adapter *a; /* NULL: none, or not needed */
    const lora_adapter_pass *pass;
    lora_weight A, B;
    lora_mat t, u; /* (M, R): s drop(x) A^T, s dy B */
    float *packed; /* a chunk of t or u */
    float *wide;   /* a chunk of what the adapter multiplies, x or dy, where that has another path than W: int8 */
} low_rank;

typedef struct work {
    lora_ctx *ctx;
    int64_t M, K;
    int n;
    low_rank low[LORA_LINEAR_LAYERS];
    lora_mat dropped;                  /* (M, K): what dropout leaves of the input, or takes from a gradient */
    const lora_gemm_path *path, *base; /* of products with A and B, and with W */
    float *wide[LORA_LINEAR_LAYERS];   /* a chunk of x, or of every dy */
    int64_t gradient_ns;               /* what the gradients of adapters took amid the others, where that is counted */
} work;

static bool drops(const low_rank *r) { return r->a && r->pass->dropout > 0; }

static void set_adapter(work *wk, int i, const lora_adapter *a, const lora_adapter_pass *pass, int64_t N) {
    low_rank *r = &wk->low[i];
    *r = (low_rank){.a = a, .pass = pass};
    if (!a) return;
    r->A = lora_weight_f32(a->A, a->rank, wk->K, wk->K);
    r->B = lora_weight_f32(a->B, N, a->rank, a->rank);
}

/* Memory of the low-rank products. */
static lora_status get_products(work *wk, lora_error *err) {
    int64_t M = wk->M, floats = 0;
    bool any_dropped = false;
    for (int i = 0; i < wk->n; i++) {
        floats += wk->low[i].a ? 2 * lora_round_up(M * wk->low[i].a->rank, 16) : 0;
        any_dropped |= drops(&wk->low[i]);
    }
    void *memory;
    size_t bytes = (size_t)(floats + (any_dropped ? M * wk->K : 0)) * sizeof(float);
    LORA_TRY(lora_ctx_scratch(wk->ctx, LORA_SCRATCH_LINEAR, bytes, &memory, err));
    wk->dropped = lora_mat_f32((float *)memory + floats, M, wk->K, wk->K);
    float *next = memory;
    for (int i = 0; i < wk->n; i++) {
        low_rank *r = &wk->low[i];
        if (!r->a) continue;
        int64_t R = r->a->rank, low = lora_round_up(M * R, 16);
        r->t = lora_mat_f32(r->pass->low ? r->pass->low : next, M, R, R);
        r->u = lora_mat_f32(next + low, M, R, R);
        next += 2 * low;
    }
    return LORA_OK;
}

static int64_t n_chunks(int64_t M) { return lora_div_up(M, LORA_GEMM_CHUNK); }
static int64_t chunk_row(int64_t M, int64_t chunk) { return M * chunk / n_chunks(M); }

/* Packing memory of a chunk: n_wide operands of length wide_k[i], and with low a low-rank one of each adapter. */
static lora_status get_packed(work *wk, int n_wide, const int64_t *wide_k, bool low, lora_error *err) {
    wk->path = lora_gemm_path_of(wk->ctx, wk->ctx->view.precision);
    wk->base = low ? lora_gemm_base_path_of(wk->ctx) : wk->path;
    const bool twice = wk->base != wk->path;
    int64_t rows = lora_div_up(wk->M, n_chunks(wk->M)), words = 0, at[3][LORA_LINEAR_LAYERS];
    bool any = false;
    for (int i = 0; i < wk->n; i++) any |= wk->low[i].a != NULL;
    for (int i = 0; i < wk->n; i++) {
        at[0][i] = words;
        words += i < n_wide ? lora_gemm_left_words(wk->base, rows, wide_k[i]) : 0;
        at[1][i] = words;
        words += low && wk->low[i].a ? lora_gemm_left_words(wk->path, rows, wk->low[i].a->rank) : 0;
        at[2][i] = words;
        words += twice && any && i < n_wide ? lora_gemm_left_words(wk->path, rows, wide_k[i]) : 0;
    }
    void *memory;
    LORA_TRY(lora_ctx_scratch(wk->ctx, LORA_SCRATCH_GEMM_A, (size_t)words * sizeof(float), &memory, err));
    for (int i = 0; i < wk->n; i++) {
        wk->wide[i] = (float *)memory + at[0][i];
        wk->low[i].packed = (float *)memory + at[1][i];
        wk->low[i].wide = twice ? (float *)memory + at[2][i] : NULL;
    }
    return LORA_OK;
}

static lora_gemm_left pack(const work *wk, const lora_gemm_path *path, lora_mat rows, float *words) {
    lora_gemm_left left;
    lora_gemm_pack_left(wk->ctx, path, rows.rows, rows.cols, rows.data, rows.ld, 1, words, &left);
    return left;
}

enum { FOR_W, FOR_ADAPTER };

/* The operand of the product with W and, with low, that of the products with A or B, which may be the same. */
static void pack_wide(const work *wk, int i, lora_mat rows, bool low, lora_gemm_left out[2]) {
    const lora_gemm_path *paths[2] = {wk->base, wk->path};
    float *words[2] = {wk->wide[i], wk->low[i].wide};
    if (low && wk->base != wk->path)
        lora_gemm_pack_left_twice(wk->ctx, paths, rows.rows, rows.cols, rows.data, rows.ld, words, out);
    else
        out[FOR_W] = out[FOR_ADAPTER] = pack(wk, wk->base, rows, wk->wide[i]);
}

/* --- forward --- */

/* t_i = s_i drop_i(x) A_i^T for the adapters with dropout, whole. */
static lora_status dropped_low(const work *wk, lora_mat x, lora_error *err) {
    for (int i = 0; i < wk->n; i++) {
        const low_rank *r = &wk->low[i];
        if (!drops(r)) continue;
        lora_dropout(wk->ctx, lora_mask_of(r->a, r->pass), x, wk->dropped, false);
        lora_gemm_args g = {.m = wk->M,
                            .n = r->a->rank,
                            .k = wk->K,
                            .alpha = r->a->scale,
                            .a = wk->dropped.data,
                            .a_row_stride = wk->K,
                            .a_col_stride = 1,
                            .b = &r->A,
                            .b_transposed = true,
                            .c = r->t.data,
                            .ldc = r->t.ld};
        LORA_TRY(lora_gemm(wk->ctx, &g, err));
    }
    return LORA_OK;
}

static bool any_plain_low(const work *wk) {
    for (int i = 0; i < wk->n; i++)
        if (wk->low[i].a && !drops(&wk->low[i])) return true;
    return false;
}

/* The same for the others, rows of one chunk, from packed x. */
static lora_status plain_low(const work *wk, const lora_gemm_left *x, int64_t row, lora_error *err) {
    lora_gemm_output low[LORA_LINEAR_LAYERS];
    int n_low = 0;
    for (int i = 0; i < wk->n; i++) {
        const low_rank *r = &wk->low[i];
        if (!r->a || drops(r)) continue;
        low[n_low++] = (lora_gemm_output){.n = r->a->rank,
                                          .alpha = r->a->scale,
                                          .n_terms = 1,
                                          .terms = {{.left = x, .b = &r->A, .b_transposed = true}},
                                          .c = lora_mat_rows(r->t, row, x->m).data,
                                          .ldc = r->t.ld};
    }
    return lora_gemm_run(wk->ctx, low, n_low, err);
}

static lora_status forward_chunk(const work *wk, lora_mat x, const lora_linear_layer *layers, int64_t row, lora_error *err) {
    lora_gemm_left left[2], low[LORA_LINEAR_LAYERS];
    lora_gemm_output sums[LORA_LINEAR_LAYERS];
    const bool any_low = any_plain_low(wk);
    pack_wide(wk, 0, x, any_low, left);
    if (any_low) LORA_TRY(plain_low(wk, &left[FOR_ADAPTER], row, err));
    for (int i = 0; i < wk->n; i++) {
        const lora_linear_layer *l = layers + i;
        const low_rank *r = &wk->low[i];
        sums[i] = (lora_gemm_output){.n = l->w->rows,
                                     .alpha = 1,
                                     .n_terms = 1,
                                     .terms = {{.left = &left[FOR_W], .b = l->w, .b_transposed = true}},
                                     .c = lora_mat_rows(l->y, row, x.rows).data,
                                     .ldc = l->y.ld,
                                     .accumulate = l->accumulate,
                                     .bias = l->bias};
        if (!r->a) continue;
        low[i] = pack(wk, wk->path, lora_mat_rows(r->t, row, x.rows), r->packed);
        sums[i].terms[sums[i].n_terms++] = (lora_gemm_term){.left = &low[i], .b = &r->B, .b_transposed = true};
    }
    return lora_gemm_run(wk->ctx, sums, wk->n, err);
}

lora_status lora_linear_packed_forward(lora_ctx *ctx, lora_mat x, int n, const lora_linear_layer *layers, lora_error *err) {
    work wk = {.ctx = ctx, .M = x.rows, .K = x.cols, .n = n};
    for (int i = 0; i < n; i++) set_adapter(&wk, i, layers[i].adapter, &layers[i].pass, layers[i].w->rows);
    LORA_TRY(get_products(&wk, err));
    LORA_TRY(dropped_low(&wk, x, err));
    LORA_TRY(get_packed(&wk, 1, &wk.K, true, err));
    for (int64_t c = 0; c < n_chunks(wk.M); c++) {
        int64_t row = chunk_row(wk.M, c);
        LORA_TRY(forward_chunk(&wk, lora_mat_rows(x, row, chunk_row(wk.M, c + 1) - row), layers, row, err));
    }
    return LORA_OK;
}

/* --- backward --- */

/* Of the rows of wide and those of low from row on. */
static lora_low_rank_sum sum_of(lora_mat low, int64_t row, lora_mat wide, float *out, bool transposed) {
    return (lora_low_rank_sum){.low = lora_mat_rows(low, row, wide.rows).data,
                               .rank = low.cols,
                               .wide = wide.data,
                               .ld = wide.ld,
                               .cols = wide.cols,
                               .alpha = 1,
                               .out = out,
                               .transposed = transposed};
}

/* dA_i += u_i^T x, dB_i += dy_i^T t_i over the rows of a chunk, all at once; dA of a dropped x: dropped_gradients. */
static lora_status plain_gradients(const work *wk, lora_mat x, const lora_linear_gradient *g, int64_t row, lora_error *err) {
    lora_low_rank_sum sums[LORA_LOW_RANK_SUMS];
    int n_sums = 0;
    for (const low_rank *r = wk->low; r < wk->low + wk->n; r++)
        if (r->a && r->a->dA && !drops(r)) sums[n_sums++] = sum_of(r->u, row, x, r->a->dA, false);
    for (int i = 0; i < wk->n; i++) {
        const low_rank *r = &wk->low[i];
        if (r->a && r->a->dB) sums[n_sums++] = sum_of(r->t, row, lora_mat_rows(g[i].dy, row, x.rows), r->a->dB, true);
    }
    return lora_low_rank_sums(wk->ctx, x.rows, n_sums, sums, err);
}

/* u_i = s_i dy_i B_i, with that the gradients of the adapters while x and dy are in cache, and dx of one chunk. */
static lora_status backward_chunk(work *wk, lora_mat x, const lora_linear_gradient *g, int64_t row, lora_mat dx, bool accumulate,
                                  lora_error *err) {
    lora_gemm_left wide[LORA_LINEAR_LAYERS][2], low[LORA_LINEAR_LAYERS];
    lora_gemm_output low_outputs[LORA_LINEAR_LAYERS];
    lora_gemm_output sum = {.n = wk->K, .alpha = 1, .c = dx.data, .ldc = dx.ld, .accumulate = accumulate};
    int n_low = 0;
    for (int i = 0; i < wk->n; i++) {
        const low_rank *r = &wk->low[i];
        if (!dx.data && !r->a) continue;
        lora_mat dy = lora_mat_rows(g[i].dy, row, dx.rows);
        if (dx.data)
            pack_wide(wk, i, dy, r->a != NULL, wide[i]);
        else
            wide[i][FOR_ADAPTER] = pack(wk, wk->path, dy, wk->base == wk->path ? wk->wide[i] : r->wide);
        sum.terms[sum.n_terms++] = (lora_gemm_term){.left = &wide[i][FOR_W], .b = g[i].w};
        if (!r->a) continue;
        low_outputs[n_low++] = (lora_gemm_output){.n = r->a->rank,
                                                  .alpha = r->a->scale,
                                                  .n_terms = 1,
                                                  .terms = {{.left = &wide[i][FOR_ADAPTER], .b = &r->B}},
                                                  .c = lora_mat_rows(r->u, row, dx.rows).data,
                                                  .ldc = r->u.ld};
    }
    if (n_low) LORA_TRY(lora_gemm_run(wk->ctx, low_outputs, n_low, err));
    const int64_t began = lora_profile_begin(wk->ctx);
    LORA_TRY(plain_gradients(wk, x, g, row, err));
    wk->gradient_ns += lora_profile_begin(wk->ctx) - began;
    if (!dx.data) return LORA_OK;
    for (int i = 0; i < wk->n; i++) {
        const low_rank *r = &wk->low[i];
        if (!r->a || drops(r)) continue;
        low[i] = pack(wk, wk->path, lora_mat_rows(r->u, row, dx.rows), r->packed);
        sum.terms[sum.n_terms++] = (lora_gemm_term){.left = &low[i], .b = &r->A};
    }
    return lora_gemm_run(wk->ctx, &sum, 1, err);
}

static lora_status backward_chunks(work *wk, lora_mat x, const lora_linear_gradient *g, lora_mat dx, bool accumulate, lora_error *err) {
    int64_t wide_k[LORA_LINEAR_LAYERS];
    for (int i = 0; i < wk->n; i++) wide_k[i] = g[i].w->rows;
    LORA_TRY(get_packed(wk, wk->n, wide_k, true, err));
    for (int64_t c = 0; c < n_chunks(wk->M); c++) {
        int64_t row = chunk_row(wk->M, c), rows = chunk_row(wk->M, c + 1) - row;
        LORA_TRY(backward_chunk(wk, lora_mat_rows(x, row, rows), g, row, lora_mat_rows(dx, row, rows), accumulate, err));
    }
    return LORA_OK;
}

static bool trains(const lora_adapter *a) { return a && (a->dA || a->dB); }

/* t_i = s_i drop_i(x) A_i^T again, for dB, where forward has not left it. */
static lora_status low_again(const work *wk, lora_mat x, lora_error *err) {
    work again = *wk;
    bool any = false;
    for (int i = 0; i < wk->n; i++) {
        low_rank *r = &again.low[i];
        if (r->a && (!r->a->dB || r->pass->low)) r->a = NULL;
        any |= r->a && !drops(r);
    }
    LORA_TRY(dropped_low(&again, x, err));
    if (!any) return LORA_OK;
    LORA_TRY(get_packed(&again, 1, &again.K, false, err));
    for (int64_t c = 0; c < n_chunks(wk->M); c++) {
        int64_t row = chunk_row(wk->M, c);
        lora_gemm_left left = pack(&again, again.path, lora_mat_rows(x, row, chunk_row(wk->M, c + 1) - row), again.wide[0]);
        LORA_TRY(plain_low(&again, &left, row, err));
    }
    return LORA_OK;
}

/* dA_i += u_i^T drop_i(x) of the adapters with dropout, one by one. */
static lora_status dropped_gradients(const work *wk, lora_mat x, lora_error *err) {
    for (int i = 0; i < wk->n; i++) {
        const low_rank *r = &wk->low[i];
        if (!drops(r) || !r->a->dA) continue;
        lora_dropout(wk->ctx, lora_mask_of(r->a, r->pass), x, wk->dropped, false);
        lora_low_rank_sum dA = sum_of(r->u, 0, wk->dropped, r->a->dA, false);
        LORA_TRY(lora_low_rank_sums(wk->ctx, wk->M, 1, &dA, err));
    }
    return LORA_OK;
}

/* dx += drop_i'(u_i A_i) of the adapters with dropout. */
static lora_status dropped_input_gradients(const work *wk, lora_mat dx, lora_error *err) {
    for (int i = 0; i < wk->n; i++) {
        const low_rank *r = &wk->low[i];
        if (!drops(r)) continue;
        lora_gemm_args g = {.m = wk->M,
                            .n = wk->K,
                            .k = r->a->rank,
                            .alpha = 1,
                            .a = r->u.data,
                            .a_row_stride = r->u.ld,
                            .a_col_stride = 1,
                            .b = &r->A,
                            .c = wk->dropped.data,
                            .ldc = wk->K};
        LORA_TRY(lora_gemm(wk->ctx, &g, err));
        lora_dropout(wk->ctx, lora_mask_of(r->a, r->pass), wk->dropped, dx, true);
    }
    return LORA_OK;
}

/* dW += dy^T x */
static lora_status weight_gradient(lora_ctx *ctx, lora_mat x, const lora_linear_gradient *g, lora_error *err) {
    int64_t began = lora_profile_begin(ctx), N = g->w->rows, K = x.cols;
    lora_weight in = lora_weight_f32(x.data, x.rows, K, x.ld);
    lora_gemm_args dW = {.m = N,
                         .n = K,
                         .k = x.rows,
                         .alpha = 1,
                         .a = g->dy.data,
                         .a_row_stride = 1,
                         .a_col_stride = g->dy.ld,
                         .b = &in,
                         .c = g->dW,
                         .ldc = K,
                         .accumulate = true};
    LORA_TRY(lora_gemm(ctx, &dW, err));
    lora_count_weight_gradient(ctx, began, x.rows, N, K);
    return LORA_OK;
}

lora_status lora_linear_packed_backward(lora_ctx *ctx, lora_mat x, int n, const lora_linear_gradient *g, lora_mat dx, bool accumulate_dx,
                                        lora_error *err) {
    work wk = {.ctx = ctx, .M = g->dy.rows, .K = g->w->cols, .n = n};
    bool any_trains = false, any_adapter = false;
    for (int i = 0; i < n; i++) {
        const lora_adapter *needed = dx.data || trains(g[i].adapter) ? g[i].adapter : NULL;
        set_adapter(&wk, i, needed, &g[i].pass, g[i].w->rows);
        any_trains |= trains(g[i].adapter);
        any_adapter |= needed != NULL;
    }
    LORA_TRY(get_products(&wk, err));
    int64_t began = lora_profile_begin(ctx);
    if (any_trains) LORA_TRY(low_again(&wk, x, err));
    wk.gradient_ns = lora_profile_begin(ctx) - began;
    if (dx.data || any_adapter) {
        LORA_TRY(backward_chunks(&wk, x, g, dx, accumulate_dx, err));
        lora_count_backward(ctx, began + wk.gradient_ns, wk.M, n, g, dx.data != NULL);
    }
    began = lora_profile_begin(ctx) - wk.gradient_ns;
    LORA_TRY(dropped_gradients(&wk, x, err));
    if (dx.data) LORA_TRY(dropped_input_gradients(&wk, dx, err));
    if (any_adapter) lora_count_adapter_gradient(ctx, began, wk.M, n, g);
    for (int i = 0; i < n; i++)
        if (g[i].dW) LORA_TRY(weight_gradient(ctx, x, g + i, err));
    return LORA_OK;
}
