/* The update goes through the low rank: T = drop(x) A^T first, never B A as a matrix. */
#include "lora_c/ops/linear_plain.h"

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm_small.h"
#include "lora_c/ops/linear_costs.h"
#include "lora_c/ops/linear_packed.h"
#include "lora_c/ops/profile.h"

enum { SUM_COLUMNS = 256 };

/* --- forward --- */

/* c[M,N] = alpha x W^T. Written in place: decoding makes a few of these for every matrix and token. */
static void set_product(lora_gemm_args *g, lora_mat x, const lora_weight *w, float alpha, float *c, int64_t ldc) {
    *g = (lora_gemm_args){.m = x.rows,
                          .n = w->rows,
                          .k = w->cols,
                          .alpha = alpha,
                          .a = x.data,
                          .a_row_stride = x.ld,
                          .a_col_stride = 1,
                          .b = w,
                          .b_transposed = true,
                          .c = c,
                          .ldc = ldc};
}

/* x W^T + bias */
static void set_output(lora_gemm_args *g, lora_mat x, const lora_linear_layer *l) {
    set_product(g, x, l->w, 1, l->y.data, l->y.ld);
    g->accumulate = l->accumulate;
    g->bias = l->bias;
}

/* The products of a call with few tokens. */
typedef struct few {
    lora_small_product products[LORA_SMALL_PRODUCTS];
    lora_gemm_args updates[LORA_SMALL_UPDATES];
    lora_weight A[LORA_SMALL_UPDATES], B[LORA_SMALL_UPDATES];
    int64_t n_updates;
} few;

/* Which rows of x have which adapter: all that of the layer, held by whole, or each group its own. */
static int64_t groups_of(const lora_linear_layer *l, int64_t M, lora_adapter_rows *whole, const lora_adapter_rows **groups) {
    *whole = (lora_adapter_rows){.adapter = l->adapter, .rows = M};
    *groups = l->n_groups ? l->groups : whole;
    return l->n_groups ? l->n_groups : l->adapter != NULL;
}

static int64_t low_floats(const lora_adapter_rows *g) { return lora_round_up(g->rows * g->adapter->rank, 16); }

/* t = x_g A^T of a group of rows, and s t B^T into those of y. */
static void add_update(few *f, lora_mat x, const lora_linear_layer *l, const lora_adapter_rows *g, float *t) {
    const lora_adapter *a = g->adapter;
    lora_weight *A = &f->A[f->n_updates], *B = &f->B[f->n_updates];
    lora_small_product *leading = &f->products[f->n_updates];
    lora_gemm_args *update = &f->updates[f->n_updates++];
    *A = lora_weight_f32(a->A, a->rank, x.cols, x.cols);
    *B = lora_weight_f32(a->B, l->w->rows, a->rank, a->rank);
    set_product(&leading->args, lora_mat_rows(x, g->first, g->rows), A, 1, t, a->rank);
    leading->base = false;
    leading->n_updates = 0;
    set_product(update, lora_mat_f32(t, g->rows, a->rank, a->rank), B, a->scale, lora_mat_rows(l->y, g->first, g->rows).data, l->y.ld);
    update->accumulate = true;
}

/* Few tokens: first x A^T of every adapter, then the rows of every W, each followed by its rows of B. */
static lora_status forward_few(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    few f;
    lora_adapter_rows whole[LORA_LINEAR_LAYERS];
    const lora_adapter_rows *groups[LORA_LINEAR_LAYERS];
    int64_t n_groups[LORA_LINEAR_LAYERS], low = 0;
    for (int64_t i = 0; i < n; i++) {
        n_groups[i] = groups_of(layers + i, x.rows, &whole[i], &groups[i]);
        for (int64_t g = 0; g < n_groups[i]; g++) low += low_floats(groups[i] + g);
    }
    void *memory;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_LINEAR, (size_t)low * sizeof(float), &memory, err));
    float *t = memory;
    f.n_updates = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t g = 0; g < n_groups[i]; t += low_floats(groups[i] + g), g++) add_update(&f, x, layers + i, groups[i] + g, t);
    const lora_gemm_args *updates = f.updates;
    for (int64_t i = 0; i < n; i++) {
        lora_small_product *p = &f.products[f.n_updates + i];
        set_output(&p->args, x, layers + i);
        p->base = true;
        p->updates = updates;
        p->n_updates = n_groups[i];
        updates += n_groups[i];
    }
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_gemm_small(ctx, f.products, f.n_updates + n, f.n_updates, err));
    lora_count_forward(ctx, began, x.rows, n, layers);
    return LORA_OK;
}

static int64_t count_few(lora_mat x, int64_t n, const lora_linear_layer *layers) {
    int64_t few = 0;
    for (int64_t i = 0; i < n; i++) {
        lora_gemm_args g;
        set_output(&g, x, layers + i);
        few += lora_gemm_is_small(&g) && !(layers[i].adapter && layers[i].pass.dropout > 0);
    }
    return few;
}

lora_status lora_linear_plain_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    int64_t few = count_few(x, n, layers);
    if (few == n) return forward_few(ctx, x, n, layers, err);
    if (few == 0) {
        int64_t began = lora_profile_begin(ctx);
        LORA_TRY(lora_linear_packed_forward(ctx, x, (int)n, layers, err));
        lora_count_forward(ctx, began, x.rows, n, layers);
        return LORA_OK;
    }
    /* layers that alone take different ways, whose bits differ, do not share one */
    for (int64_t i = 0; i < n; i++) LORA_TRY(lora_linear_plain_forward(ctx, x, 1, layers + i, err));
    return LORA_OK;
}

/* --- backward --- */

typedef struct column_sum_job {
    lora_mat dy;
    float *sum;
} column_sum_job;

static void column_sum_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const column_sum_job *j = arg;
    int64_t begin = task * SUM_COLUMNS, end = lora_min_i64(begin + SUM_COLUMNS, j->dy.cols);
    for (int64_t m = 0; m < j->dy.rows; m++) {
        const float *dy = (const float *)j->dy.data + m * j->dy.ld;
        for (int64_t n = begin; n < end; n++) j->sum[n] += dy[n];
    }
}

lora_status lora_linear_plain_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                       bool accumulate_dx, lora_error *err) {
    for (int64_t i = 0; i < n; i++) {
        if (!gradients[i].dbias) continue;
        column_sum_job job = {.dy = gradients[i].dy, .sum = gradients[i].dbias};
        lora_parallel_for(ctx->engine->pool, lora_div_up(job.dy.cols, SUM_COLUMNS), column_sum_task, &job);
    }
    return lora_linear_packed_backward(ctx, x, (int)n, gradients, dx, accumulate_dx, err);
}
