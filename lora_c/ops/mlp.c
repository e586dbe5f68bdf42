/* What lies between the projections of the feed-forward layer: an activation, with or without a gate. */
#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

typedef struct mlp_job {
    const lora_rowwise_kernels *kernels;
    lora_activation activation;
    int64_t rows_per_task;
    lora_mat dh, gate, up, h, dgate, dup;
} mlp_job;

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const mlp_job *job = arg;
    const lora_rowwise_kernels *k = job->kernels;
    void (*forward)(int64_t, const float *, const float *, float *) = job->activation == LORA_SILU   ? k->swiglu_forward
                                                                      : job->activation == LORA_RELU ? k->reglu_forward
                                                                                                     : k->geglu_forward;
    int64_t end = lora_min_i64(job->gate.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *gate = lora_mat_row(job->gate, m), *up = lora_mat_row(job->up, m);
        float *h = lora_mat_row(job->h, m);
        forward(job->gate.cols, gate, up, h);
    }
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const mlp_job *job = arg;
    const lora_rowwise_kernels *k = job->kernels;
    void (*backward)(int64_t, const float *, const float *, const float *, float *, float *) =
        job->activation == LORA_SILU   ? k->swiglu_backward
        : job->activation == LORA_RELU ? k->reglu_backward
                                       : k->geglu_backward;
    int64_t end = lora_min_i64(job->gate.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *dh = lora_mat_row(job->dh, m), *gate = lora_mat_row(job->gate, m), *up = lora_mat_row(job->up, m);
        float *dgate = lora_mat_row(job->dgate, m), *dup = lora_mat_row(job->dup, m);
        backward(job->gate.cols, dh, gate, up, dgate, dup);
    }
}

lora_status lora_cpu_mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    mlp_job job = {.kernels = &ctx->engine->kernels.rowwise,
                   .activation = activation,
                   .rows_per_task = lora_rows_per_task(gate.cols),
                   .gate = gate,
                   .up = up,
                   .h = h};
    lora_parallel_near(ctx->engine->pool, lora_div_up(gate.rows, job.rows_per_task), forward_task, &job);
    return LORA_OK;
}

lora_status lora_cpu_mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate,
                                  lora_mat dup, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    mlp_job job = {.kernels = &ctx->engine->kernels.rowwise,
                   .activation = activation,
                   .rows_per_task = lora_rows_per_task(gate.cols),
                   .dh = dh,
                   .gate = gate,
                   .up = up,
                   .dgate = dgate,
                   .dup = dup};
    lora_parallel_near(ctx->engine->pool, lora_div_up(gate.rows, job.rows_per_task), backward_task, &job);
    return LORA_OK;
}
