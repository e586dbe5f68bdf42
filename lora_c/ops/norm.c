/* RMSNorm and LayerNorm over packed tokens. */
#include <string.h>

#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/rows.h"

enum {
    PARTIAL_ROWS = 32,     /* rows whose dweight is summed by one task */
    COMBINE_COLUMNS = 256, /* columns combined by one task */
};

typedef struct norm_job {
    const lora_rowwise_kernels *kernels;
    const lora_norm *norm;
    int64_t M, rows_per_task;
    const float *x, *dy, *stats;
    int64_t ldx, lddy;
    float *y, *stats_out, *dx;
    int64_t ldy, lddx;
    bool accumulate_dx;
    float *partial, *dweight, *dbias; /* partial (n_tasks, 2, H): dweight and dbias of a task, or NULL */
    int64_t n_partials;
} norm_job;

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const norm_job *job = arg;
    const lora_norm *norm = job->norm;
    int64_t H = norm->H, end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        for (int64_t g = 0; g < norm->groups; g++) {
            const float *x = job->x + m * job->ldx + g * H;
            float *y = job->y + m * job->ldy + g * H, mean = 0.0f, rstd;
            if (norm->kind == LORA_NORM_RMS)
                rstd = job->kernels->rmsnorm_forward(H, x, norm->weight, norm->weight_offset, norm->eps, y);
            else
                rstd = job->kernels->layernorm_forward(H, x, norm->weight, norm->bias, norm->eps, y, &mean);
            if (!job->stats_out) continue;
            job->stats_out[2 * (m * norm->groups + g)] = rstd;
            job->stats_out[2 * (m * norm->groups + g) + 1] = mean;
        }
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const norm_job *job = arg;
    const lora_norm *norm = job->norm;
    int64_t H = norm->H, end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    float *dweight = job->partial ? job->partial + task * 2 * H : NULL, *dbias = dweight ? dweight + H : NULL;
    if (dweight) memset(dweight, 0, (size_t)(2 * H) * sizeof(float));
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        for (int64_t g = 0; g < norm->groups; g++) {
            const float *dy = job->dy + m * job->lddy + g * H, *x = job->x + m * job->ldx + g * H;
            const float *stats = job->stats + 2 * (m * norm->groups + g);
            float *dx = job->dx ? job->dx + m * job->lddx + g * H : NULL;
            if (norm->kind == LORA_NORM_RMS)
                job->kernels->rmsnorm_backward(H, dy, x, norm->weight, norm->weight_offset, stats[0], dx,
                                               job->accumulate_dx, dweight);
            else
                job->kernels->layernorm_backward(H, dy, x, norm->weight, stats[1], stats[0], dx, job->accumulate_dx,
                                                 dweight, dbias);
        }
}

static void combine_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const norm_job *job = arg;
    int64_t H = job->norm->H, begin = task * COMBINE_COLUMNS, count = lora_min_i64(COMBINE_COLUMNS, H - begin);
    for (int64_t p = 0; p < job->n_partials; p++) {
        const float *partial = job->partial + p * 2 * H + begin;
        if (job->dweight) job->kernels->axpy(count, 1.0f, partial, job->dweight + begin);
        if (job->dbias) job->kernels->axpy(count, 1.0f, partial + H, job->dbias + begin);
    }
}

static lora_status check_norm(const lora_norm *norm, int64_t M, lora_error *err) {
    LORA_CHECK(norm != NULL, err, LORA_EINVAL, "norm: expected a pointer, got NULL");
    LORA_CHECK(norm->H >= 1, err, LORA_ESHAPE, "H: expected >= 1, got %" PRId64, norm->H);
    LORA_CHECK(norm->groups >= 1 && norm->groups <= INT64_MAX / 4 / norm->H && norm->groups <= INT64_MAX / 4 / lora_max_i64(M, 1),
               err, LORA_ESHAPE, "groups: expected >= 1, got %" PRId64, norm->groups);
    LORA_CHECK(norm->eps >= 0.0f, err, LORA_EINVAL, "eps: expected >= 0, got %g", (double)norm->eps);
    LORA_CHECK(norm->weight, err, LORA_EINVAL, "weight: expected a pointer, got NULL");
    LORA_CHECK(norm->kind == LORA_NORM_RMS || norm->bias, err, LORA_EINVAL, "bias: expected a pointer, got NULL");
    return LORA_OK;
}

