/* What lies between the projections of the feed-forward layer: an activation, with or without a gate. */
#include "lora_c/base/mat.h"
#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/rows.h"

static lora_status check_activation(lora_activation activation, bool gated, lora_error *err) {
    LORA_CHECK(activation == LORA_SILU || activation == LORA_GELU_TANH, err, LORA_EINVAL, "activation: expected 0 or 1, got %d",
               (int)activation);
    LORA_CHECK(gated || activation == LORA_GELU_TANH, err, LORA_EUNSUPPORTED, "up: expected a pointer with silu, got NULL");
    return LORA_OK;
}

/* An empty up is no absent one. */
static bool is_gated(lora_mat gate, lora_mat up) { return up.data || gate.rows == 0 || gate.cols == 0; }

static lora_status check_mlp_forward(lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) {
    bool gated = is_gated(gate, up);
    int64_t M = gate.rows, inner = gate.cols;
    lora_arg g = lora_named("gate", gate), u = lora_named("up", up), out = lora_named("h", h);
    LORA_TRY(check_activation(activation, gated, err));
    LORA_TRY(lora_mat_check_f32(g, M, inner, err));
    if (up.data) LORA_TRY(lora_mat_check_f32(u, M, inner, err));
    LORA_TRY(lora_mat_check_f32(out, M, inner, err));
    LORA_TRY(lora_mat_same_or_disjoint(out, g, err));
    return lora_mat_same_or_disjoint(out, u, err);
}

static lora_status check_mlp_backward(lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate, lora_mat dup,
                                      lora_error *err) {
    bool gated = is_gated(gate, up);
    int64_t M = gate.rows, inner = gate.cols;
    lora_arg d = lora_named("dh", dh), g = lora_named("gate", gate), u = lora_named("up", up);
    lora_arg dg = lora_named("dgate", dgate), du = lora_named("dup", dup);
    LORA_TRY(check_activation(activation, gated, err));
    LORA_CHECK(gated || !dup.data, err, LORA_EINVAL, "dup: expected NULL without up, got a pointer");
    LORA_TRY(lora_mat_check_f32(d, M, inner, err));
    LORA_TRY(lora_mat_check_f32(g, M, inner, err));
    LORA_TRY(lora_mat_check_f32(dg, M, inner, err));
    if (up.data) LORA_TRY(lora_mat_check_f32(u, M, inner, err));
    if (up.data) LORA_TRY(lora_mat_check_f32(du, M, inner, err));
    LORA_TRY(lora_mat_same_or_disjoint(dg, g, err));
    LORA_TRY(lora_mat_disjoint(dg, u, err));
    LORA_TRY(gated ? lora_mat_disjoint(dg, d, err) : lora_mat_same_or_disjoint(dg, d, err));
    if (gated) LORA_TRY(lora_mat_same_or_disjoint(du, u, err));
    LORA_TRY(lora_mat_same_or_disjoint(du, d, err));
    LORA_TRY(lora_mat_disjoint(du, g, err));
    return lora_mat_disjoint(du, dg, err);
}

typedef struct mlp_job {
    const lora_rowwise_kernels *kernels;
    lora_activation activation;
    int64_t rows_per_task;
    lora_mat dh, gate, up, h, dgate, dup;
} mlp_job;

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const mlp_job *job = arg;
    int64_t end = lora_min_i64(job->gate.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *gate = lora_mat_row(job->gate, m), *up = lora_mat_row(job->up, m);
        float *h = lora_mat_row(job->h, m);
        if (job->activation == LORA_SILU)
            job->kernels->swiglu_forward(job->gate.cols, gate, up, h);
        else
            job->kernels->geglu_forward(job->gate.cols, gate, up, h);
    }
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const mlp_job *job = arg;
    int64_t end = lora_min_i64(job->gate.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *dh = lora_mat_row(job->dh, m), *gate = lora_mat_row(job->gate, m), *up = lora_mat_row(job->up, m);
        float *dgate = lora_mat_row(job->dgate, m), *dup = lora_mat_row(job->dup, m);
        if (job->activation == LORA_SILU)
            job->kernels->swiglu_backward(job->gate.cols, dh, gate, up, dgate, dup);
        else
            job->kernels->geglu_backward(job->gate.cols, dh, gate, up, dgate, dup);
    }
}

lora_status lora_mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) {
    LORA_TRY(check_mlp_forward(activation, gate, up, h, err));
    mlp_job job = {.kernels = &ctx->engine->kernels.rowwise, .activation = activation, .rows_per_task = lora_rows_per_task(gate.cols),
                   .gate = gate, .up = up, .h = h};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, lora_div_up(gate.rows, job.rows_per_task), forward_task, &job);
    lora_profile_end(ctx, LORA_OP_ACTIVATION_FORWARD, began, 0, 12.0 * (double)(gate.rows * gate.cols));
    return LORA_OK;
}

lora_status lora_mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate, lora_mat dup,
                              lora_error *err) {
    LORA_TRY(check_mlp_backward(activation, dh, gate, up, dgate, dup, err));
    mlp_job job = {.kernels = &ctx->engine->kernels.rowwise, .activation = activation, .rows_per_task = lora_rows_per_task(gate.cols),
                   .dh = dh, .gate = gate, .up = up, .dgate = dgate, .dup = dup};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, lora_div_up(gate.rows, job.rows_per_task), backward_task, &job);
    lora_profile_end(ctx, LORA_OP_ACTIVATION_BACKWARD, began, 0, 20.0 * (double)(gate.rows * gate.cols));
    return LORA_OK;
}
