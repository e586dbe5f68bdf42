/* DoRA on top of the linear layer with its plain adapter: z = W d + s B A d is what that computes, and DoRA scales its
 * columns by g = magnitude / norm. */
#include "lora_c/ops/dora.h"

#include <math.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/linear.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/dropout.h"
#include "lora_c/ops/weight.h"

enum { NORM_ROWS = 8, TOKEN_ROWS = 16, SUM_COLUMNS = 64 };

/* The same adapter as plain LoRA without dropout: its input is dropped here already. */
static lora_adapter plain(const lora_adapter *a) {
    lora_adapter p = *a;
    p.magnitude = p.norm = NULL;
    p.dmagnitude = NULL;
    p.dropout = 0;
    return p;
}

/* A row of zeros has no direction to scale: it stays zero. */
static float gain(const lora_adapter *a, int64_t n) { return a->norm[n] > 0 ? a->magnitude[n] / a->norm[n] : 0.0f; }

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

lora_status lora_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *a, float *norm, lora_error *err) {
    LORA_CHECK(a->rank > 0 && a->A && a->B, err, LORA_EINVAL, "adapter: expected A, B and r > 0, got r %lld", (long long)a->rank);
    void *rows;
    size_t bytes = (size_t)lora_pool_threads(ctx->engine->pool) * (size_t)w->cols * sizeof(float);
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_DORA, bytes, &rows, err));
    norm_job job = {&ctx->engine->kernels, w, a, rows, norm};
    lora_parallel_for(ctx->engine->pool, lora_div_up(w->rows, NORM_ROWS), norm_task, &job);
    return LORA_OK;
}

/* --- elementwise passes over (M, C) --- */

typedef struct rows_job {
    int64_t M, C, ld_in, ld_out;
    const lora_adapter *a;
    const float *in, *minus, *bias;
    float *out;
    bool accumulate;
} rows_job;

static void scale_task(void *arg, int64_t task, int worker) {
    (void)worker;
    rows_job *j = arg;
    int64_t end = lora_min_i64((task + 1) * TOKEN_ROWS, j->M);
    for (int64_t m = task * TOKEN_ROWS; m < end; m++)
        for (int64_t n = 0; n < j->C; n++) {
            float value = gain(j->a, n) * j->in[m * j->ld_in + n] + (j->bias ? j->bias[n] : 0.0f);
            float *out = j->out + m * j->ld_out + n;
            *out = j->accumulate ? *out + value : value;
        }
}

/* out (+)= g * in + bias, by columns; in may be out */
static void scale_columns(lora_ctx *ctx, int64_t M, int64_t N, const lora_adapter *a, const float *in, int64_t ld_in, const float *bias,
                          float *out, int64_t ld_out, bool accumulate) {
    rows_job job = {.M = M, .C = N, .ld_in = ld_in, .ld_out = ld_out, .a = a, .in = in, .bias = bias, .out = out, .accumulate = accumulate};
    lora_parallel_for(ctx->engine->pool, lora_div_up(M, TOKEN_ROWS), scale_task, &job);
}

static void combine_task(void *arg, int64_t task, int worker) {
    (void)worker;
    rows_job *j = arg;
    int64_t end = lora_min_i64((task + 1) * TOKEN_ROWS, j->M);
    for (int64_t m = task * TOKEN_ROWS; m < end; m++)
        for (int64_t k = 0; k < j->C; k++) {
            float value = j->in[m * j->ld_in + k] - (j->minus ? j->minus[m * j->C + k] : 0.0f), *out = j->out + m * j->ld_out + k;
            *out = j->accumulate ? *out + value : value;
        }
}

/* out (+)= in - minus; minus (M, C) contiguous or NULL; in may be out */
static void combine(lora_ctx *ctx, int64_t M, int64_t C, const float *in, int64_t ld_in, const float *minus, float *out, int64_t ld_out,
                    bool accumulate) {
    rows_job job = {.M = M, .C = C, .ld_in = ld_in, .ld_out = ld_out, .in = in, .minus = minus, .out = out, .accumulate = accumulate};
    lora_parallel_for(ctx->engine->pool, lora_div_up(M, TOKEN_ROWS), combine_task, &job);
}

typedef struct magnitude_job {
    int64_t M, N, lddy;
    const float *dy, *z;
    const lora_adapter *a;
} magnitude_job;

static void magnitude_task(void *arg, int64_t task, int worker) {
    (void)worker;
    magnitude_job *j = arg;
    int64_t begin = task * SUM_COLUMNS, count = lora_min_i64(SUM_COLUMNS, j->N - begin);
    double sum[SUM_COLUMNS] = {0};
    for (int64_t m = 0; m < j->M; m++)
        for (int64_t n = 0; n < count; n++) sum[n] += (double)j->dy[m * j->lddy + begin + n] * (double)j->z[m * j->N + begin + n];
    for (int64_t n = 0; n < count; n++)
        if (j->a->norm[begin + n] > 0) j->a->dmagnitude[begin + n] += (float)(sum[n] / (double)j->a->norm[begin + n]);
}

/* --- passes --- */

typedef struct workspace {
    float *z, *dz;      /* (M, N) */
    float *kept, *lost; /* (M, K): d = drop(x) and x - d; with dropout only */
    float *t0, *t1;     /* (M, K): dy W and dz (W + s B A); with dropout only */
} workspace;

