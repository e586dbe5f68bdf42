/* LoRA's linear layer. The update goes through the low rank: T = drop(x) A^T first, never B A as a matrix. */
#include "lora_c/linear.h"

#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/dora.h"
#include "lora_c/ops/dropout.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/gemm_small.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/weight.h"

enum { SUM_COLUMNS = 256 };

/* Scratch of one call: low-rank products and, with dropout, the dropped input or its gradient. */
typedef struct workspace {
    float *t;       /* (M, R): drop(x) A^T */
    float *u;       /* (M, R): dy B */
    float *dropped; /* (M, K) */
} workspace;

static lora_weight dense(const float *data, int64_t rows, int64_t cols) {
    return (lora_weight){.kind = LORA_WEIGHT_F32, .rows = rows, .cols = cols, .ld = cols, .data = data};
}

static lora_weight strided(const float *data, int64_t rows, int64_t cols, int64_t ld) {
    return (lora_weight){.kind = LORA_WEIGHT_F32, .rows = rows, .cols = cols, .ld = ld, .data = data};
}

/* x W^T + bias */
static lora_gemm_args product_of(int64_t M, const float *x, int64_t ldx, const lora_linear_layer *l) {
    return (lora_gemm_args){M, l->w->rows, l->w->cols, 1, x, ldx, 1, l->w, true, l->y, l->ldy, l->accumulate, l->bias};
}

/* c[m,n] (+)= alpha * a[m,k] * op(b) */
static lora_status product(lora_ctx *ctx, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const lora_weight *b,
                           bool b_transposed, float *c, int64_t ldc, bool accumulate, lora_error *err) {
    lora_gemm_args g = {m, n, k, alpha, a, lda, 1, b, b_transposed, c, ldc, accumulate, NULL};
    return lora_gemm(ctx, &g, err);
}

/* c[m,n] += alpha * a[k,m]^T * b[k,n] */
static lora_status product_tn(lora_ctx *ctx, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b,
                              int64_t ldb, float *c, int64_t ldc, lora_error *err) {
    lora_weight w = strided(b, k, n, ldb);
    lora_gemm_args g = {m, n, k, alpha, a, 1, lda, &w, false, c, ldc, true, NULL};
    return lora_gemm(ctx, &g, err);
}

/* --- costs: operands once each, results twice where they are added to --- */

static void count_base(lora_ctx *ctx, lora_op op, int64_t began, int64_t M, const lora_weight *w) {
    double m = (double)M, n = (double)w->rows, k = (double)w->cols;
    lora_profile_end(ctx, op, began, 2 * m * n * k, lora_profile_weight_bytes(w) + 4 * m * (n + k));
}

static void count_weight_gradient(lora_ctx *ctx, int64_t began, int64_t M, int64_t N, int64_t K) {
    double m = (double)M, n = (double)N, k = (double)K;
    lora_profile_end(ctx, LORA_OP_WEIGHT_GRADIENT, began, 2 * m * n * k, 4 * (m * (n + k) + 2 * n * k));
}

static void count_adapter_forward(lora_ctx *ctx, int64_t began, int64_t M, int64_t N, int64_t K, const lora_adapter *a) {
    double m = (double)M, n = (double)N, k = (double)K, r = (double)a->rank;
    lora_profile_end(ctx, LORA_OP_ADAPTER_FORWARD, began, 2 * m * r * (k + n), 4 * (m * (k + 2 * n) + r * (k + n)));
}

static void count_adapter_backward(lora_ctx *ctx, int64_t began, int64_t M, int64_t N, int64_t K, const lora_adapter *a, bool dx) {
    double m = (double)M, n = (double)N, k = (double)K, r = (double)a->rank;
    double products = n + (dx ? k : 0) + (a->dA ? k : 0) + (a->dB ? k + n : 0);
    lora_profile_end(ctx, LORA_OP_ADAPTER_BACKWARD, began, 2 * m * r * products, 4 * (m * (n + k + (dx ? 2 * k : 0)) + 3 * r * (n + k)));
}

/* One region for several layers and their adapters: counted as one linear forward. */
static void count_few(lora_ctx *ctx, int64_t began, int64_t M, int64_t n, const lora_linear_layer *layers) {
    double flops = 0, bytes = 0, m = (double)M;
    for (int64_t i = 0; i < n; i++) {
        double rows = (double)layers[i].w->rows, k = (double)layers[i].w->cols;
        double r = layers[i].adapter ? (double)layers[i].adapter->rank : 0;
        flops += 2 * m * (rows * k + r * (rows + k));
        bytes += lora_profile_weight_bytes(layers[i].w) + 4 * m * (rows + k) + 4 * r * (rows + k);
    }
    lora_profile_end(ctx, LORA_OP_LINEAR_FORWARD, began, flops, bytes);
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

static lora_status get_workspace(lora_ctx *ctx, int64_t M, int64_t K, const lora_adapter *a, workspace *ws, lora_error *err) {
    int64_t low = lora_round_up(M * a->rank, 16);
    void *p;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_LINEAR, (size_t)(2 * low + (a->dropout > 0 ? M * K : 0)) * sizeof(float), &p, err));
    ws->t = p;
    ws->u = ws->t + low;
    ws->dropped = ws->u + low;
    return LORA_OK;
}

