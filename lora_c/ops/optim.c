/* The elementwise updates and the squared gradient norm, each in one parallel pass over every array. */
#include <math.h>

#include "lora_c/base/util.h"
#include "lora_c/nf4.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/optim_chunks.h"

enum { SQUARES_ELEMENTS = 65536 }; /* per task */

/* --- AdamW --- */

typedef struct adamw_job {
    const lora_kernels *kernels;
    const lora_adamw_hyper *hyper;
    float *m, *v;
    const lora_adamw8bit_state *state; /* in place of m and v */
    const lora_dynamic_search *search; /* for its m and v */
    double bias1;
    lora_adamw_constants constants; /* but what depends on the array */
} adamw_job;

static adamw_job adamw_job_of(lora_ctx *ctx, const lora_adamw_hyper *h) {
    double bias1 = 1.0 - pow(h->beta1, (double)h->step), bias2 = 1.0 - pow(h->beta2, (double)h->step);
    return (adamw_job){.kernels = &ctx->engine->kernels,
                       .hyper = h,
                       .bias1 = bias1,
                       .constants = {
                           .grad_scale = (float)h->grad_scale,
                           .beta1 = (float)h->beta1,
                           .one_minus_beta1 = (float)(1.0 - h->beta1),
                           .beta2 = (float)h->beta2,
                           .one_minus_beta2 = (float)(1.0 - h->beta2),
                           .sqrt_bias2 = (float)sqrt(bias2),
                           .eps = (float)h->eps,
                       }};
}

static lora_adamw_constants adamw_constants(const adamw_job *job, const lora_param *param) {
    lora_adamw_constants c = job->constants;
    double lr = job->hyper->lr * param->lr_ratio;
    c.decay = param->decay ? (float)(1.0 - lr * job->hyper->weight_decay) : 1.0f;
    c.step_size = (float)(lr / job->bias1);
    return c;
}

static void adamw_chunk(void *arg, const lora_chunk *c) {
    const adamw_job *job = arg;
    lora_adamw_constants constants = adamw_constants(job, c->param);
    int64_t at = c->start->element + c->first;
    job->kernels->rowwise.adamw(c->count, c->param->data + c->first, c->param->grad + c->first, job->m + at, job->v + at, &constants);
}

lora_status lora_cpu_adamw_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v,
                                const lora_adamw_hyper *hyper, lora_error *err) {
    lora_chunks chunks;
    LORA_TRY(lora_chunks_make(ctx, n_params, params, LORA_OPTIM_ELEMENTS, false, 0, &chunks, NULL, err));
    adamw_job job = adamw_job_of(ctx, hyper);
    job.m = m;
    job.v = v;
    lora_each_chunk(ctx, &chunks, adamw_chunk, &job);
    return LORA_OK;
}

/* --- AdamW with moments of 8 bits --- */

static void adamw8bit_chunk(void *arg, const lora_chunk *c) {
    enum { BLOCK = LORA_ADAMW8BIT_BLOCK };
    const adamw_job *job = arg;
    const lora_optim_kernels *k = &job->kernels->optim;
    const lora_adamw8bit_state *s = job->state;
    lora_adamw_constants constants = adamw_constants(job, c->param);
    for (int64_t i = 0; i < c->count; i += BLOCK) {
        float m[BLOCK], v[BLOCK];
        int64_t n = lora_min_i64(BLOCK, c->count - i), first = c->first + i, at = c->start->element + first;
        int64_t block = c->start->block + first / BLOCK;
        k->dynamic_decode(n, s->m + at, job->search[0].map, s->m_absmax[block], m);
        k->dynamic_decode(n, s->v + at, job->search[1].map, s->v_absmax[block], v);
        job->kernels->rowwise.adamw(n, c->param->data + first, c->param->grad + first, m, v, &constants);
        s->m_absmax[block] = k->dynamic_encode(n, m, &job->search[0], s->m + at);
        s->v_absmax[block] = k->dynamic_encode(n, v, &job->search[1], s->v + at);
    }
}

