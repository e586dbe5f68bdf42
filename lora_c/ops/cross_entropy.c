/* Head and loss in one: logits exist for one chunk of weighted rows at a time and become their own gradient in place. */
#include <math.h>
#include <string.h>

#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/rows.h"

enum {
    CHUNK_BYTES = 16 << 20, /* logits of one chunk; the products pack as much again */
    CHUNK_ROWS_MIN = 16,   /* fewer, and reading W once per chunk costs more than the products */
    CHUNK_ROWS_MAX = 256,  /* W is decoded once per chunk: a cost of about 15 rows */
};

typedef struct xent_job {
    const lora_rowwise_kernels *kernels;
    int64_t M, V, H;
    const float *x;
    int64_t ldx;
    const lora_weight *w;
    lora_logit_map map;
    const int32_t *targets;
    const float *loss_weight;
    float grad_scale;
    float *dx;
    int64_t lddx;
    float *dW;
    /* the chunk */
    int64_t n_rows, rows_per_task;
    bool contiguous; /* the rows lie behind each other in x, so x and dx are used as they are */
    int64_t *index;  /* (chunk) row numbers */
    double *loss;    /* (chunk) */
    float *logits, *x_rows, *dx_rows;
    float *capped;   /* (chunk, V) with a softcap: the logits that the gradient takes the place of */
} xent_job;

static int64_t chunk_rows(int64_t V) {
    int64_t rows = CHUNK_BYTES / (int64_t)sizeof(float) / V / CHUNK_ROWS_MIN * CHUNK_ROWS_MIN;
    return lora_max_i64(CHUNK_ROWS_MIN, lora_min_i64(CHUNK_ROWS_MAX, rows));
}

static void clear_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const xent_job *job = arg;
    int64_t rows = lora_rows_per_task(job->H), end = lora_min_i64(job->M, (task + 1) * rows);
    for (int64_t m = task * rows; m < end; m++)
        if (job->loss_weight[m] == 0.0f) memset(job->dx + m * job->lddx, 0, (size_t)job->H * sizeof(float));
}

static void loss_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const xent_job *job = arg;
    bool gradient = job->dx || job->dW;
    int64_t end = lora_min_i64(job->n_rows, (task + 1) * job->rows_per_task);
    for (int64_t r = task * job->rows_per_task; r < end; r++) {
        int64_t m = job->index[r];
        float *logits = job->logits + r * job->V, *capped = job->capped ? job->capped + r * job->V : NULL;
        if (job->map.softcap > 0) job->kernels->softcap_forward(job->V, job->map.softcap, logits);
        if (capped) memcpy(capped, logits, (size_t)job->V * sizeof(float));
        job->loss[r] = job->kernels->softmax_cross_entropy(job->V, logits, job->targets[m],
                                                           job->grad_scale * job->loss_weight[m], gradient);
        if (capped) job->kernels->softcap_backward(job->V, job->map.softcap, capped, logits);
    }
}

/* Fills index with the next weighted rows; returns the row to go on from. */
static int64_t next_chunk(xent_job *job, int64_t m, int64_t capacity) {
    for (job->n_rows = 0; m < job->M && job->n_rows < capacity; m++)
        if (job->loss_weight[m] != 0.0f) job->index[job->n_rows++] = m;
    job->contiguous = job->n_rows > 0 && job->index[job->n_rows - 1] - job->index[0] == job->n_rows - 1;
    return m;
}

