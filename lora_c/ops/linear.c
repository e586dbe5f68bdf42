/* LoRA's linear layer. The update goes through the low rank: T = drop(x) A^T first, never B A as a matrix. */
#include "lora_c/linear.h"

#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/dora.h"
#include "lora_c/ops/dropout.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/gemm_small.h"
#include "lora_c/ops/linear_costs.h"
#include "lora_c/ops/linear_packed.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/weight.h"

enum { SUM_COLUMNS = 256 };

/* x W^T + bias */
static lora_gemm_args product_of(int64_t M, const float *x, int64_t ldx, const lora_linear_layer *l) {
    return (lora_gemm_args){M, l->w->rows, l->w->cols, 1, x, ldx, 1, l->w, true, l->y, l->ldy, l->accumulate, l->bias, false};
}

/* --- checks --- */

static bool overlaps(const void *a, int64_t a_floats, const void *b, int64_t b_floats) {
    const char *p = a, *q = b;
    return p && q && p < q + b_floats * 4 && q < p + a_floats * 4;
}

static int64_t span(int64_t rows, int64_t ld, int64_t cols) { return rows > 0 ? (rows - 1) * ld + cols : 0; }

static lora_status check_shapes(int64_t M, const lora_weight *w, int64_t ldx, int64_t ldy, const lora_adapter *a, lora_error *err) {
    LORA_CHECK(M > 0 && w->rows > 0 && w->cols > 0, err, LORA_ESHAPE, "x: expected (M, K) with M, K, N > 0, got (%lld, %lld), N %lld",
               (long long)M, (long long)w->cols, (long long)w->rows);
    LORA_CHECK(ldx >= w->cols, err, LORA_ESHAPE, "ldx: expected >= %lld, got %lld", (long long)w->cols, (long long)ldx);
    LORA_CHECK(ldy >= w->rows, err, LORA_ESHAPE, "ldy: expected >= %lld, got %lld", (long long)w->rows, (long long)ldy);
    if (!a) return LORA_OK;
    LORA_CHECK(a->rank > 0 && a->A && a->B, err, LORA_EINVAL, "adapter: expected A, B and r > 0, got r %lld", (long long)a->rank);
    LORA_CHECK(!a->magnitude || a->norm, err, LORA_EINVAL, "adapter: expected norm beside DoRA's magnitude, got NULL; call lora_dora_norm");
    LORA_CHECK(a->dropout >= 0 && a->dropout < 1, err, LORA_EINVAL, "lora_dropout: expected 0 <= p < 1, got %g", (double)a->dropout);
    return LORA_OK;
}

static lora_status check_many(int64_t n, const lora_weight *first, const lora_weight *w, lora_error *err) {
    LORA_CHECK(n >= 1 && n <= LORA_LINEAR_LAYERS, err, LORA_EINVAL, "layers: expected 1 to %d, got %lld", LORA_LINEAR_LAYERS, (long long)n);
    LORA_CHECK(w->cols == first->cols, err, LORA_ESHAPE, "layers: expected the same K = %lld in all, got %lld", (long long)first->cols,
               (long long)w->cols);
    return LORA_OK;
}

/* --- forward --- */

/* Few tokens: first x A^T of every adapter, then the rows of every W, each followed by its rows of B. */
static lora_status forward_few(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    lora_small_product products[LORA_SMALL_PRODUCTS];
    lora_weight A[LORA_LINEAR_LAYERS], B[LORA_LINEAR_LAYERS];
    int64_t low = 0, used = 0, n_leading = 0, K = layers->w->cols;
    for (int64_t i = 0; i < n; i++) low += layers[i].adapter ? lora_round_up(M * layers[i].adapter->rank, 16) : 0;
    void *memory;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_LINEAR, (size_t)low * sizeof(float), &memory, err));
    float *t[LORA_LINEAR_LAYERS] = {NULL};
    for (int64_t i = 0; i < n; i++) {
        const lora_adapter *a = layers[i].adapter;
        if (!a) continue;
        t[i] = (float *)memory + used;
        used += lora_round_up(M * a->rank, 16);
        A[i] = lora_weight_f32(a->A, a->rank, K, K);
        B[i] = lora_weight_f32(a->B, layers[i].w->rows, a->rank, a->rank);
        products[n_leading++] = (lora_small_product){.args = {M, a->rank, K, 1, x, ldx, 1, &A[i], true, t[i], a->rank, false, NULL, false}};
    }
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        lora_small_product *p = products + n_leading + i;
        *p = (lora_small_product){.args = product_of(M, x, ldx, l), .has_update = l->adapter};
        if (!l->adapter) continue;
        int64_t R = l->adapter->rank;
        p->update = (lora_gemm_args){M, l->w->rows, R, l->adapter->scale, t[i], R, 1, &B[i], true, l->y, l->ldy, true, NULL, false};
    }
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_gemm_small(ctx, products, n_leading + n, n_leading, err));
    lora_count_forward(ctx, began, M, n, layers);
    return LORA_OK;
}

