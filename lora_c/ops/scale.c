/* Multiples of rows, and the soft cap with its gradient. */
#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

typedef struct scale_job {
    const lora_rowwise_kernels *kernels;
    int64_t rows_per_task;
    float a;
    lora_mat x, y;
    bool accumulate;
} scale_job;

static void scale_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const scale_job *job = arg;
    int64_t end = lora_min_i64(job->y.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        (job->accumulate ? job->kernels->axpy : job->kernels->scale)(job->y.cols, job->a, lora_mat_row(job->x, m), lora_mat_row(job->y, m));
}

lora_status lora_cpu_scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    scale_job job = {.kernels = &ctx->engine->kernels.rowwise,
                     .rows_per_task = lora_rows_per_task(x.cols),
                     .a = a,
                     .x = x,
                     .y = y,
                     .accumulate = accumulate};
    lora_parallel_near(ctx->engine->pool, lora_div_up(x.rows, job.rows_per_task), scale_task, &job);
    return LORA_OK;
}

static void softcap_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const scale_job *job = arg;
    int64_t end = lora_min_i64(job->y.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) job->kernels->softcap_forward(job->y.cols, job->a, lora_mat_row(job->y, m));
}

lora_status lora_cpu_softcap_rows(lora_ctx *ctx, float softcap, lora_mat x, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    scale_job job = {.kernels = &ctx->engine->kernels.rowwise, .rows_per_task = lora_rows_per_task(x.cols), .a = softcap, .y = x};
    lora_parallel_near(ctx->engine->pool, lora_div_up(x.rows, job.rows_per_task), softcap_task, &job);
    return LORA_OK;
}

static void softcap_backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const scale_job *job = arg;
    int64_t end = lora_min_i64(job->y.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        job->kernels->softcap_backward(job->y.cols, job->a, lora_mat_row(job->x, m), lora_mat_row(job->y, m));
}

lora_status lora_cpu_softcap_backward(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    scale_job job = {.kernels = &ctx->engine->kernels.rowwise, .rows_per_task = lora_rows_per_task(y.cols), .a = softcap, .x = y, .y = dy};
    lora_parallel_near(ctx->engine->pool, lora_div_up(y.rows, job.rows_per_task), softcap_backward_task, &job);
    return LORA_OK;
}
