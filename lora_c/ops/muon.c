/* Muon: matrix after matrix, with the momentum and the products of each in parallel. */
#include <math.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/optim_chunks.h"

/* One matrix with its work: r <= s are its sides. */
typedef struct muon_job {
    const lora_kernels *kernels;
    const lora_muon_hyper *hyper;
    const lora_param *param;
    float *m;
    int64_t rows, cols, r, s;
    float *x, *y;       /* (r, s); y as the array lies, before and after the products */
    float *gram, *poly; /* (r, r) */
    double *partial;
} muon_job;

static void momentum_chunk(void *arg, const lora_chunk *c) {
    const muon_job *job = arg;
    const lora_muon_hyper *h = job->hyper;
    lora_muon_constants constants = {.grad_scale = (float)h->grad_scale,
                                     .momentum = (float)h->momentum,
                                     .one_minus_momentum = (float)(1.0 - h->momentum),
                                     .nesterov = h->nesterov};
    job->kernels->optim.muon_momentum(c->count, c->param->grad + c->first, job->m + c->first, job->y + c->first, &constants);
    job->partial[c->task] = job->kernels->rowwise.sum_of_squares(c->count, job->y + c->first);
}

enum { TILE = 32 };

/* to (cols, rows) = factor * from (rows, cols)^T, a band of rows of to for each task. */
typedef struct turn_job {
    const float *from;
    float *to, factor;
    int64_t rows, cols;
} turn_job;

static void turn_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const turn_job *t = arg;
    int64_t first = task * TILE, last = lora_min_i64(first + TILE, t->cols);
    for (int64_t i = 0; i < t->rows; i += TILE)
        for (int64_t c = first; c < last; c++)
            for (int64_t r = i; r < lora_min_i64(i + TILE, t->rows); r++) t->to[c * t->rows + r] = t->factor * t->from[r * t->cols + c];
}

static void turn(lora_ctx *ctx, const float *from, int64_t rows, int64_t cols, float factor, float *to) {
    turn_job job = {.from = from, .to = to, .factor = factor, .rows = rows, .cols = cols};
    lora_parallel_for(ctx->engine->pool, lora_div_up(cols, TILE), turn_task, &job);
}

/* c (m, n) = alpha * a (m, k) b, with b (n, k) turned round or (k, n). */
static lora_status product(lora_ctx *ctx, int64_t m, int64_t n, int64_t k, float alpha, const float *a, const float *b, bool b_transposed,
                           float *c, lora_error *err) {
    lora_weight w = b_transposed ? lora_weight_f32(b, n, k, k) : lora_weight_f32(b, k, n, n);
    lora_gemm_args args = {.m = m,
                           .n = n,
                           .k = k,
                           .alpha = alpha,
                           .a = a,
                           .a_row_stride = k,
                           .a_col_stride = 1,
                           .b = &w,
                           .b_transposed = b_transposed,
                           .c = c,
                           .ldc = n,
                           .exact = true};
    return lora_gemm(ctx, &args, err);
}

/* y = a x, or y += a x; (rows, cols) all of them. */
static lora_status scale(lora_ctx *ctx, int64_t rows, int64_t cols, float a, const float *x, float *y, bool accumulate, lora_error *err) {
    return lora_cpu_scale_rows(ctx, a, lora_mat_f32(x, rows, cols, cols), lora_mat_f32(y, rows, cols, cols), accumulate, err);
}

/* x = a x + (b G + c G G) x with G = x x^T, ns_steps times. */
static lora_status newton_schulz(lora_ctx *ctx, muon_job *job, lora_error *err) {
    const lora_muon_hyper *h = job->hyper;
    int64_t r = job->r, s = job->s;
    for (int64_t i = 0; i < h->ns_steps; i++) {
        LORA_TRY(product(ctx, r, r, s, 1.0f, job->x, job->x, true, job->gram, err));
        LORA_TRY(product(ctx, r, r, r, (float)h->c, job->gram, job->gram, false, job->poly, err));
        LORA_TRY(scale(ctx, r, r, (float)h->b, job->gram, job->poly, true, err));
        LORA_TRY(product(ctx, r, s, r, 1.0f, job->poly, job->x, false, job->y, err));
        LORA_TRY(scale(ctx, r, s, (float)h->a, job->x, job->y, true, err));
        float *old = job->x;
        job->x = job->y;
        job->y = old;
    }
    return LORA_OK;
}

static void step_chunk(void *arg, const lora_chunk *c) {
    const muon_job *job = arg;
    const lora_muon_hyper *h = job->hyper;
    double lr = h->lr * c->param->lr_ratio, rows = (double)job->rows, cols = (double)job->cols;
    double ratio = h->match_rms_adamw ? 0.2 * sqrt(fmax(rows, cols)) : sqrt(fmax(1.0, rows / cols));
    float decay = c->param->decay ? (float)(1.0 - lr * h->weight_decay) : 1.0f;
    job->kernels->optim.decayed_step(c->count, c->param->data + c->first, job->y + c->first, decay, (float)(lr * ratio));
}

static lora_status step_matrix(lora_ctx *ctx, muon_job *job, lora_error *err) {
    lora_chunks chunks;
    void *partial;
    LORA_TRY(lora_chunks_make(ctx, 1, job->param, LORA_OPTIM_ELEMENTS, false, sizeof(double), &chunks, &partial, err));
    job->partial = partial;
    lora_each_chunk(ctx, &chunks, momentum_chunk, job);
    double norm = sqrt(lora_chunk_sum(&chunks, 0, partial));
    bool turned = job->rows > job->cols;
    float factor = (float)(1.0 / fmax(norm, job->hyper->eps));
    if (turned) /* the short side comes first */
        turn(ctx, job->y, job->rows, job->cols, factor, job->x);
    else
        LORA_TRY(scale(ctx, job->rows, job->cols, factor, job->y, job->x, false, err));
    LORA_TRY(newton_schulz(ctx, job, err));
    if (turned)
        turn(ctx, job->x, job->r, job->s, 1.0f, job->y);
    else
        job->y = job->x;
    LORA_TRY(lora_chunks_make(ctx, 1, job->param, LORA_OPTIM_ELEMENTS, false, sizeof(double), &chunks, &partial, err));
    lora_each_chunk(ctx, &chunks, step_chunk, job);
    return LORA_OK;
}

lora_status lora_cpu_muon_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper,
                               lora_error *err) {
    int64_t most = 0, square = 0;
    for (int64_t i = 0; i < n_params; i++) {
        int64_t r = lora_min_i64(params[i].cols, params[i].n / params[i].cols);
        most = lora_max_i64(most, lora_round_up(params[i].n, LORA_ALIGN));
        square = lora_max_i64(square, lora_round_up(r * r, LORA_ALIGN));
    }
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_OPTIM, (size_t)(2 * most + 2 * square) * sizeof(float), &scratch, err));
    for (int64_t i = 0; i < n_params; m += params[i++].n) {
        if (params[i].n == 0) continue;
        int64_t cols = params[i].cols, rows = params[i].n / cols;
        muon_job job = {.kernels = &ctx->engine->kernels, .hyper = hyper, .param = &params[i], .m = m, .rows = rows, .cols = cols};
        job.r = lora_min_i64(rows, cols);
        job.s = lora_max_i64(rows, cols);
        job.x = scratch;
        job.y = job.x + most;
        job.gram = job.y + most;
        job.poly = job.gram + square;
        LORA_TRY(step_matrix(ctx, &job, err));
    }
    return LORA_OK;
}