static lora_status get_workspace(lora_ctx *ctx, int64_t M, int64_t N, int64_t K, bool dropped, bool backward, workspace *ws,
                                 lora_error *err) {
    int64_t out = lora_round_up(M * N, 16), in = dropped ? lora_round_up(M * K, 16) : 0;
    void *p;
    size_t floats = (size_t)((backward ? 2 : 1) * out + (backward ? 4 : 2) * in);
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_DORA, floats * sizeof(float), &p, err));
    ws->z = p;
    ws->kept = ws->z + out;
    ws->lost = ws->kept + in;
    ws->t0 = ws->lost + in;
    ws->t1 = ws->t0 + in;
    ws->dz = ws->t1 + in;
    return LORA_OK;
}

static void split_input(lora_ctx *ctx, int64_t M, int64_t K, const lora_adapter *a, const float *x, int64_t ldx, workspace *ws) {
    lora_dropout(ctx, a, M, K, x, ldx, ws->kept, K, false);
    combine(ctx, M, K, x, ldx, ws->kept, ws->lost, K, false);
}

lora_status lora_dora_forward(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, const lora_weight *w, const float *bias,
                              const lora_adapter *a, float *y, int64_t ldy, bool accumulate, lora_error *err) {
    int64_t N = w->rows, K = w->cols;
    lora_adapter p = plain(a);
    workspace ws;
    LORA_TRY(get_workspace(ctx, M, N, K, a->dropout > 0, false, &ws, err));
    if (a->dropout > 0) { /* W x + (g - 1) W d + g s B A d = W (x - d) + g z */
        split_input(ctx, M, K, a, x, ldx, &ws);
        LORA_TRY(lora_linear_forward(ctx, M, ws.lost, K, w, bias, NULL, y, ldy, accumulate, err));
        x = ws.kept;
        ldx = K;
        accumulate = true;
        bias = NULL;
    }
    float *z = accumulate ? ws.z : y;
    int64_t ldz = accumulate ? N : ldy;
    LORA_TRY(lora_linear_forward(ctx, M, x, ldx, w, NULL, &p, z, ldz, false, err));
    scale_columns(ctx, M, N, a, z, ldz, bias, y, ldy, accumulate);
    return LORA_OK;
}

/* dx (+)= dy W + drop'(dz (W + s B A) - dy W), and what else the two parts of y carry */
static lora_status backward_dropped(lora_ctx *ctx, int64_t M, const float *dy, int64_t lddy, const lora_weight *w, const lora_adapter *a,
                                    const lora_adapter *p, const workspace *ws, float *dx, int64_t lddx, bool accumulate_dx, float *dW,
                                    lora_error *err) {
    int64_t N = w->rows, K = w->cols;
    LORA_TRY(lora_linear_backward(ctx, M, dy, lddy, ws->lost, K, w, NULL, dx ? ws->t0 : NULL, K, false, dW, NULL, err));
    LORA_TRY(lora_linear_backward(ctx, M, ws->dz, N, ws->kept, K, w, p, dx ? ws->t1 : NULL, K, false, dW, NULL, err));
    if (!dx) return LORA_OK;
    combine(ctx, M, K, ws->t1, K, ws->t0, ws->t1, K, false);
    combine(ctx, M, K, ws->t0, K, NULL, dx, lddx, accumulate_dx);
    lora_dropout(ctx, a, M, K, ws->t1, K, dx, lddx, true);
    return LORA_OK;
}

lora_status lora_dora_backward(lora_ctx *ctx, int64_t M, const float *dy, int64_t lddy, const float *x, int64_t ldx, const lora_weight *w,
                               const lora_adapter *a, float *dx, int64_t lddx, bool accumulate_dx, float *dW, float *dbias,
                               lora_error *err) {
    int64_t N = w->rows, K = w->cols;
    bool dropped = a->dropout > 0;
    lora_adapter p = plain(a);
    workspace ws;
    LORA_TRY(get_workspace(ctx, M, N, K, dropped, true, &ws, err));
    if (dropped && x) split_input(ctx, M, K, a, x, ldx, &ws);
    if (a->dmagnitude) {
        LORA_TRY(lora_linear_forward(ctx, M, dropped ? ws.kept : x, dropped ? K : ldx, w, NULL, &p, ws.z, N, false, err));
        magnitude_job job = {M, N, lddy, dy, ws.z, a};
        lora_parallel_for(ctx->engine->pool, lora_div_up(N, SUM_COLUMNS), magnitude_task, &job);
    }
    if (dbias) LORA_TRY(lora_linear_backward(ctx, M, dy, lddy, NULL, 0, w, NULL, NULL, 0, false, NULL, dbias, err));
    scale_columns(ctx, M, N, a, dy, lddy, NULL, ws.dz, N, false);
    if (dropped) return backward_dropped(ctx, M, dy, lddy, w, a, &p, &ws, dx, lddx, accumulate_dx, dW, err);
    return lora_linear_backward(ctx, M, ws.dz, N, x, ldx, w, &p, dx, lddx, accumulate_dx, dW, NULL, err);
}

/* --- merge --- */

typedef struct merge_job {
    int64_t N, K;
    const lora_adapter *a;
    float *rows;
} merge_job;

static void merge_task(void *arg, int64_t n, int worker) {
    (void)worker;
    merge_job *j = arg;
    float g = gain(j->a, n), *row = j->rows + n * j->K;
    for (int64_t k = 0; k < j->K; k++) row[k] *= g;
}

void lora_dora_scale_rows(lora_ctx *ctx, int64_t N, int64_t K, const lora_adapter *a, float *rows) {
    merge_job job = {N, K, a, rows};
    lora_parallel_for(ctx->engine->pool, N, merge_task, &job);
}
