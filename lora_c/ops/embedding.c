/* Token embedding: rows of W, decoded on the way out. */
#include <string.h>

#include "lora_c/nf4.h"
#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/rows.h"
#include "lora_c/ops/weight.h"

enum { GRAD_COLUMNS = 64 }; /* columns of dW per task: every task walks over all tokens in order, so no two tasks meet */

typedef struct embedding_job {
    const lora_kernels *kernels;
    int64_t M, H, rows_per_task;
    const int32_t *ids;
    const lora_weight *w;
    float *y;
    int64_t ldy;
    const float *dy;
    int64_t lddy;
    float *dW;
} embedding_job;

static lora_status check_ids(int64_t M, const int32_t *ids, int64_t V, lora_error *err) {
    for (int64_t m = 0; m < M; m++)
        LORA_CHECK(ids[m] >= 0 && ids[m] < V, err, LORA_EINVAL,
                   "ids: expected 0 <= ids[%" PRId64 "] < %" PRId64 ", got %" PRId32, m, V, ids[m]);
    return LORA_OK;
}

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const embedding_job *job = arg;
    const lora_weight *w = job->w;
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        float *y = job->y + m * job->ldy;
        int64_t id = job->ids[m];
        const float *row = lora_weight_run(job->kernels, w, id, 0, job->H, y);
        if (row != y) memcpy(y, row, (size_t)job->H * sizeof(float));
    }
}

lora_status lora_embedding_forward(lora_ctx *ctx, int64_t M, const int32_t *ids, const lora_weight *w, float *y,
                                   int64_t ldy, lora_error *err) {
    LORA_TRY(lora_rows_check_weight("w", w, err));
    lora_rows in = {"ids", ids, 1, M, M}, out = {"y", y, M, w->cols, ldy};
    LORA_TRY(lora_rows_check(in, err));
    LORA_TRY(lora_rows_check(out, err));
    LORA_TRY(lora_rows_disjoint(out, in, err));
    LORA_TRY(check_ids(M, ids, w->rows, err));
    embedding_job job = {.kernels = &ctx->engine->kernels, .M = M, .H = w->cols, .rows_per_task = lora_rows_per_task(w->cols),
                         .ids = ids, .w = w, .y = y, .ldy = ldy};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_near(ctx->engine->pool, lora_div_up(M, job.rows_per_task), forward_task, &job);
    lora_profile_end(ctx, LORA_OP_EMBEDDING, began, 0, 8.0 * (double)(M * w->cols));
    return LORA_OK;
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const embedding_job *job = arg;
    int64_t begin = task * GRAD_COLUMNS, count = lora_min_i64(GRAD_COLUMNS, job->H - begin);
    for (int64_t m = 0; m < job->M; m++)
        job->kernels->rowwise.axpy(count, 1.0f, job->dy + m * job->lddy + begin,
                                   job->dW + job->ids[m] * job->H + begin);
}

lora_status lora_embedding_backward(lora_ctx *ctx, int64_t M, const int32_t *ids, const float *dy, int64_t lddy,
                                    int64_t V, int64_t H, float *dW, lora_error *err) {
    lora_rows in = {"ids", ids, 1, M, M}, g = {"dy", dy, M, H, lddy}, out = {"dW", dW, V, H, H};
    LORA_TRY(lora_rows_check(in, err));
    LORA_TRY(lora_rows_check(g, err));
    LORA_TRY(lora_rows_check(out, err));
    LORA_TRY(lora_rows_disjoint(out, in, err));
    LORA_TRY(lora_rows_disjoint(out, g, err));
    LORA_TRY(check_ids(M, ids, V, err));
    embedding_job job = {.kernels = &ctx->engine->kernels, .M = M, .H = H, .ids = ids, .dy = dy, .lddy = lddy, .dW = dW};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_for(ctx->engine->pool, lora_div_up(H, GRAD_COLUMNS), backward_task, &job);
    lora_profile_end(ctx, LORA_OP_EMBEDDING, began, 0, 12.0 * (double)(M * H));
    return LORA_OK;
}
