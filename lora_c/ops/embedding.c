/* Token embedding: rows of W, decoded on the way out. */
#include <string.h>

#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"
#include "lora_c/ops/weight.h"

enum { GRAD_COLUMNS = 64 }; /* columns of dW per task: every task walks over all tokens in order, so no two tasks meet */

static lora_status check_ids(int64_t M, const int32_t *ids, int64_t V, lora_error *err) {
    for (int64_t m = 0; m < M; m++)
        LORA_CHECK(ids[m] >= 0 && ids[m] < V, err, LORA_EINVAL, "ids: expected 0 <= ids[%" PRId64 "] < %" PRId64 ", got %" PRId32, m, V,
                   ids[m]);
    return LORA_OK;
}

typedef struct embedding_job {
    const lora_kernels *kernels;
    int64_t rows_per_task;
    const int32_t *ids;
    const lora_weight *w;
    lora_mat y, dy, dW;
} embedding_job;

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const embedding_job *job = arg;
    int64_t H = job->y.cols, end = lora_min_i64(job->y.rows, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        float *y = lora_mat_row(job->y, m);
        const float *row = lora_weight_run(job->kernels, job->w, job->ids[m], 0, H, y);
        if (row != y) memcpy(y, row, (size_t)H * sizeof(float));
    }
}

lora_status lora_cpu_embedding_forward(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) {
    LORA_TRY(check_ids(y.rows, ids, w->rows, err));
    embedding_job job = {.kernels = &ctx->engine->kernels, .rows_per_task = lora_rows_per_task(y.cols), .ids = ids, .w = w, .y = y};
    lora_parallel_near(ctx->engine->pool, lora_div_up(y.rows, job.rows_per_task), forward_task, &job);
    return LORA_OK;
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const embedding_job *job = arg;
    int64_t begin = task * GRAD_COLUMNS, count = lora_min_i64(GRAD_COLUMNS, job->dy.cols - begin);
    for (int64_t m = 0; m < job->dy.rows; m++)
        job->kernels->rowwise.axpy(count, 1.0f, lora_mat_row(job->dy, m) + begin, lora_mat_row(job->dW, job->ids[m]) + begin);
}

lora_status lora_cpu_embedding_backward(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err) {
    LORA_TRY(check_ids(dy.rows, ids, dW.rows, err));
    embedding_job job = {.kernels = &ctx->engine->kernels, .ids = ids, .dy = dy, .dW = dW};
    lora_parallel_for(ctx->engine->pool, lora_div_up(dy.cols, GRAD_COLUMNS), backward_task, &job);
    return LORA_OK;
}
