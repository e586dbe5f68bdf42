/* Columns times a vector, as IA3 has them, and the gradient of that vector. */
#include <string.h>

#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

enum {
    PARTIAL_ROWS = 32,     /* rows whose dl is summed by one task */
    COMBINE_COLUMNS = 256, /* columns combined by one task */
};

typedef struct columns_job {
    const lora_rowwise_kernels *kernels;
    const float *l;
    int64_t rows_per_task;
    lora_mat x, y, dy, dx;
    bool accumulate_dx;
    float *partial, *dl; /* partial (n_partials, N), or NULL */
    int64_t n_partials;
} columns_job;

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const columns_job *job = arg;
    int64_t end = lora_min_i64(job->x.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        job->kernels->multiply(job->x.cols, job->l, lora_mat_row(job->x, m), lora_mat_row(job->y, m));
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const columns_job *job = arg;
    int64_t N = job->dy.cols, end = lora_min_i64(job->dy.rows, (task + 1) * job->rows_per_task);
    float *dl = job->partial ? job->partial + task * N : NULL;
    if (dl) memset(dl, 0, (size_t)N * sizeof(float));
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        const float *dy = lora_mat_row(job->dy, m);
        if (dl) job->kernels->multiply_add(N, dy, lora_mat_row(job->x, m), dl); /* before dx, which may be dy */
        if (job->dx.data)
            (job->accumulate_dx ? job->kernels->multiply_add : job->kernels->multiply)(N, job->l, dy, lora_mat_row(job->dx, m));
    }
}

static void combine_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const columns_job *job = arg;
    int64_t N = job->dy.cols, begin = task * COMBINE_COLUMNS, count = lora_min_i64(COMBINE_COLUMNS, N - begin);
    for (int64_t p = 0; p < job->n_partials; p++) job->kernels->axpy(count, 1.0f, job->partial + p * N + begin, job->dl + begin);
}

lora_status lora_cpu_scale_columns(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err) {
    (void)err; /* nothing that it needs can be refused */
    columns_job job = {.kernels = &ctx->engine->kernels.rowwise, .l = l, .rows_per_task = lora_rows_per_task(x.cols), .x = x, .y = y};
    lora_parallel_near(ctx->engine->pool, lora_div_up(x.rows, job.rows_per_task), forward_task, &job);
    return LORA_OK;
}

lora_status lora_cpu_scale_columns_backward(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx,
                                            float *dl, lora_error *err) {
    int64_t N = dy.cols;
    columns_job job = {.kernels = &ctx->engine->kernels.rowwise,
                       .l = l,
                       .rows_per_task = dl ? PARTIAL_ROWS : lora_rows_per_task(N),
                       .x = x,
                       .dy = dy,
                       .dx = dx,
                       .accumulate_dx = accumulate_dx,
                       .dl = dl};
    int64_t n_tasks = lora_div_up(dy.rows, job.rows_per_task);
    if (dl) {
        size_t bytes;
        void *partial;
        LORA_CHECK(lora_mul_size((size_t)n_tasks * sizeof(float), (size_t)N, &bytes), err, LORA_ENOMEM,
                   "dl: expected partial sums that fit memory, got (%" PRId64 ", %" PRId64 ")", n_tasks, N);
        LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_REDUCE, bytes, &partial, err));
        job.partial = partial;
        job.n_partials = n_tasks;
    }
    lora_parallel_near(ctx->engine->pool, n_tasks, backward_task, &job);
    if (dl) lora_parallel_for(ctx->engine->pool, lora_div_up(N, COMBINE_COLUMNS), combine_task, &job);
    return LORA_OK;
}
