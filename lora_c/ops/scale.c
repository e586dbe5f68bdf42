/* Multiples of rows, and the soft cap of logits. */
#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

typedef struct scale_job {
    const lora_rowwise_kernels *kernels;
    int64_t M, N, rows_per_task;
    float a;
    const float *x;
    float *y;
    int64_t ldx, ldy;
    bool accumulate;
} scale_job;

static void scale_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const scale_job *job = arg;
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        (job->accumulate ? job->kernels->axpy : job->kernels->scale)(job->N, job->a, job->x + m * job->ldx, job->y + m * job->ldy);
}

lora_status lora_scale_rows(lora_ctx *ctx, int64_t M, int64_t N, float a, const float *x, int64_t ldx, float *y,
                            int64_t ldy, bool accumulate, lora_error *err) {
    lora_rows in = {"x", x, M, N, ldx}, out = {"y", y, M, N, ldy};
    LORA_TRY(lora_rows_check(in, err));
    LORA_TRY(lora_rows_check(out, err));
    LORA_TRY(accumulate ? lora_rows_disjoint(out, in, err) : lora_rows_same_or_disjoint(out, in, err));
    scale_job job = {&ctx->engine->kernels.rowwise, M, N, lora_rows_per_task(N), a, x, y, ldx, ldy, accumulate};
    lora_parallel_near(ctx->engine->pool, lora_div_up(M, job.rows_per_task), scale_task, &job);
    return LORA_OK;
}

static void softcap_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const scale_job *job = arg;
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) job->kernels->softcap_forward(job->N, job->a, job->y + m * job->ldy);
}

lora_status lora_softcap_rows(lora_ctx *ctx, int64_t M, int64_t N, float softcap, float *x, int64_t ldx, lora_error *err) {
    lora_rows rows = {"x", x, M, N, ldx};
    LORA_CHECK(softcap > 0.0f, err, LORA_EINVAL, "softcap: expected > 0, got %g", (double)softcap);
    LORA_TRY(lora_rows_check(rows, err));
    scale_job job = {.kernels = &ctx->engine->kernels.rowwise, .M = M, .N = N, .rows_per_task = lora_rows_per_task(N), .a = softcap,
                     .y = x, .ldy = ldx};
    lora_parallel_near(ctx->engine->pool, lora_div_up(M, job.rows_per_task), softcap_task, &job);
    return LORA_OK;
}
