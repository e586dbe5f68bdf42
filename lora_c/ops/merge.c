/* An adapter into its matrix, and the gradient of that matrix back into the adapter. */
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/linear.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/dora.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/rows.h"
#include "lora_c/ops/weight.h"

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

static lora_status check_adapter(const lora_adapter *a, lora_error *err) {
    LORA_CHECK(a->rank > 0 && a->A && a->B, err, LORA_EINVAL, "adapter: expected A, B and r > 0, got r %lld", (long long)a->rank);
    return LORA_OK;
}

static lora_status check_linear_merge(const lora_weight *w, const lora_adapter *a, const float *norm, float sign, const float *merged,
                               lora_error *err) {
    LORA_TRY(lora_rows_check_weight("w", w, err));
    LORA_CHECK(merged, err, LORA_EINVAL, "merged: expected a pointer, got NULL");
    if (!a) return LORA_OK;
    LORA_TRY(check_adapter(a, err));
    LORA_CHECK(!a->magnitude || norm, err, LORA_EINVAL, "adapter: expected norm beside DoRA's magnitude, got NULL; call lora_dora_norm");
    LORA_CHECK(!a->magnitude || sign == 1, err, LORA_EINVAL, "sign: expected 1 with DoRA, got %g; keep the base to undo it", (double)sign);
    return LORA_OK;
}

lora_status lora_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *a, const float *norm, float sign, float *merged,
                              lora_error *err) {
    LORA_TRY(check_linear_merge(w, a, norm, sign, merged, err));
    int64_t N = w->rows, K = w->cols;
    widen_job job = {.kernels = &ctx->engine->kernels, .w = w, .out = merged};
    lora_parallel_for(ctx->engine->pool, N, widen_task, &job);
    if (!a) return LORA_OK;
    lora_weight A = lora_weight_f32(a->A, a->rank, K, K);
    lora_gemm_args update = {.m = N, .n = K, .k = a->rank, .alpha = sign * a->scale, .a = a->B, .a_row_stride = a->rank,
                             .a_col_stride = 1, .b = &A, .c = merged, .ldc = K, .accumulate = true, .exact = true};
    LORA_TRY(lora_gemm(ctx, &update, err));
    if (a->magnitude) lora_dora_scale_rows(ctx, a, norm, lora_mat_f32(merged, N, K, K));
    return LORA_OK;
}

/* --- its gradient --- */

static lora_status check_linear_merge_backward(const lora_adapter *a, lora_mat dmerged, lora_error *err) {
    LORA_TRY(check_adapter(a, err));
    LORA_CHECK(!a->magnitude, err, LORA_EINVAL, "adapter: expected one without DoRA, got one with it");
    LORA_CHECK(dmerged.rows > 0 && dmerged.cols > 0, err, LORA_ESHAPE, "dmerged: expected a shape >= (1, 1), got (%" PRId64 ", %" PRId64 ")",
               dmerged.rows, dmerged.cols);
    return lora_mat_check_f32(lora_named("dmerged", dmerged), dmerged.rows, dmerged.cols, err);
}

lora_status lora_linear_merge_backward(lora_ctx *ctx, const lora_adapter *a, lora_mat dmerged, lora_error *err) {
    LORA_TRY(check_linear_merge_backward(a, dmerged, err));
    int64_t N = dmerged.rows, K = dmerged.cols, R = a->rank;
    lora_weight A = lora_weight_f32(a->A, R, K, K), G = lora_weight_f32(dmerged.data, N, K, dmerged.ld);
    lora_gemm_args dB = {.m = N, .n = R, .k = K, .alpha = a->scale, .a = dmerged.data, .a_row_stride = dmerged.ld, .a_col_stride = 1,
                         .b = &A, .b_transposed = true, .c = a->dB, .ldc = R, .accumulate = true};
    lora_gemm_args dA = {.m = R, .n = K, .k = N, .alpha = a->scale, .a = a->B, .a_row_stride = 1, .a_col_stride = R,
                         .b = &G, .b_transposed = false, .c = a->dA, .ldc = K, .accumulate = true};
    if (a->dB) LORA_TRY(lora_gemm(ctx, &dB, err));
    return a->dA ? lora_gemm(ctx, &dA, err) : LORA_OK;
}