static int64_t count_few(int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_layer *layers) {
    int64_t few = 0;
    for (int64_t i = 0; i < n; i++) {
        const lora_adapter *a = layers[i].adapter;
        lora_gemm_args g = product_of(M, x, ldx, layers + i);
        few += lora_gemm_is_small(&g) && !(a && (a->magnitude || a->dropout > 0));
    }
    return few;
}

static lora_status check_forward(int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    for (int64_t i = 0; i < n || i == 0; i++) {
        const lora_linear_layer *l = layers + i;
        LORA_TRY(check_many(n, layers->w, l->w, err));
        LORA_TRY(check_shapes(M, l->w, ldx, l->ldy, l->adapter, err));
        LORA_CHECK(!overlaps(l->y, span(M, l->ldy, l->w->rows), x, span(M, ldx, l->w->cols)), err, LORA_EINVAL,
                   "y: expected memory apart from x, got overlapping buffers");
    }
    return LORA_OK;
}

static lora_status forward_packed(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_layer *layers, lora_error *err) {
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_linear_packed_forward(ctx, M, x, ldx, (int)n, layers, err));
    lora_count_forward(ctx, began, M, n, layers);
    return LORA_OK;
}

static bool any_dora(int64_t n, const lora_linear_layer *layers) {
    for (int64_t i = 0; i < n; i++)
        if (layers[i].adapter && layers[i].adapter->magnitude) return true;
    return false;
}

lora_status lora_linear_forward_many(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_layer *layers,
                                     lora_error *err) {
    LORA_TRY(check_forward(M, x, ldx, n, layers, err));
    int64_t few = count_few(M, x, ldx, n, layers);
    if (few == n) return forward_few(ctx, M, x, ldx, n, layers, err);
    if (few == 0 && !any_dora(n, layers)) return forward_packed(ctx, M, x, ldx, n, layers, err);
    /* layers that alone take different ways, whose bits differ, do not share one */
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        if (l->adapter && l->adapter->magnitude)
            LORA_TRY(lora_dora_forward(ctx, M, x, ldx, l->w, l->bias, l->adapter, l->y, l->ldy, l->accumulate, err));
        else
            LORA_TRY(lora_linear_forward_many(ctx, M, x, ldx, 1, l, err));
    }
    return LORA_OK;
}

lora_status lora_linear_forward(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, const lora_weight *w, const float *bias,
                                const lora_adapter *a, float *y, int64_t ldy, bool accumulate, lora_error *err) {
    return lora_linear_forward_many(ctx, M, x, ldx, 1, &(lora_linear_layer){w, bias, a, y, ldy, accumulate}, err);
}

/* --- backward --- */

typedef struct column_sum_job {
    int64_t M, N, ld;
    const float *dy;
    float *sum;
} column_sum_job;

static void column_sum_task(void *arg, int64_t task, int worker) {
    (void)worker;
    column_sum_job *j = arg;
    int64_t begin = task * SUM_COLUMNS, end = lora_min_i64(begin + SUM_COLUMNS, j->N);
    for (int64_t m = 0; m < j->M; m++)
        for (int64_t n = begin; n < end; n++) j->sum[n] += j->dy[m * j->ld + n];
}

