/* DoRA on top of the linear layer with its plain adapter: z = W d + s B A d is what that computes, and DoRA scales its
 * columns by g = magnitude / norm. */
#include "lora_c/ops/dora.h"

#include <math.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/dropout.h"
#include "lora_c/ops/linear_plain.h"
#include "lora_c/ops/rows.h"
#include "lora_c/ops/weight.h"

enum { NORM_ROWS = 8, TOKEN_ROWS = 16, SUM_COLUMNS = 64 };

/* The same adapter as plain LoRA; its input is dropped here already. */
static lora_adapter plain(const lora_adapter *a) {
    lora_adapter p = *a;
    p.magnitude = NULL;
    p.dmagnitude = NULL;
    return p;
}

/* What the columns of z are scaled by: magnitude / norm. */
typedef struct gains {
    const float *magnitude, *norm;
} gains;

/* A row of zeros has no direction to scale: it stays zero. */
static float gain(gains g, int64_t n) { return g.norm[n] > 0 ? g.magnitude[n] / g.norm[n] : 0.0f; }

/* --- norms --- */

typedef struct norm_job {
    const lora_kernels *kernels;
    const lora_weight *w;
    const lora_adapter *a;
    float *rows; /* one row of K floats per worker */
    float *norm;
} norm_job;

static void norm_task(void *arg, int64_t task, int worker) {
    norm_job *j = arg;
    int64_t K = j->w->cols, R = j->a->rank, end = lora_min_i64((task + 1) * NORM_ROWS, j->w->rows);
    float *row = j->rows + worker * K;
    for (int64_t n = task * NORM_ROWS; n < end; n++) {
        const float *base = lora_weight_run(j->kernels, j->w, n, 0, K, row);
        if (base != row) memcpy(row, base, (size_t)K * sizeof *row);
        for (int64_t r = 0; r < R; r++) j->kernels->rowwise.axpy(K, j->a->scale * j->a->B[n * R + r], j->a->A + r * K, row);
        j->norm[n] = (float)sqrt(j->kernels->rowwise.sum_of_squares(K, row));
    }
}

lora_status lora_cpu_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *a, float *norm, lora_error *err) {
    void *rows;
    size_t bytes = (size_t)lora_pool_threads(ctx->engine->pool) * (size_t)w->cols * sizeof(float);
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_DORA, bytes, &rows, err));
    norm_job job = {.kernels = &ctx->engine->kernels, .w = w, .a = a, .rows = rows, .norm = norm};
    lora_parallel_for(ctx->engine->pool, lora_div_up(w->rows, NORM_ROWS), norm_task, &job);
    return LORA_OK;
}

/* --- elementwise passes over (M, C) --- */

typedef struct rows_job {
    gains gains;
    lora_mat in, minus, out;
    const float *bias;
    bool accumulate;
} rows_job;

static void scale_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const rows_job *j = arg;
    int64_t end = lora_min_i64((task + 1) * TOKEN_ROWS, j->in.rows);
    for (int64_t m = task * TOKEN_ROWS; m < end; m++) {
        const float *in = (const float *)j->in.data + m * j->in.ld;
        float *out = (float *)j->out.data + m * j->out.ld;
        for (int64_t n = 0; n < j->in.cols; n++) {
            float value = gain(j->gains, n) * in[n] + (j->bias ? j->bias[n] : 0.0f);
            out[n] = j->accumulate ? out[n] + value : value;
        }
    }
}

/* out (+)= g * in + bias, by columns; in may be out */
static void scale_columns(lora_ctx *ctx, gains g, lora_mat in, const float *bias, lora_mat out, bool accumulate) {
    rows_job job = {.gains = g, .in = in, .bias = bias, .out = out, .accumulate = accumulate};
    lora_parallel_for(ctx->engine->pool, lora_div_up(in.rows, TOKEN_ROWS), scale_task, &job);
}

static void combine_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const rows_job *j = arg;
    int64_t end = lora_min_i64((task + 1) * TOKEN_ROWS, j->in.rows);
    for (int64_t m = task * TOKEN_ROWS; m < end; m++) {
        const float *in = (const float *)j->in.data + m * j->in.ld;
        const float *minus = j->minus.data ? (const float *)j->minus.data + m * j->minus.ld : NULL;
        float *out = (float *)j->out.data + m * j->out.ld;
        for (int64_t k = 0; k < j->in.cols; k++) {
            float value = in[k] - (minus ? minus[k] : 0.0f);
            out[k] = j->accumulate ? out[k] + value : value;
        }
    }
}

