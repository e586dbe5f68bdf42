/* RMSNorm over packed tokens. */
#include <string.h>

#include "lora_c/nn.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

enum {
    PARTIAL_ROWS = 32,     /* rows whose dweight is summed by one task */
    COMBINE_COLUMNS = 256, /* columns combined by one task */
};

typedef struct norm_job {
    const lora_rowwise_kernels *kernels;
    int64_t M, H, rows_per_task;
    const float *x, *dy, *weight, *rstd;
    int64_t ldx, lddy;
    float eps;
    float *y, *rstd_out, *dx;
    int64_t ldy, lddx;
    bool accumulate_dx;
    float *partial, *dweight; /* partial (n_tasks, H) or NULL */
    int64_t n_partials;
} norm_job;

static void forward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const norm_job *job = arg;
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++) {
        float rstd = job->kernels->rmsnorm_forward(job->H, job->x + m * job->ldx, job->weight, job->eps,
                                                   job->y + m * job->ldy);
        if (job->rstd_out) job->rstd_out[m] = rstd;
    }
}

static void backward_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const norm_job *job = arg;
    float *dweight = job->partial ? job->partial + task * job->H : NULL;
    if (dweight) memset(dweight, 0, (size_t)job->H * sizeof(float));
    int64_t end = lora_min_i64(job->M, (task + 1) * job->rows_per_task);
    for (int64_t m = task * job->rows_per_task; m < end; m++)
        job->kernels->rmsnorm_backward(job->H, job->dy + m * job->lddy, job->x + m * job->ldx, job->weight,
                                       job->rstd[m], job->dx ? job->dx + m * job->lddx : NULL, job->accumulate_dx,
                                       dweight);
}

static void combine_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const norm_job *job = arg;
    int64_t begin = task * COMBINE_COLUMNS, count = lora_min_i64(COMBINE_COLUMNS, job->H - begin);
    for (int64_t p = 0; p < job->n_partials; p++)
        job->kernels->axpy(count, 1.0f, job->partial + p * job->H + begin, job->dweight + begin);
}

lora_status lora_rmsnorm_forward(lora_ctx *ctx, int64_t M, int64_t H, const float *x, int64_t ldx, const float *weight,
                                 float eps, float *y, int64_t ldy, float *rstd, lora_error *err) {
    LORA_CHECK(H >= 1, err, LORA_ESHAPE, "H: expected >= 1, got %" PRId64, H);
    LORA_CHECK(eps >= 0.0f, err, LORA_EINVAL, "eps: expected >= 0, got %g", (double)eps);
    lora_rows in = {"x", x, M, H, ldx}, w = {"weight", weight, 1, H, H}, out = {"y", y, M, H, ldy};
    LORA_TRY(lora_rows_check(in, err));
    LORA_TRY(lora_rows_check(w, err));
    LORA_TRY(lora_rows_check(out, err));
    LORA_TRY(lora_rows_disjoint(out, in, err));
    LORA_TRY(lora_rows_disjoint(out, w, err));
    if (rstd) {
        lora_rows r = {"rstd", rstd, 1, M, M};
        LORA_TRY(lora_rows_disjoint(r, in, err));
        LORA_TRY(lora_rows_disjoint(r, w, err));
        LORA_TRY(lora_rows_disjoint(r, out, err));
    }
    norm_job job = {.kernels = &ctx->kernels.rowwise, .M = M, .H = H, .rows_per_task = lora_rows_per_task(H),
                    .x = x, .ldx = ldx, .weight = weight, .eps = eps, .y = y, .ldy = ldy, .rstd_out = rstd};
    lora_parallel_for(ctx->pool, lora_div_up(M, job.rows_per_task), forward_task, &job);
    return LORA_OK;
}

static lora_status check_backward(int64_t M, int64_t H, const float *dy, int64_t lddy, const float *x, int64_t ldx,
                                  const float *weight, const float *rstd, float *dx, int64_t lddx, float *dweight,
                                  lora_error *err) {
    LORA_CHECK(H >= 1, err, LORA_ESHAPE, "H: expected >= 1, got %" PRId64, H);
    lora_rows in[] = {{"dy", dy, M, H, lddy}, {"x", x, M, H, ldx}, {"weight", weight, 1, H, H}, {"rstd", rstd, 1, M, M}};
    lora_rows out = {"dx", dx, M, H, lddx}, dw = {"dweight", dweight, 1, H, H};
    if (dx) LORA_TRY(lora_rows_check(out, err));
    for (int i = 0; i < 4; i++) {
        LORA_TRY(lora_rows_check(in[i], err));
        if (dx) LORA_TRY(lora_rows_disjoint(out, in[i], err));
        if (dweight) LORA_TRY(lora_rows_disjoint(dw, in[i], err));
    }
    if (dx && dweight) LORA_TRY(lora_rows_disjoint(dw, out, err));
    return LORA_OK;
}

lora_status lora_rmsnorm_backward(lora_ctx *ctx, int64_t M, int64_t H, const float *dy, int64_t lddy, const float *x,
                                  int64_t ldx, const float *weight, const float *rstd, float *dx, int64_t lddx,
                                  bool accumulate_dx, float *dweight, lora_error *err) {
    LORA_TRY(check_backward(M, H, dy, lddy, x, ldx, weight, rstd, dx, lddx, dweight, err));
    if (M == 0 || (!dx && !dweight)) return LORA_OK;
    norm_job job = {.kernels = &ctx->kernels.rowwise, .M = M, .H = H,
                    .rows_per_task = dweight ? PARTIAL_ROWS : lora_rows_per_task(H), .x = x, .ldx = ldx, .dy = dy,
                    .lddy = lddy, .weight = weight, .rstd = rstd, .dx = dx, .lddx = lddx,
                    .accumulate_dx = accumulate_dx, .dweight = dweight};
    int64_t n_tasks = lora_div_up(M, job.rows_per_task);
    if (dweight) {
        size_t bytes;
        void *partial;
        LORA_CHECK(lora_mul_size((size_t)n_tasks * sizeof(float), (size_t)H, &bytes), err, LORA_ENOMEM,
                   "dweight: expected partial sums that fit memory, got (%" PRId64 ", %" PRId64 ")", n_tasks, H);
        LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_REDUCE, bytes, &partial, err));
        job.partial = partial;
        job.n_partials = n_tasks;
    }
    lora_parallel_for(ctx->pool, n_tasks, backward_task, &job);
    if (dweight) lora_parallel_for(ctx->pool, lora_div_up(H, COMBINE_COLUMNS), combine_task, &job);
    return LORA_OK;
}
