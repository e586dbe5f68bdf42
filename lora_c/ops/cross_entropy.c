/* Head and loss in one: logits are never in memory (head_pass.c), but for the gradient of a trained head, slice by slice. */
#include <math.h>
#include <string.h>

#include "lora_c/base/mat.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/head_pass.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/rows.h"
#include "lora_c/weight_rows.h"

enum { SLICE = 4096 }; /* columns of the vocabulary whose logits a trained head needs at a time */

static lora_status check_targets(int64_t M, const lora_loss *loss, int64_t V, lora_error *err) {
    for (int64_t m = 0; m < M; m++)
        LORA_CHECK(loss->loss_weight[m] == 0.0f || (loss->targets[m] >= 0 && loss->targets[m] < V), err, LORA_EINVAL,
                   "targets: expected 0 <= targets[%" PRId64 "] < %" PRId64 ", got %" PRId32, m, V, loss->targets[m]);
    return LORA_OK;
}

typedef struct xent_job {
    const lora_rowwise_kernels *kernels;
    lora_head_pass pass;
    int64_t M, V, H;
    lora_mat x, dx;
    const lora_weight *w;
    const lora_loss *loss;
    float *dW;
    /* the chunk */
    int64_t n_rows;
    const float *chunk_x;
    int64_t chunk_ldx;
    int64_t *index;         /* (chunk) row numbers */
    int32_t *chunk_targets; /* (chunk) */
    lora_head_row *sums;    /* (chunk) */
    float *x_rows;          /* (chunk, H) where the rows do not lie behind each other in x */
    float *buffers;         /* (threads, H) */
    float *slice;           /* (chunk, SLICE) logits, then their gradient */
    float *capped;          /* (threads, SLICE) */
    int64_t first_col, n_cols;
} xent_job;

static void clear_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const xent_job *job = arg;
    int64_t rows = lora_rows_per_task(job->H), end = lora_min_i64(job->M, (task + 1) * rows);
    for (int64_t m = task * rows; m < end; m++)
        if (job->loss->loss_weight[m] == 0.0f) memset(lora_mat_row(job->dx, m), 0, (size_t)job->H * sizeof(float));
}

static void row_task(void *arg, int64_t r, int worker) {
    const xent_job *job = arg;
    int64_t m = job->index[r];
    job->sums[r] = lora_head_pass_row(&job->pass, r);
    if (job->dx.data)
        lora_head_pass_gradient(&job->pass, r, &job->sums[r], job->loss->grad_scale * job->loss->loss_weight[m], lora_mat_row(job->dx, m),
                                job->buffers + worker * job->H);
}

/* Fills index with the next weighted rows; returns the row to go on from. */
static int64_t next_chunk(xent_job *job, int64_t m) {
    for (job->n_rows = 0; m < job->M && job->n_rows < LORA_HEAD_ROWS; m++)
        if (job->loss->loss_weight[m] != 0.0f) {
            job->index[job->n_rows] = m;
            job->chunk_targets[job->n_rows++] = job->loss->targets[m];
        }
    bool contiguous = job->n_rows > 0 && job->index[job->n_rows - 1] - job->index[0] == job->n_rows - 1;
    job->chunk_x = contiguous ? lora_mat_row(job->x, job->index[0]) : job->x_rows;
    job->chunk_ldx = contiguous ? job->x.ld : job->H;
    if (!contiguous)
        for (int64_t r = 0; r < job->n_rows; r++)
            memcpy(job->x_rows + r * job->H, lora_mat_row(job->x, job->index[r]), (size_t)job->H * sizeof(float));
    return m;
}

/* Logits of a slice become their gradient: factor * (softmax - onehot) * slope. */
static void slice_task(void *arg, int64_t r, int worker) {
    const xent_job *job = arg;
    int64_t n = job->n_cols, target = job->chunk_targets[r] - job->first_col;
    float *logits = job->slice + r * SLICE, *capped = job->capped + worker * SLICE;
    float factor = job->loss->grad_scale * job->loss->loss_weight[job->index[r]], softcap = job->loss->map.softcap;
    if (softcap > 0) {
        job->kernels->softcap_forward(n, softcap, logits);
        memcpy(capped, logits, (size_t)n * sizeof(float));
    }
    (void)job->kernels->exp_sum(n, (float)job->sums[r].log_sum, logits);
    job->kernels->scale(n, factor, logits, logits);
    if (target >= 0 && target < n) logits[target] = (float)(-(double)factor * job->sums[r].others);
    if (softcap > 0) job->kernels->softcap_backward(n, softcap, capped, logits);
}

