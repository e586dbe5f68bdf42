/* An adapter into its matrix, and the gradient of that matrix back into the adapter. */
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/linear.h"
#include "lora_c/ops/cpu_ops.h"
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

lora_status lora_cpu_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *a, const float *norm, float sign, float *merged,
                                  lora_error *err) {
    int64_t N = w->rows, K = w->cols;
    widen_job job = {.kernels = &ctx->engine->kernels, .w = w, .out = merged};
    lora_parallel_for(ctx->engine->pool, N, widen_task, &job);
    if (!a) return LORA_OK;
    lora_weight A = lora_weight_f32(a->A, a->rank, K, K);
    lora_gemm_args update = {.m = N,
                             .n = K,
                             .k = a->rank,
                             .alpha = sign * a->scale,
                             .a = a->B,
                             .a_row_stride = a->rank,
                             .a_col_stride = 1,
                             .b = &A,
                             .c = merged,
                             .ldc = K,
                             .accumulate = true,
                             .exact = true};
    LORA_TRY(lora_gemm(ctx, &update, err));
    if (a->magnitude) lora_dora_scale_rows(ctx, a, norm, lora_mat_f32(merged, N, K, K));
    return LORA_OK;
}

/* --- its gradient --- */

lora_status lora_cpu_linear_merge_backward(lora_ctx *ctx, const lora_adapter *a, lora_mat dmerged, lora_error *err) {
    int64_t N = dmerged.rows, K = dmerged.cols, R = a->rank;
    lora_weight A = lora_weight_f32(a->A, R, K, K), G = lora_weight_f32(dmerged.data, N, K, dmerged.ld);
    lora_gemm_args dB = {.m = N,
                         .n = R,
                         .k = K,
                         .alpha = a->scale,
                         .a = dmerged.data,
                         .a_row_stride = dmerged.ld,
                         .a_col_stride = 1,
                         .b = &A,
                         .b_transposed = true,
                         .c = a->dB,
                         .ldc = R,
                         .accumulate = true};
    lora_gemm_args dA = {.m = R,
                         .n = K,
                         .k = N,
                         .alpha = a->scale,
                         .a = a->B,
                         .a_row_stride = 1,
                         .a_col_stride = R,
                         .b = &G,
                         .b_transposed = false,
                         .c = a->dA,
                         .ldc = K,
                         .accumulate = true};
    if (a->dB) LORA_TRY(lora_gemm(ctx, &dB, err));
    return a->dA ? lora_gemm(ctx, &dA, err) : LORA_OK;
}
