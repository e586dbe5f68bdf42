/* RMSNorm and LayerNorm over packed tokens. */
#include <string.h>

#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

enum {
    PARTIAL_ROWS = 32,     /* rows whose dweight is summed by one task */
    COMBINE_COLUMNS = 256, /* columns combined by one task */
};

typedef struct norm_job {
    const lora_rowwise_kernels *kernels;
    const lora_norm *norm;
    int64_t M, rows_per_task;
    lora_mat x, y, dy, dx;
    const float *stats;
    float *stats_out;
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
            const float *x = lora_mat_row(job->x, m) + g * H;
            float *y = lora_mat_row(job->y, m) + g * H, mean = 0.0f, rstd;
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
            const float *dy = lora_mat_row(job->dy, m) + g * H, *x = lora_mat_row(job->x, m) + g * H;
            const float *stats = job->stats + 2 * (m * norm->groups + g);
            float *dx = job->dx.data ? lora_mat_row(job->dx, m) + g * H : NULL;
            if (norm->kind == LORA_NORM_RMS)
                job->kernels->rmsnorm_backward(H, dy, x, norm->weight, norm->weight_offset, stats[0], dx, job->accumulate_dx, dweight);
            else
                job->kernels->layernorm_backward(H, dy, x, norm->weight, stats[1], stats[0], dx, job->accumulate_dx, dweight, dbias);
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

lora_status lora_cpu_norm_forward(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    norm_job job = {.kernels = &ctx->engine->kernels.rowwise,
                    .norm = norm,
                    .M = x.rows,
                    .rows_per_task = lora_rows_per_task(x.cols),
                    .x = x,
                    .y = y,
                    .stats_out = stats};
    lora_parallel_near(ctx->engine->pool, lora_div_up(x.rows, job.rows_per_task), forward_task, &job);
    return LORA_OK;
}

lora_status lora_cpu_norm_backward(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx,
                                   bool accumulate_dx, float *dweight, float *dbias, lora_error *err) {
    bool weights = dweight || dbias;
    int64_t H = norm->H, M = x.rows;
    if (M == 0 || (!dx.data && !weights)) return LORA_OK;
    norm_job job = {.kernels = &ctx->engine->kernels.rowwise,
                    .norm = norm,
                    .M = M,
                    .rows_per_task = weights ? PARTIAL_ROWS : lora_rows_per_task(x.cols),
                    .x = x,
                    .dy = dy,
                    .stats = stats,
                    .dx = dx,
                    .accumulate_dx = accumulate_dx,
                    .dweight = dweight,
                    .dbias = dbias};
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
    lora_parallel_near(ctx->engine->pool, n_tasks, backward_task, &job);
    if (weights) lora_parallel_for(ctx->engine->pool, lora_div_up(H, COMBINE_COLUMNS), combine_task, &job);
    return LORA_OK;
}