static lora_status run_chunk(lora_ctx *ctx, xent_job *job, lora_error *err) {
    int64_t n = job->n_rows, V = job->V, H = job->H;
    const float *x = job->contiguous ? job->x + job->index[0] * job->ldx : job->x_rows;
    int64_t ldx = job->contiguous ? job->ldx : H;
    if (!job->contiguous)
        for (int64_t r = 0; r < n; r++)
            memcpy(job->x_rows + r * H, job->x + job->index[r] * job->ldx, (size_t)H * sizeof(float));

    lora_gemm_args forward = {.m = n, .n = V, .k = H, .alpha = job->map.scale, .a = x, .a_row_stride = ldx, .a_col_stride = 1,
                              .b = job->w, .b_transposed = true, .c = job->logits, .ldc = V};
    LORA_TRY(lora_gemm(ctx, &forward, err));
    lora_parallel_for(ctx->pool, lora_div_up(n, job->rows_per_task), loss_task, job);

    if (job->dx) {
        float *dx = job->contiguous ? job->dx + job->index[0] * job->lddx : job->dx_rows;
        lora_gemm_args input = {.m = n, .n = H, .k = V, .alpha = job->map.scale, .a = job->logits, .a_row_stride = V,
                                .a_col_stride = 1, .b = job->w, .b_transposed = false, .c = dx,
                                .ldc = job->contiguous ? job->lddx : H};
        LORA_TRY(lora_gemm(ctx, &input, err));
        if (!job->contiguous)
            for (int64_t r = 0; r < n; r++)
                memcpy(job->dx + job->index[r] * job->lddx, job->dx_rows + r * H, (size_t)H * sizeof(float));
    }
    if (job->dW) {
        lora_weight rows = {.kind = LORA_WEIGHT_F32, .rows = n, .cols = H, .ld = ldx, .data = x};
        lora_gemm_args weight = {.m = V, .n = H, .k = n, .alpha = job->map.scale, .a = job->logits, .a_row_stride = 1,
                                 .a_col_stride = V, .b = &rows, .b_transposed = false, .c = job->dW, .ldc = H,
                                 .accumulate = true};
        LORA_TRY(lora_gemm(ctx, &weight, err));
    }
    return LORA_OK;
}

static lora_status check(int64_t M, const float *x, int64_t ldx, const lora_weight *w, lora_logit_map map, const int32_t *targets,
                         const float *loss_weight, const double *loss_sum, const float *token_loss, const float *dx,
                         int64_t lddx, const float *dW, lora_error *err) {
    LORA_TRY(lora_rows_check_weight("w", w, err));
    LORA_CHECK(map.scale > 0 && map.scale < INFINITY && map.softcap >= 0 && map.softcap < INFINITY, err, LORA_EINVAL,
               "map: expected a scale > 0 and a softcap >= 0, got %g and %g", (double)map.scale, (double)map.softcap);
    LORA_CHECK(loss_sum != NULL, err, LORA_EINVAL, "loss_sum: expected a pointer, got NULL");
    int64_t V = w->rows, H = w->cols;
    lora_rows in[] = {{"x", x, M, H, ldx}, {"targets", targets, 1, M, M}, {"loss_weight", loss_weight, 1, M, M}};
    lora_rows weight = {"w", w->kind == LORA_WEIGHT_F32 ? w->data : NULL, V, H, w->ld};
    lora_rows out[] = {{"dx", dx, M, H, lddx}, {"dW", dW, V, H, H}, {"token_loss", token_loss, 1, M, M}};
    for (int i = 0; i < 3; i++) LORA_TRY(lora_rows_check(in[i], err));
    for (int o = 0; o < 3; o++) {
        if (!out[o].data) continue;
        LORA_TRY(lora_rows_check(out[o], err));
        LORA_TRY(lora_rows_disjoint(out[o], weight, err));
        for (int i = 0; i < 3; i++) LORA_TRY(lora_rows_disjoint(out[o], in[i], err));
        for (int i = 0; i < o; i++) LORA_TRY(lora_rows_disjoint(out[o], out[i], err));
    }
    for (int64_t m = 0; m < M; m++)
        LORA_CHECK(loss_weight[m] == 0.0f || (targets[m] >= 0 && targets[m] < V), err, LORA_EINVAL,
                   "targets: expected 0 <= targets[%" PRId64 "] < %" PRId64 ", got %" PRId32, m, V, targets[m]);
    return LORA_OK;
}