lora_status lora_cpu_adamw8bit_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state,
                                    const lora_adamw_hyper *hyper, lora_error *err) {
    lora_chunks chunks;
    LORA_TRY(lora_chunks_make(ctx, n_params, params, LORA_OPTIM_ELEMENTS, false, 0, &chunks, NULL, err));
    lora_dynamic_search search[2];
    lora_dynamic_search_fill(&search[0], lora_dynamic_map_signed());
    lora_dynamic_search_fill(&search[1], lora_dynamic_map_unsigned());
    adamw_job job = adamw_job_of(ctx, hyper);
    job.state = state;
    job.search = search;
    lora_each_chunk(ctx, &chunks, adamw8bit_chunk, &job);
    return LORA_OK;
}

/* --- SGD and Lion --- */

typedef struct sgd_job {
    const lora_optim_kernels *kernels;
    const lora_sgd_hyper *hyper;
    float *m;
} sgd_job;

static void sgd_chunk(void *arg, const lora_chunk *c) {
    const sgd_job *job = arg;
    const lora_sgd_hyper *h = job->hyper;
    lora_sgd_constants constants = {.grad_scale = (float)h->grad_scale,
                                    .weight_decay = c->param->decay ? (float)h->weight_decay : 0.0f,
                                    .momentum = (float)h->momentum,
                                    .one_minus_dampening = (float)(1.0 - h->dampening),
                                    .lr = (float)(h->lr * c->param->lr_ratio),
                                    .first = h->step == 1,
                                    .nesterov = h->nesterov};
    float *m = job->m ? job->m + c->start->element + c->first : NULL;
    job->kernels->sgd(c->count, c->param->data + c->first, c->param->grad + c->first, m, &constants);
}

lora_status lora_cpu_sgd_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper,
                              lora_error *err) {
    lora_chunks chunks;
    LORA_TRY(lora_chunks_make(ctx, n_params, params, LORA_OPTIM_ELEMENTS, false, 0, &chunks, NULL, err));
    sgd_job job = {.kernels = &ctx->engine->kernels.optim, .hyper = hyper, .m = m};
    lora_each_chunk(ctx, &chunks, sgd_chunk, &job);
    return LORA_OK;
}

typedef struct lion_job {
    const lora_optim_kernels *kernels;
    const lora_lion_hyper *hyper;
    float *m;
} lion_job;

static void lion_chunk(void *arg, const lora_chunk *c) {
    const lion_job *job = arg;
    const lora_lion_hyper *h = job->hyper;
    double lr = h->lr * c->param->lr_ratio;
    lora_lion_constants constants = {.grad_scale = (float)h->grad_scale,
                                     .decay = c->param->decay ? (float)(1.0 - lr * h->weight_decay) : 1.0f,
                                     .beta1 = (float)h->beta1,
                                     .one_minus_beta1 = (float)(1.0 - h->beta1),
                                     .beta2 = (float)h->beta2,
                                     .one_minus_beta2 = (float)(1.0 - h->beta2),
                                     .lr = (float)lr};
    float *m = job->m + c->start->element + c->first;
    job->kernels->lion(c->count, c->param->data + c->first, c->param->grad + c->first, m, &constants);
}

lora_status lora_cpu_lion_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper,
                               lora_error *err) {
    lora_chunks chunks;
    LORA_TRY(lora_chunks_make(ctx, n_params, params, LORA_OPTIM_ELEMENTS, false, 0, &chunks, NULL, err));
    lion_job job = {.kernels = &ctx->engine->kernels.optim, .hyper = hyper, .m = m};
    lora_each_chunk(ctx, &chunks, lion_chunk, &job);
    return LORA_OK;
}

/* --- norm --- */

typedef struct squares_job {
    const lora_rowwise_kernels *kernels;
    double *partial;
} squares_job;

static void squares_chunk(void *arg, const lora_chunk *c) {
    const squares_job *job = arg;
    job->partial[c->task] = job->kernels->sum_of_squares(c->count, c->param->grad + c->first);
}

lora_status lora_cpu_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err) {
    lora_chunks chunks;
    void *partial;
    LORA_TRY(lora_chunks_make(ctx, n_params, params, SQUARES_ELEMENTS, false, sizeof(double), &chunks, &partial, err));
    squares_job job = {.kernels = &ctx->engine->kernels.rowwise, .partial = partial};
    lora_each_chunk(ctx, &chunks, squares_chunk, &job);
    double total = 0.0;
    for (int64_t i = 0; i < n_params; i++) total += lora_chunk_sum(&chunks, i, partial);
    *sum = total;
    return LORA_OK;
}