/* out (+)= in - minus, which may be absent; in may be out */
static void combine(lora_ctx *ctx, lora_mat in, lora_mat minus, lora_mat out, bool accumulate) {
    rows_job job = {.in = in, .minus = minus, .out = out, .accumulate = accumulate};
    lora_parallel_for(ctx->engine->pool, lora_div_up(in.rows, TOKEN_ROWS), combine_task, &job);
}

typedef struct magnitude_job {
    lora_mat dy, z;
    const float *norm;
    float *dmagnitude;
} magnitude_job;

static void magnitude_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const magnitude_job *j = arg;
    int64_t begin = task * SUM_COLUMNS, count = lora_min_i64(SUM_COLUMNS, j->dy.cols - begin);
    double sum[SUM_COLUMNS] = {0};
    for (int64_t m = 0; m < j->dy.rows; m++) {
        const float *dy = (const float *)j->dy.data + m * j->dy.ld + begin, *z = (const float *)j->z.data + m * j->z.ld + begin;
        for (int64_t n = 0; n < count; n++) sum[n] += (double)dy[n] * (double)z[n];
    }
    for (int64_t n = 0; n < count; n++)
        if (j->norm[begin + n] > 0) j->dmagnitude[begin + n] += (float)(sum[n] / (double)j->norm[begin + n]);
}

/* --- passes --- */

typedef struct workspace {
    lora_mat z, dz;      /* (M, N) */
    lora_mat kept, lost; /* (M, K): d = drop(x) and x - d; with dropout only */
    lora_mat t0, t1;     /* (M, K): dy W and dz (W + s B A); with dropout only */
} workspace;

static lora_status get_workspace(lora_ctx *ctx, int64_t M, const lora_weight *w, bool dropped, bool backward, workspace *ws,
                                 lora_error *err) {
    int64_t N = w->rows, K = w->cols, out = lora_round_up(M * N, 16), in = dropped ? lora_round_up(M * K, 16) : 0;
    void *p;
    size_t floats = (size_t)((backward ? 2 : 1) * out + (backward ? 4 : 2) * in);
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_DORA, floats * sizeof(float), &p, err));
    float *next = p;
    ws->z = lora_mat_f32(next, M, N, N);
    ws->kept = lora_mat_f32(next += out, M, K, K);
    ws->lost = lora_mat_f32(next += in, M, K, K);
    ws->t0 = lora_mat_f32(next += in, M, K, K);
    ws->t1 = lora_mat_f32(next += in, M, K, K);
    ws->dz = lora_mat_f32(next += in, M, N, N);
    return LORA_OK;
}

static void split_input(lora_ctx *ctx, lora_mask mask, lora_mat x, workspace *ws) {
    lora_dropout(ctx, mask, x, ws->kept, false);
    combine(ctx, x, ws->kept, ws->lost, false);
}

lora_status lora_dora_forward(lora_ctx *ctx, lora_mat x, const lora_linear_layer *l, lora_error *err) {
    const lora_adapter *a = l->adapter;
    const float *bias = l->bias;
    bool dropped = l->pass.dropout > 0, accumulate = l->accumulate;
    lora_adapter p = plain(a);
    workspace ws;
    LORA_TRY(get_workspace(ctx, x.rows, l->w, dropped, false, &ws, err));
    if (dropped) { /* W x + (g - 1) W d + g s B A d = W (x - d) + g z */
        split_input(ctx, lora_mask_of(a, &l->pass), x, &ws);
        lora_linear_layer lost = {.w = l->w, .bias = bias, .y = l->y, .accumulate = accumulate};
        LORA_TRY(lora_linear_plain_forward(ctx, ws.lost, 1, &lost, err));
        x = ws.kept;
        accumulate = true;
        bias = NULL;
    }
    lora_linear_layer z = {.w = l->w, .adapter = &p, .y = accumulate ? ws.z : l->y};
    LORA_TRY(lora_linear_plain_forward(ctx, x, 1, &z, err));
    scale_columns(ctx, (gains){.magnitude = a->magnitude, .norm = l->pass.norm}, z.y, bias, l->y, accumulate);
    return LORA_OK;
}