/* Points the chunk buffers of job into the scratch slot. */
static lora_status chunk_buffers(lora_ctx *ctx, xent_job *job, int64_t capacity, lora_error *err) {
    size_t logits, rows, small = (size_t)lora_round_up(capacity * (int64_t)sizeof(double), LORA_ALIGN);
    LORA_CHECK(lora_mul_size((size_t)capacity * sizeof(float), (size_t)job->V, &logits) &&
                   lora_mul_size((size_t)capacity * sizeof(float), (size_t)job->H, &rows) &&
                   logits < SIZE_MAX / 4 && rows < SIZE_MAX / 8,
               err, LORA_ENOMEM, "w: expected logits of %" PRId64 " rows that fit memory, got %" PRId64 " columns",
               capacity, job->V);
    logits = (size_t)lora_round_up((int64_t)logits, LORA_ALIGN);
    rows = (size_t)lora_round_up((int64_t)rows, LORA_ALIGN);
    void *scratch;
    size_t capped = job->map.softcap > 0 && (job->dx || job->dW) ? logits : 0;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_XENT, logits + 2 * rows + 2 * small + capped, &scratch, err));
    char *p = scratch;
    job->logits = (float *)p;
    job->x_rows = (float *)(p + logits);
    job->dx_rows = (float *)(p + logits + rows);
    job->loss = (double *)(p + logits + 2 * rows);
    job->index = (int64_t *)(p + logits + 2 * rows + small);
    job->capped = capped ? (float *)(p + logits + 2 * rows + 2 * small) : NULL;
    return LORA_OK;
}

lora_status lora_linear_cross_entropy(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, const lora_weight *w,
                                      lora_logit_map map, const int32_t *targets, const float *loss_weight, float grad_scale,
                                      double *loss_sum, float *token_loss, float *dx, int64_t lddx, float *dW,
                                      lora_error *err) {
    LORA_TRY(check(M, x, ldx, w, map, targets, loss_weight, loss_sum, token_loss, dx, lddx, dW, err));
    xent_job job = {.kernels = &ctx->kernels.rowwise, .M = M, .V = w->rows, .H = w->cols, .x = x, .ldx = ldx, .w = w,
                    .map = map, .targets = targets, .loss_weight = loss_weight, .grad_scale = grad_scale, .dx = dx, .lddx = lddx,
                    .dW = dW, .rows_per_task = lora_rows_per_task(w->rows)};
    int64_t capacity = chunk_rows(job.V);
    LORA_TRY(chunk_buffers(ctx, &job, capacity, err));
    if (dx) lora_parallel_for(ctx->pool, lora_div_up(M, lora_rows_per_task(job.H)), clear_task, &job);
    if (token_loss) memset(token_loss, 0, (size_t)M * sizeof(float));
    double sum = 0.0, rows = 0.0;
    int64_t began = lora_profile_begin(ctx);
    for (int64_t m = 0; m < M;) {
        m = next_chunk(&job, m, capacity);
        if (job.n_rows == 0) break;
        LORA_TRY(run_chunk(ctx, &job, err));
        rows += (double)job.n_rows;
        for (int64_t r = 0; r < job.n_rows; r++) {
            sum += (double)loss_weight[job.index[r]] * job.loss[r];
            if (token_loss) token_loss[job.index[r]] = (float)job.loss[r];
        }
    }
    double products = 1 + (dx ? 1 : 0) + (dW ? 1 : 0), V = (double)job.V, H = (double)job.H;
    double bytes = (dx ? 2 : 1) * lora_profile_weight_bytes(w) + 4 * rows * ((dx ? 2 : 1) * H + V) + (dW ? 8 * V * H : 0);
    lora_profile_end(ctx, LORA_OP_HEAD_AND_LOSS, began, 2 * products * rows * V * H, bytes);
    *loss_sum = sum;
    return LORA_OK;
}
