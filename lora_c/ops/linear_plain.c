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

/* Few tokens: first x A^T of every adapter, then the rows of every W, each followed by its rows of B. */
static lora_status forward_few(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    lora_small_product products[LORA_SMALL_PRODUCTS];
    lora_weight A[LORA_LINEAR_LAYERS], B[LORA_LINEAR_LAYERS];
    int64_t M = x.rows, low = 0, n_leading = 0;
    for (int64_t i = 0; i < n; i++) low += layers[i].adapter ? lora_round_up(M * layers[i].adapter->rank, 16) : 0;
    void *memory;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_LINEAR, (size_t)low * sizeof(float), &memory, err));
    float *t[LORA_LINEAR_LAYERS] = {NULL}, *next = memory;
    for (int64_t i = 0; i < n; i++) {
        const lora_adapter *a = layers[i].adapter;
        if (!a) continue;
        t[i] = next;
        next += lora_round_up(M * a->rank, 16);
        A[i] = lora_weight_f32(a->A, a->rank, x.cols, x.cols);
        B[i] = lora_weight_f32(a->B, layers[i].w->rows, a->rank, a->rank);
        set_product(&products[n_leading].args, x, &A[i], 1, t[i], a->rank);
        products[n_leading++].has_update = false;
    }
    for (int64_t i = 0; i < n; i++) {
        lora_small_product *p = products + n_leading + i;
        const lora_adapter *a = layers[i].adapter;
        set_output(&p->args, x, layers + i);
        p->has_update = a;
        if (!a) continue;
        set_product(&p->update, lora_mat_f32(t[i], M, a->rank, a->rank), &B[i], a->scale, layers[i].y.data, layers[i].y.ld);
        p->update.accumulate = true;
    }
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_gemm_small(ctx, products, n_leading + n, n_leading, err));
    lora_count_forward(ctx, began, M, n, layers);
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
