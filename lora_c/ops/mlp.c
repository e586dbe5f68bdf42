/* What lies between the projections of the feed-forward layer: an activation, with or without a gate. */
#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/rows.h"

typedef struct mlp_job {
    const lora_rowwise_kernels *kernels;
    lora_activation activation;
    int64_t M, I, rows_per_task;
    const float *dh, *gate, *up;
    int64_t lddh, ldg, ldu;
    float *h, *dgate, *dup;
    int64_t ldh, lddg, lddu;
} mlp_job;

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const mlp_job *job = arg;
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *gate = job->gate + m * job->ldg, *up = job->up ? job->up + m * job->ldu : NULL;
        float *h = job->h + m * job->ldh;
        if (job->activation == LORA_SILU)
            job->kernels->swiglu_forward(job->I, gate, up, h);
        else
            job->kernels->geglu_forward(job->I, gate, up, h);
    }
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const mlp_job *job = arg;
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *dh = job->dh + m * job->lddh, *gate = job->gate + m * job->ldg;
        const float *up = job->up ? job->up + m * job->ldu : NULL;
        float *dgate = job->dgate + m * job->lddg, *dup = job->dup ? job->dup + m * job->lddu : NULL;
        if (job->activation == LORA_SILU)
            job->kernels->swiglu_backward(job->I, dh, gate, up, dgate, dup);
        else
            job->kernels->geglu_backward(job->I, dh, gate, up, dgate, dup);
    }
}

static lora_status check_activation(lora_activation activation, bool gated, lora_error *err) {
    LORA_CHECK(activation == LORA_SILU || activation == LORA_GELU_TANH, err, LORA_EINVAL, "activation: expected 0 or 1, got %d",
               (int)activation);
    LORA_CHECK(gated || activation == LORA_GELU_TANH, err, LORA_EUNSUPPORTED, "up: expected a pointer with silu, got NULL");
    return LORA_OK;
}

lora_status lora_mlp_forward(lora_ctx *ctx, lora_activation activation, int64_t M, int64_t I, const float *gate,
                             int64_t ldg, const float *up, int64_t ldu, float *h, int64_t ldh, lora_error *err) {
    bool gated = up || M == 0 || I == 0;
    LORA_TRY(check_activation(activation, gated, err));
    lora_rows g = {"gate", gate, M, I, ldg}, u = {"up", up, M, I, ldu}, out = {"h", h, M, I, ldh};
    LORA_TRY(lora_rows_check(g, err));
    if (gated) LORA_TRY(lora_rows_check(u, err));
    LORA_TRY(lora_rows_check(out, err));
    LORA_TRY(lora_rows_same_or_disjoint(out, g, err));
    LORA_TRY(lora_rows_same_or_disjoint(out, u, err));
    mlp_job job = {.kernels = &ctx->engine->kernels.rowwise, .activation = activation, .M = M, .I = I, .rows_per_task = lora_rows_per_task(I),
                      .gate = gate, .ldg = ldg, .up = up, .ldu = ldu, .h = h, .ldh = ldh};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, lora_div_up(M, job.rows_per_task), forward_task, &job);
    lora_profile_end(ctx, LORA_OP_SWIGLU_FORWARD, began, 0, 12.0 * (double)(M * I));
    return LORA_OK;
}

lora_status lora_mlp_backward(lora_ctx *ctx, lora_activation activation, int64_t M, int64_t I, const float *dh,
                              int64_t lddh, const float *gate, int64_t ldg, const float *up, int64_t ldu, float *dgate,
                              int64_t lddg, float *dup, int64_t lddu, lora_error *err) {
    bool gated = up || M == 0 || I == 0;
    LORA_TRY(check_activation(activation, gated, err));
    LORA_CHECK(gated || !dup, err, LORA_EINVAL, "dup: expected NULL without up, got a pointer");
    lora_rows d = {"dh", dh, M, I, lddh}, g = {"gate", gate, M, I, ldg}, u = {"up", up, M, I, ldu};
    lora_rows dg = {"dgate", dgate, M, I, lddg}, du = {"dup", dup, M, I, lddu};
    LORA_TRY(lora_rows_check(d, err));
    LORA_TRY(lora_rows_check(g, err));
    if (gated) LORA_TRY(lora_rows_check(u, err));
    LORA_TRY(lora_rows_check(dg, err));
    if (gated) LORA_TRY(lora_rows_check(du, err));
    LORA_TRY(lora_rows_same_or_disjoint(dg, g, err));
    LORA_TRY(lora_rows_disjoint(dg, u, err));
    LORA_TRY(gated ? lora_rows_disjoint(dg, d, err) : lora_rows_same_or_disjoint(dg, d, err));
    if (gated) LORA_TRY(lora_rows_same_or_disjoint(du, u, err));
    LORA_TRY(lora_rows_same_or_disjoint(du, d, err));
    LORA_TRY(lora_rows_disjoint(du, g, err));
    LORA_TRY(lora_rows_disjoint(du, dg, err));
    mlp_job job = {.kernels = &ctx->engine->kernels.rowwise, .activation = activation, .M = M, .I = I, .rows_per_task = lora_rows_per_task(I),
                      .dh = dh, .lddh = lddh, .gate = gate, .ldg = ldg, .up = up, .ldu = ldu, .dgate = dgate,
                      .lddg = lddg, .dup = dup, .lddu = lddu};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, lora_div_up(M, job.rows_per_task), backward_task, &job);
    lora_profile_end(ctx, LORA_OP_SWIGLU_BACKWARD, began, 0, 20.0 * (double)(M * I));
    return LORA_OK;
}