/* dmagnitude += sum over M of dy · z / norm, z = W d + s B A d formed again */
static lora_status magnitude_gradient(lora_ctx *ctx, lora_mat d, const lora_linear_gradient *g, const lora_adapter *p, lora_mat z,
                                      lora_error *err) {
    lora_linear_layer again = {.w = g->w, .adapter = p, .y = z};
    LORA_TRY(lora_linear_plain_forward(ctx, d, 1, &again, err));
    magnitude_job job = {.dy = g->dy, .z = z, .norm = g->pass.norm, .dmagnitude = g->adapter->dmagnitude};
    lora_parallel_for(ctx->engine->pool, lora_div_up(z.cols, SUM_COLUMNS), magnitude_task, &job);
    return LORA_OK;
}

/* dx (+)= dy W + drop'(dz (W + s B A) - dy W), and what else the two parts of y carry */
static lora_status backward_dropped(lora_ctx *ctx, const lora_linear_gradient *g, const lora_linear_gradient *dz, const workspace *ws,
                                    lora_mat dx, bool accumulate_dx, lora_error *err) {
    lora_linear_gradient lost = {.dy = g->dy, .w = g->w, .dW = g->dW};
    LORA_TRY(lora_linear_plain_backward(ctx, ws->lost, 1, &lost, dx.data ? ws->t0 : lora_mat_none(), false, err));
    LORA_TRY(lora_linear_plain_backward(ctx, ws->kept, 1, dz, dx.data ? ws->t1 : lora_mat_none(), false, err));
    if (!dx.data) return LORA_OK;
    combine(ctx, ws->t1, ws->t0, ws->t1, false);
    combine(ctx, ws->t0, lora_mat_none(), dx, accumulate_dx);
    lora_dropout(ctx, lora_mask_of(g->adapter, &g->pass), ws->t1, dx, true);
    return LORA_OK;
}

lora_status lora_dora_backward(lora_ctx *ctx, lora_mat x, const lora_linear_gradient *g, lora_mat dx, bool accumulate_dx, lora_error *err) {
    const lora_adapter *a = g->adapter;
    bool dropped = g->pass.dropout > 0;
    lora_adapter p = plain(a);
    workspace ws;
    LORA_TRY(get_workspace(ctx, g->dy.rows, g->w, dropped, true, &ws, err));
    if (dropped && x.data) split_input(ctx, lora_mask_of(a, &g->pass), x, &ws);
    if (a->dmagnitude) LORA_TRY(magnitude_gradient(ctx, dropped ? ws.kept : x, g, &p, ws.z, err));
    if (g->dbias) {
        lora_linear_gradient sums = {.dy = g->dy, .w = g->w, .dbias = g->dbias};
        LORA_TRY(lora_linear_plain_backward(ctx, lora_mat_none(), 1, &sums, lora_mat_none(), false, err));
    }
    scale_columns(ctx, (gains){.magnitude = a->magnitude, .norm = g->pass.norm}, g->dy, NULL, ws.dz, false);
    lora_linear_gradient dz = {.dy = ws.dz, .w = g->w, .adapter = &p, .dW = g->dW};
    if (dropped) return backward_dropped(ctx, g, &dz, &ws, dx, accumulate_dx, err);
    return lora_linear_plain_backward(ctx, x, 1, &dz, dx, accumulate_dx, err);
}

/* --- merge --- */

typedef struct merge_job {
    gains gains;
    lora_mat rows;
} merge_job;

static void merge_task(void *arg, int64_t n, int worker) {
    (void)worker;
    const merge_job *j = arg;
    float g = gain(j->gains, n), *row = (float *)j->rows.data + n * j->rows.ld;
    for (int64_t k = 0; k < j->rows.cols; k++) row[k] *= g;
}

void lora_dora_scale_rows(lora_ctx *ctx, const lora_adapter *a, const float *norm, lora_mat rows) {
    merge_job job = {.gains = {.magnitude = a->magnitude, .norm = norm}, .rows = rows};
    lora_parallel_for(ctx->engine->pool, rows.rows, merge_task, &job);
}