static lora_status weight_gradient(lora_ctx *ctx, xent_job *job, lora_error *err) {
    int64_t n = job->n_rows, H = job->H;
    lora_weight x = lora_weight_f32(job->chunk_x, n, H, job->chunk_ldx);
    for (job->first_col = 0; job->first_col < job->V; job->first_col += SLICE) {
        job->n_cols = lora_min_i64(SLICE, job->V - job->first_col);
        lora_weight rows;
        LORA_TRY(lora_weight_rows(job->w, job->first_col, job->n_cols, &rows, err));
        lora_gemm_args logits = {.m = n,
                                 .n = job->n_cols,
                                 .k = H,
                                 .alpha = job->loss->map.scale,
                                 .a = job->chunk_x,
                                 .a_row_stride = job->chunk_ldx,
                                 .a_col_stride = 1,
                                 .b = &rows,
                                 .b_transposed = true,
                                 .c = job->slice,
                                 .ldc = SLICE};
        LORA_TRY(lora_gemm(ctx, &logits, err));
        lora_parallel_for(ctx->engine->pool, n, slice_task, job);
        lora_gemm_args gradient = {.m = job->n_cols,
                                   .n = H,
                                   .k = n,
                                   .alpha = job->loss->map.scale,
                                   .a = job->slice,
                                   .a_row_stride = 1,
                                   .a_col_stride = SLICE,
                                   .b = &x,
                                   .b_transposed = false,
                                   .c = job->dW + job->first_col * H,
                                   .ldc = H,
                                   .accumulate = true};
        LORA_TRY(lora_gemm(ctx, &gradient, err));
    }
    return LORA_OK;
}

/* Points the chunk buffers of job behind each other from base on, NULL: none. trains: its head. Returns their bytes. */
static int64_t lay_chunk(xent_job *job, bool trains, int64_t rows, int64_t threads, char *base) {
    int64_t bytes[] = {rows * (int64_t)sizeof(int64_t),
                       rows * (int64_t)sizeof(lora_head_row),
                       rows * (int64_t)sizeof(int32_t),
                       rows * job->H * 4,
                       threads * job->H * 4,
                       trains ? rows * SLICE * 4 : 0,
                       trains ? threads * SLICE * 4 : 0};
    void **to[] = {(void **)&job->index,   (void **)&job->sums,  (void **)&job->chunk_targets, (void **)&job->x_rows,
                   (void **)&job->buffers, (void **)&job->slice, (void **)&job->capped};
    int64_t at = 0;
    for (int i = 0; i < 7; i++) {
        *to[i] = base ? base + at : NULL;
        at += lora_round_up(bytes[i], LORA_ALIGN);
    }
    return at;
}

static int64_t most_rows(int64_t M) { return lora_max_i64(1, lora_min_i64(M, LORA_HEAD_ROWS)); }

static lora_status chunk_buffers(lora_ctx *ctx, xent_job *job, lora_error *err) {
    int64_t rows = most_rows(job->M), threads = lora_pool_threads(ctx->engine->pool);
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_XENT, (size_t)lay_chunk(job, job->dW != NULL, rows, threads, NULL), &scratch, err));
    lay_chunk(job, job->dW != NULL, rows, threads, scratch);
    const lora_loss_head head = {.w = job->w, .map = job->loss->map, .gradient = job->dx.data != NULL, .trains = job->dW != NULL};
    return lora_head_pass_create(ctx, &head, rows, &job->pass, err);
}

int64_t lora_head_scratch(const lora_ctx *ctx, int64_t M, const lora_loss_head *head) {
    xent_job job = {.H = head->w->cols};
    return lora_head_pass_bytes(ctx, head, most_rows(M)) +
           lay_chunk(&job, head->trains, most_rows(M), lora_pool_threads(ctx->engine->pool), NULL);
}

static void report_cost(lora_ctx *ctx, const xent_job *job, int64_t began, double rows) {
    double products = 1 + (job->dx.data ? 1 : 0) + (job->dW ? 2 : 0), V = (double)job->V, H = (double)job->H;
    double chunks = ceil(rows / LORA_HEAD_ROWS);
    double bytes = chunks * lora_profile_weight_bytes(job->w) + 4 * rows * (job->dx.data ? 2 : 1) * H + (job->dW ? 8 * V * H : 0);
    lora_profile_end(ctx, LORA_OP_HEAD_AND_LOSS, began, 2 * products * rows * V * H, bytes);
}

lora_status lora_cpu_linear_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                          lora_error *err) {
    LORA_TRY(check_targets(x.rows, loss, w->rows, err));
    xent_job job = {.kernels = &ctx->engine->kernels.rowwise,
                    .M = x.rows,
                    .V = w->rows,
                    .H = w->cols,
                    .x = x,
                    .dx = dx,
                    .w = w,
                    .loss = loss,
                    .dW = dW};
    LORA_TRY(chunk_buffers(ctx, &job, err));
    if (dx.data) lora_parallel_for(ctx->engine->pool, lora_div_up(job.M, lora_rows_per_task(job.H)), clear_task, &job);
    if (loss->token_loss) memset(loss->token_loss, 0, (size_t)job.M * sizeof(float));
    double sum = 0.0, weighted = 0.0;
    int64_t began = lora_profile_begin(ctx);
    for (int64_t m = 0; m < job.M;) {
        m = next_chunk(&job, m);
        if (job.n_rows == 0) break;
        lora_head_pass_run(ctx, &job.pass, job.n_rows, job.chunk_x, job.chunk_ldx, job.chunk_targets);
        lora_parallel_for(ctx->engine->pool, job.n_rows, row_task, &job);
        if (dW) LORA_TRY(weight_gradient(ctx, &job, err));
        weighted += (double)job.n_rows;
        for (int64_t r = 0; r < job.n_rows; r++) {
            sum += (double)loss->loss_weight[job.index[r]] * job.sums[r].loss;
            if (loss->token_loss) loss->token_loss[job.index[r]] = (float)job.sums[r].loss;
        }
    }
    report_cost(ctx, &job, began, weighted);
    *loss->loss_sum = sum;
    return LORA_OK;
}