static lora_status check_backward(int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_gradient *gradients, const float *dx,
                                  int64_t lddx, lora_error *err) {
    for (int64_t i = 0; i < n || i == 0; i++) {
        const lora_linear_gradient *g = gradients + i;
        const lora_adapter *a = g->adapter;
        int64_t N = g->w->rows, K = g->w->cols;
        LORA_TRY(check_many(n, gradients->w, g->w, err));
        LORA_TRY(check_shapes(M, g->w, x ? ldx : K, g->lddy, a, err));
        LORA_CHECK(x || (!g->dW && !(a && (a->dA || a->dB || a->dmagnitude))), err, LORA_EINVAL, "x: expected the forward input, got none");
        if (!dx) continue;
        LORA_CHECK(lddx >= K, err, LORA_ESHAPE, "lddx: expected >= %lld, got %lld", (long long)K, (long long)lddx);
        LORA_CHECK(!overlaps(dx, span(M, lddx, K), x, span(M, ldx, K)) && !overlaps(dx, span(M, lddx, K), g->dy, span(M, g->lddy, N)), err,
                   LORA_EINVAL, "dx: expected memory apart from x and dy, got overlapping buffers");
    }
    return LORA_OK;
}

lora_status lora_linear_backward_many(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_gradient *gradients,
                                      float *dx, int64_t lddx, bool accumulate_dx, lora_error *err) {
    LORA_TRY(check_backward(M, x, ldx, n, gradients, dx, lddx, err));
    lora_linear_gradient plain[LORA_LINEAR_LAYERS];
    int n_plain = 0;
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_gradient *g = gradients + i;
        if (g->adapter && g->adapter->magnitude) {
            LORA_TRY(lora_dora_backward(ctx, M, g->dy, g->lddy, x, ldx, g->w, g->adapter, dx, lddx, accumulate_dx, g->dW, g->dbias, err));
            accumulate_dx = true;
            continue;
        }
        plain[n_plain++] = *g;
        if (!g->dbias) continue;
        column_sum_job job = {M, g->w->rows, g->lddy, g->dy, g->dbias};
        lora_parallel_for(ctx->engine->pool, lora_div_up(job.N, SUM_COLUMNS), column_sum_task, &job);
    }
    return n_plain ? lora_linear_packed_backward(ctx, M, x, ldx, n_plain, plain, dx, lddx, accumulate_dx, err) : LORA_OK;
}

lora_status lora_linear_backward(lora_ctx *ctx, int64_t M, const float *dy, int64_t lddy, const float *x, int64_t ldx, const lora_weight *w,
                                 const lora_adapter *a, float *dx, int64_t lddx, bool accumulate_dx, float *dW, float *dbias,
                                 lora_error *err) {
    lora_linear_gradient g = {dy, lddy, w, a, dW, dbias};
    return lora_linear_backward_many(ctx, M, x, ldx, 1, &g, dx, lddx, accumulate_dx, err);
}

/* --- merge --- */

typedef struct widen_job {
    const lora_kernels *kernels;
    const lora_weight *w;
    float *out;
} widen_job;

static void widen_task(void *arg, int64_t row, int worker) {
    (void)worker;
    const widen_job *job = arg;
    float *to = job->out + row * job->w->cols;
    const float *from = lora_weight_run(job->kernels, job->w, row, 0, job->w->cols, to);
    if (from != to) memcpy(to, from, (size_t)job->w->cols * sizeof *to);
}

lora_status lora_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *a, float sign, float *merged, lora_error *err) {
    int64_t N = w->rows, K = w->cols;
    LORA_TRY(check_shapes(1, w, K, N, a, err));
    LORA_CHECK(!a || !a->magnitude || sign == 1, err, LORA_EINVAL, "sign: expected 1 with DoRA, got %g; keep the base to undo it", (double)sign);
    widen_job job = {&ctx->engine->kernels, w, merged};
    lora_parallel_for(ctx->engine->pool, N, widen_task, &job);
    if (!a) return LORA_OK;
    lora_weight A = lora_weight_f32(a->A, a->rank, K, K);
    lora_gemm_args update = {N, K, a->rank, sign * a->scale, a->B, a->rank, 1, &A, false, merged, K, true, NULL, true};
    LORA_TRY(lora_gemm(ctx, &update, err));
    if (a->magnitude) lora_dora_scale_rows(ctx, N, K, a, merged);
    return LORA_OK;
}
