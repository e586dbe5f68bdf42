/* The gate of the SwiGLU feed-forward layer. */
#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

typedef struct swiglu_job {
    const lora_rowwise_kernels *kernels;
    int64_t M, I, rows_per_task;
    const float *dh, *gate, *up;
    int64_t lddh, ldg, ldu;
    float *h, *dgate, *dup;
    int64_t ldh, lddg, lddu;
} swiglu_job;

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const swiglu_job *job = arg;
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        job->kernels->swiglu_forward(job->I, job->gate + m * job->ldg, job->up + m * job->ldu, job->h + m * job->ldh);
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const swiglu_job *job = arg;
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        job->kernels->swiglu_backward(job->I, job->dh + m * job->lddh, job->gate + m * job->ldg,
                                      job->up + m * job->ldu, job->dgate + m * job->lddg, job->dup + m * job->lddu);
}

lora_status lora_swiglu_forward(lora_ctx *ctx, int64_t M, int64_t I, const float *gate, int64_t ldg, const float *up,
                                int64_t ldu, float *h, int64_t ldh, lora_error *err) {
    lora_rows g = {"gate", gate, M, I, ldg}, u = {"up", up, M, I, ldu}, out = {"h", h, M, I, ldh};
    LORA_TRY(lora_rows_check(g, err));
    LORA_TRY(lora_rows_check(u, err));
    LORA_TRY(lora_rows_check(out, err));
    LORA_TRY(lora_rows_same_or_disjoint(out, g, err));
    LORA_TRY(lora_rows_same_or_disjoint(out, u, err));
    swiglu_job job = {.kernels = &ctx->kernels.rowwise, .M = M, .I = I, .rows_per_task = lora_rows_per_task(I),
                      .gate = gate, .ldg = ldg, .up = up, .ldu = ldu, .h = h, .ldh = ldh};
    lora_parallel_for(ctx->pool, lora_div_up(M, job.rows_per_task), forward_task, &job);
    return LORA_OK;
}

lora_status lora_swiglu_backward(lora_ctx *ctx, int64_t M, int64_t I, const float *dh, int64_t lddh, const float *gate,
                                 int64_t ldg, const float *up, int64_t ldu, float *dgate, int64_t lddg, float *dup,
                                 int64_t lddu, lora_error *err) {
    lora_rows d = {"dh", dh, M, I, lddh}, g = {"gate", gate, M, I, ldg}, u = {"up", up, M, I, ldu};
    lora_rows dg = {"dgate", dgate, M, I, lddg}, du = {"dup", dup, M, I, lddu};
    LORA_TRY(lora_rows_check(d, err));
    LORA_TRY(lora_rows_check(g, err));
    LORA_TRY(lora_rows_check(u, err));
    LORA_TRY(lora_rows_check(dg, err));
    LORA_TRY(lora_rows_check(du, err));
    LORA_TRY(lora_rows_same_or_disjoint(dg, g, err));
    LORA_TRY(lora_rows_disjoint(dg, u, err));
    LORA_TRY(lora_rows_disjoint(dg, d, err));
    LORA_TRY(lora_rows_same_or_disjoint(du, u, err));
    LORA_TRY(lora_rows_same_or_disjoint(du, d, err));
    LORA_TRY(lora_rows_disjoint(du, g, err));
    LORA_TRY(lora_rows_disjoint(du, dg, err));
    swiglu_job job = {.kernels = &ctx->kernels.rowwise, .M = M, .I = I, .rows_per_task = lora_rows_per_task(I),
                      .dh = dh, .lddh = lddh, .gate = gate, .ldg = ldg, .up = up, .ldu = ldu, .dgate = dgate,
                      .lddg = lddg, .dup = dup, .lddu = lddu};
    lora_parallel_for(ctx->pool, lora_div_up(M, job.rows_per_task), backward_task, &job);
    return LORA_OK;
}
