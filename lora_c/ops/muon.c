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
    float *x, *y;       /* (r, s); y first as the array lies */
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

/* y += a x over n elements. */
typedef struct add_job {
    const lora_rowwise_kernels *kernels;
    float a;
    const float *x;
    float *y;
    int64_t n;
} add_job;

static void add_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const add_job *j = arg;
    int64_t i = task * LORA_OPTIM_ELEMENTS;
    j->kernels->axpy(lora_min_i64(LORA_OPTIM_ELEMENTS, j->n - i), j->a, j->x + i, j->y + i);
}

static void add(lora_ctx *ctx, int64_t n, float a, const float *x, float *y) {
    add_job job = {.kernels = &ctx->engine->kernels.rowwise, .a = a, .x = x, .y = y, .n = n};
    lora_parallel_for(ctx->engine->pool, lora_div_up(n, LORA_OPTIM_ELEMENTS), add_task, &job);
}

/* x = a x + (b G + c G G) x with G = x x^T, ns_steps times. */
static lora_status newton_schulz(lora_ctx *ctx, muon_job *job, lora_error *err) {
    const lora_muon_hyper *h = job->hyper;
    int64_t r = job->r, s = job->s;
    for (int64_t i = 0; i < h->ns_steps; i++) {
        LORA_TRY(product(ctx, r, r, s, 1.0f, job->x, job->x, true, job->gram, err));
        LORA_TRY(product(ctx, r, r, r, (float)h->c, job->gram, job->gram, false, job->poly, err));
        add(ctx, r * r, (float)h->b, job->gram, job->poly);
        LORA_TRY(product(ctx, r, s, r, 1.0f, job->poly, job->x, false, job->y, err));
        add(ctx, r * s, (float)h->a, job->x, job->y);
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

static void scale_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const add_job *j = arg;
    int64_t i = task * LORA_OPTIM_ELEMENTS;
    j->kernels->scale(lora_min_i64(LORA_OPTIM_ELEMENTS, j->n - i), j->a, j->x + i, j->y + i);
}

/* to = factor * from, with the short side first where the array has the long one. */
static void lay(lora_ctx *ctx, const float *from, int64_t rows, int64_t cols, bool turned, float factor, float *to) {
    if (turned) {
        turn(ctx, from, rows, cols, factor, to);
        return;
    }
    add_job job = {.kernels = &ctx->engine->kernels.rowwise, .a = factor, .x = from, .y = to, .n = rows * cols};
    lora_parallel_for(ctx->engine->pool, lora_div_up(job.n, LORA_OPTIM_ELEMENTS), scale_task, &job);
}

static lora_status step_matrix(lora_ctx *ctx, muon_job *job, lora_error *err) {
    lora_chunks chunks;
    void *partial;
    LORA_TRY(lora_chunks_make(ctx, 1, job->param, LORA_OPTIM_ELEMENTS, false, sizeof(double), &chunks, &partial, err));
    job->partial = partial;
    lora_each_chunk(ctx, &chunks, momentum_chunk, job);
    double norm = sqrt(lora_chunk_sum(&chunks, 0, partial));
    bool turned = job->rows > job->cols;
    lay(ctx, job->y, job->rows, job->cols, turned, (float)(1.0 / fmax(norm, job->hyper->eps)), job->x);
    LORA_TRY(newton_schulz(ctx, job, err));
    lay(ctx, job->x, job->r, job->s, turned, 1.0f, job->y);
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