/* --- forward --- */

static lora_status add_update(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int64_t N, int64_t K, const lora_adapter *a, float *y,
                              int64_t ldy, lora_error *err) {
    workspace ws;
    lora_weight A = dense(a->A, a->rank, K), B = dense(a->B, N, a->rank);
    LORA_TRY(get_workspace(ctx, M, K, a, &ws, err));
    if (a->dropout > 0) {
        lora_dropout(ctx, a, M, K, x, ldx, ws.dropped, K, false);
        x = ws.dropped;
        ldx = K;
    }
    LORA_TRY(product(ctx, M, a->rank, K, 1, x, ldx, &A, true, ws.t, a->rank, false, err));
    return product(ctx, M, N, a->rank, a->scale, ws.t, a->rank, &B, true, y, ldy, true, err);
}

static lora_status forward_one(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, const lora_linear_layer *l, lora_error *err) {
    const lora_weight *w = l->w;
    const lora_adapter *a = l->adapter;
    if (a && a->magnitude) return lora_dora_forward(ctx, M, x, ldx, w, l->bias, a, l->y, l->ldy, l->accumulate, err);
    int64_t began = lora_profile_begin(ctx);
    lora_gemm_args g = product_of(M, x, ldx, l);
    LORA_TRY(lora_gemm(ctx, &g, err));
    count_base(ctx, LORA_OP_LINEAR_FORWARD, began, M, w);
    if (!a) return LORA_OK;
    began = lora_profile_begin(ctx);
    LORA_TRY(add_update(ctx, M, x, ldx, w->rows, w->cols, a, l->y, l->ldy, err));
    count_adapter_forward(ctx, began, M, w->rows, w->cols, a);
    return LORA_OK;
}

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
        A[i] = dense(a->A, a->rank, K);
        B[i] = dense(a->B, layers[i].w->rows, a->rank);
        products[n_leading++] = (lora_small_product){.args = {M, a->rank, K, 1, x, ldx, 1, &A[i], true, t[i], a->rank, false, NULL}};
    }
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        lora_small_product *p = products + n_leading + i;
        *p = (lora_small_product){.args = product_of(M, x, ldx, l), .has_update = l->adapter};
        if (!l->adapter) continue;
        int64_t R = l->adapter->rank;
        p->update = (lora_gemm_args){M, l->w->rows, R, l->adapter->scale, t[i], R, 1, &B[i], true, l->y, l->ldy, true, NULL};
    }
    int64_t began = lora_profile_begin(ctx);
    LORA_TRY(lora_gemm_small(ctx, products, n_leading + n, n_leading, err));
    count_few(ctx, began, M, n, layers);
    return LORA_OK;
}

static bool fits_few(int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_layer *layers) {
    for (int64_t i = 0; i < n; i++) {
        const lora_adapter *a = layers[i].adapter;
        lora_gemm_args g = product_of(M, x, ldx, layers + i);
        if (!lora_gemm_is_small(&g) || (a && (a->magnitude || a->dropout > 0))) return false;
    }
    return true;
}