lora_status lora_norm_forward(lora_ctx *ctx, const lora_norm *norm, int64_t M, const float *x, int64_t ldx, float *y,
                              int64_t ldy, float *stats, lora_error *err) {
    LORA_TRY(check_norm(norm, M, err));
    int64_t H = norm->H, width = H * norm->groups;
    lora_rows in = {"x", x, M, width, ldx}, out = {"y", y, M, width, ldy};
    lora_rows w = {"weight", norm->weight, 1, H, H}, b = {"bias", norm->bias, 1, H, H};
    lora_rows s = {"stats", stats, M, 2 * norm->groups, 2 * norm->groups};
    LORA_TRY(lora_rows_check(in, err));
    LORA_TRY(lora_rows_check(out, err));
    LORA_TRY(lora_rows_same_or_disjoint(out, in, err));
    LORA_TRY(lora_rows_disjoint(out, w, err));
    LORA_TRY(lora_rows_disjoint(out, b, err));
    LORA_TRY(lora_rows_disjoint(s, in, err));
    LORA_TRY(lora_rows_disjoint(s, w, err));
    LORA_TRY(lora_rows_disjoint(s, b, err));
    LORA_TRY(lora_rows_disjoint(s, out, err));
    norm_job job = {.kernels = &ctx->engine->kernels.rowwise, .norm = norm, .M = M, .rows_per_task = lora_rows_per_task(width),
                    .x = x, .ldx = ldx, .y = y, .ldy = ldy, .stats_out = stats};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, lora_div_up(M, job.rows_per_task), forward_task, &job);
    lora_profile_end(ctx, LORA_OP_NORM_FORWARD, began, 0, 8.0 * (double)(M * width));
    return LORA_OK;
}

static lora_status check_backward(const lora_norm *norm, int64_t M, const float *dy, int64_t lddy, const float *x,
                                  int64_t ldx, const float *stats, float *dx, int64_t lddx, bool accumulate_dx,
                                  float *dweight, float *dbias, lora_error *err) {
    LORA_TRY(check_norm(norm, M, err));
    int64_t H = norm->H, width = H * norm->groups;
    lora_rows in[] = {{"x", x, M, width, ldx}, {"weight", norm->weight, 1, H, H}, {"bias", norm->bias, 1, H, H},
                      {"stats", stats, M, 2 * norm->groups, 2 * norm->groups}, {"dy", dy, M, width, lddy}};
    lora_rows out[] = {{"dx", dx, M, width, lddx}, {"dweight", dweight, 1, H, H}, {"dbias", dbias, 1, H, H}};
    for (int i = 0; i < 5; i++)
        if (i != 2) LORA_TRY(lora_rows_check(in[i], err));
    for (int o = 0; o < 3; o++) {
        if (!out[o].data) continue;
        LORA_TRY(lora_rows_check(out[o], err));
        for (int i = 0; i < 4; i++) LORA_TRY(lora_rows_disjoint(out[o], in[i], err));
        for (int i = 0; i < o; i++) LORA_TRY(lora_rows_disjoint(out[o], out[i], err));
        LORA_TRY(o == 0 && !accumulate_dx ? lora_rows_same_or_disjoint(out[o], in[4], err) : lora_rows_disjoint(out[o], in[4], err));
    }
    return LORA_OK;
}

lora_status lora_norm_backward(lora_ctx *ctx, const lora_norm *norm, int64_t M, const float *dy, int64_t lddy,
                               const float *x, int64_t ldx, const float *stats, float *dx, int64_t lddx,
                               bool accumulate_dx, float *dweight, float *dbias, lora_error *err) {
    LORA_TRY(check_backward(norm, M, dy, lddy, x, ldx, stats, dx, lddx, accumulate_dx, dweight, dbias, err));
    bool weights = dweight || dbias;
    int64_t H = norm->H;
    if (M == 0 || (!dx && !weights)) return LORA_OK;
    norm_job job = {.kernels = &ctx->engine->kernels.rowwise, .norm = norm, .M = M,
                    .rows_per_task = weights ? PARTIAL_ROWS : lora_rows_per_task(H * norm->groups), .x = x, .ldx = ldx,
                    .dy = dy, .lddy = lddy, .stats = stats, .dx = dx, .lddx = lddx, .accumulate_dx = accumulate_dx,
                    .dweight = dweight, .dbias = dbias};
    int64_t n_tasks = lora_div_up(M, job.rows_per_task);
    if (weights) {
        size_t bytes;
        void *partial;
        LORA_CHECK(lora_mul_size((size_t)n_tasks * 2 * sizeof(float), (size_t)H, &bytes), err, LORA_ENOMEM,
                   "dweight: expected partial sums that fit memory, got (%" PRId64 ", %" PRId64 ")", n_tasks, H);
        LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_REDUCE, bytes, &partial, err));
        job.partial = partial;
        job.n_partials = n_tasks;
    }
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, n_tasks, backward_task, &job);
    if (weights) lora_parallel_for(ctx->engine->pool, lora_div_up(H, COMBINE_COLUMNS), combine_task, &job);
    lora_profile_end(ctx, LORA_OP_NORM_BACKWARD, began, 0, (accumulate_dx ? 16.0 : 12.0) * (double)(M * H * norm->groups));
    return LORA_OK;
}