lora_status lora_linear_forward_many(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_layer *layers,
                                     lora_error *err) {
    LORA_CHECK(n >= 1 && n <= LORA_LINEAR_LAYERS, err, LORA_EINVAL, "layers: expected 1 to %d, got %lld", LORA_LINEAR_LAYERS, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        const lora_linear_layer *l = layers + i;
        LORA_TRY(check_shapes(M, l->w, ldx, l->ldy, l->adapter, err));
        LORA_CHECK(l->w->cols == layers->w->cols, err, LORA_ESHAPE, "layers: expected the same K = %lld in all, got %lld",
                   (long long)layers->w->cols, (long long)l->w->cols);
        LORA_CHECK(!overlaps(l->y, span(M, l->ldy, l->w->rows), x, span(M, ldx, l->w->cols)), err, LORA_EINVAL,
                   "y: expected memory apart from x, got overlapping buffers");
    }
    if (fits_few(M, x, ldx, n, layers)) return forward_few(ctx, M, x, ldx, n, layers, err);
    for (int64_t i = 0; i < n; i++) LORA_TRY(forward_one(ctx, M, x, ldx, layers + i, err));
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

/* dA, dB, and the update's part of dx. */
static lora_status adapter_backward(lora_ctx *ctx, int64_t M, const float *dy, int64_t lddy, const float *x, int64_t ldx, int64_t N, int64_t K,
                                    const lora_adapter *a, float *dx, int64_t lddx, lora_error *err) {
    workspace ws;
    int64_t R = a->rank;
    lora_weight A = dense(a->A, R, K), B = dense(a->B, N, R);
    LORA_TRY(get_workspace(ctx, M, K, a, &ws, err));
    LORA_TRY(product(ctx, M, R, N, a->scale, dy, lddy, &B, false, ws.u, R, false, err));
    if (a->dA || a->dB) {
        const float *in = x;
        int64_t ld_in = ldx;
        if (a->dropout > 0) {
            lora_dropout(ctx, a, M, K, x, ldx, ws.dropped, K, false);
            in = ws.dropped;
            ld_in = K;
        }
        if (a->dA) LORA_TRY(product_tn(ctx, R, K, M, 1, ws.u, R, in, ld_in, a->dA, K, err));
        if (a->dB) {
            LORA_TRY(product(ctx, M, R, K, 1, in, ld_in, &A, true, ws.t, R, false, err));
            LORA_TRY(product_tn(ctx, N, R, M, a->scale, dy, lddy, ws.t, R, a->dB, R, err));
        }
    }
    if (!dx) return LORA_OK;
    if (a->dropout == 0) return product(ctx, M, K, R, 1, ws.u, R, &A, false, dx, lddx, true, err);
    LORA_TRY(product(ctx, M, K, R, 1, ws.u, R, &A, false, ws.dropped, K, false, err));
    lora_dropout(ctx, a, M, K, ws.dropped, K, dx, lddx, true);
    return LORA_OK;
}

lora_status lora_linear_backward(lora_ctx *ctx, int64_t M, const float *dy, int64_t lddy, const float *x, int64_t ldx, const lora_weight *w,
                                 const lora_adapter *a, float *dx, int64_t lddx, bool accumulate_dx, float *dW, float *dbias,
                                 lora_error *err) {
    int64_t N = w->rows, K = w->cols;
    LORA_TRY(check_shapes(M, w, x ? ldx : K, lddy, a, err));
    LORA_CHECK(x || (!dW && !(a && (a->dA || a->dB || a->dmagnitude))), err, LORA_EINVAL, "x: expected the forward input, got none");
    if (dx) {
        LORA_CHECK(lddx >= K, err, LORA_ESHAPE, "lddx: expected >= %lld, got %lld", (long long)K, (long long)lddx);
        LORA_CHECK(!overlaps(dx, span(M, lddx, K), x, span(M, ldx, K)) && !overlaps(dx, span(M, lddx, K), dy, span(M, lddy, N)), err,
                   LORA_EINVAL, "dx: expected memory apart from x and dy, got overlapping buffers");
    }
    if (a && a->magnitude) return lora_dora_backward(ctx, M, dy, lddy, x, ldx, w, a, dx, lddx, accumulate_dx, dW, dbias, err);
    int64_t began = lora_profile_begin(ctx);
    if (dx) {
        LORA_TRY(product(ctx, M, K, N, 1, dy, lddy, w, false, dx, lddx, accumulate_dx, err));
        count_base(ctx, LORA_OP_LINEAR_BACKWARD, began, M, w);
    }
    if (dW) {
        began = lora_profile_begin(ctx);
        LORA_TRY(product_tn(ctx, N, K, M, 1, dy, lddy, x, ldx, dW, K, err));
        count_weight_gradient(ctx, began, M, N, K);
    }
    if (dbias) {
        column_sum_job job = {M, N, lddy, dy, dbias};
        lora_parallel_for(ctx->pool, lora_div_up(N, SUM_COLUMNS), column_sum_task, &job);
    }
    if (!a) return LORA_OK;
    began = lora_profile_begin(ctx);
    LORA_TRY(adapter_backward(ctx, M, dy, lddy, x, ldx, N, K, a, dx, lddx, err));
    count_adapter_backward(ctx, began, M, N, K, a, dx != NULL);
    return LORA_OK;
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
    widen_job job = {&ctx->kernels, w, merged};
    lora_parallel_for(ctx->pool, N, widen_task, &job);
    if (!a) return LORA_OK;
    lora_weight A = dense(a->A, a->rank, K);
    LORA_TRY(product(ctx, N, K, a->rank, sign * a->scale, a->B, a->rank, &A, false, merged, K, true, err));
    if (a->magnitude) lora_dora_scale_rows(ctx, N, K, a, merged);
    return LORA_OK;
}
