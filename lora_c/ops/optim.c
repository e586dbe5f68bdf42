/* AdamW and the squared gradient norm. */
#include <math.h>

#include "lora_c/optim.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/profile.h"
#include "lora_c/ops/rows.h"

enum { ADAMW_ELEMENTS = 16384, SQUARES_ELEMENTS = 65536 }; /* per task */

typedef struct adamw_job {
    const lora_rowwise_kernels *kernels;
    int64_t n;
    float *p;
    const float *g;
    float *m, *v;
    lora_adamw_constants constants;
} adamw_job;

static void adamw_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const adamw_job *job = arg;
    int64_t i = task * ADAMW_ELEMENTS, count = lora_min_i64(ADAMW_ELEMENTS, job->n - i);
    job->kernels->adamw(count, job->p + i, job->g + i, job->m + i, job->v + i, &job->constants);
}

static lora_status check_hyper(const lora_adamw_hyper *h, lora_error *err) {
    LORA_CHECK(h->lr >= 0.0 && isfinite(h->lr), err, LORA_EINVAL, "lr: expected a finite value >= 0, got %g", h->lr);
    LORA_CHECK(h->beta1 >= 0.0 && h->beta1 < 1.0, err, LORA_EINVAL, "beta1: expected 0 <= beta1 < 1, got %g", h->beta1);
    LORA_CHECK(h->beta2 >= 0.0 && h->beta2 < 1.0, err, LORA_EINVAL, "beta2: expected 0 <= beta2 < 1, got %g", h->beta2);
    LORA_CHECK(h->eps >= 0.0 && isfinite(h->eps), err, LORA_EINVAL, "eps: expected a finite value >= 0, got %g", h->eps);
    LORA_CHECK(h->weight_decay >= 0.0 && isfinite(h->weight_decay), err, LORA_EINVAL,
               "weight_decay: expected a finite value >= 0, got %g", h->weight_decay);
    LORA_CHECK(h->step >= 1, err, LORA_EINVAL, "step: expected >= 1, got %" PRId64, h->step);
    return LORA_OK;
}

lora_status lora_adamw_step(lora_ctx *ctx, int64_t n, float *p, const float *g, float *m, float *v,
                            const lora_adamw_hyper *hyper, lora_error *err) {
    LORA_CHECK(hyper != NULL, err, LORA_EINVAL, "hyper: expected a pointer, got NULL");
    LORA_TRY(check_hyper(hyper, err));
    lora_arg all[] = {lora_named("p", lora_mat_vector(p, n)), lora_named("g", lora_mat_vector(g, n)),
                      lora_named("m", lora_mat_vector(m, n)), lora_named("v", lora_mat_vector(v, n))};
    for (int i = 0; i < 4; i++) {
        LORA_TRY(lora_mat_check(all[i], err));
        for (int j = 0; j < i; j++) LORA_TRY(lora_mat_disjoint(all[i], all[j], err));
    }
    double bias1 = 1.0 - pow(hyper->beta1, (double)hyper->step);
    double bias2 = 1.0 - pow(hyper->beta2, (double)hyper->step);
    adamw_job job = {
        .kernels = &ctx->engine->kernels.rowwise, .n = n, .p = p, .g = g, .m = m, .v = v,
        .constants = {
            .grad_scale = (float)hyper->grad_scale,
            .decay = (float)(1.0 - hyper->lr * hyper->weight_decay),
            .beta1 = (float)hyper->beta1, .one_minus_beta1 = (float)(1.0 - hyper->beta1),
            .beta2 = (float)hyper->beta2, .one_minus_beta2 = (float)(1.0 - hyper->beta2),
            .step_size = (float)(hyper->lr / bias1),
            .sqrt_bias2 = (float)sqrt(bias2),
            .eps = (float)hyper->eps,
        },
    };
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_for(ctx->engine->pool, lora_div_up(n, ADAMW_ELEMENTS), adamw_task, &job);
    lora_profile_end(ctx, LORA_OP_OPTIMIZER, began, 0, 28.0 * (double)n);
    return LORA_OK;
}

typedef struct squares_job {
    const lora_rowwise_kernels *kernels;
    int64_t n;
    const float *g;
    double *partial;
} squares_job;

static void squares_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const squares_job *job = arg;
    int64_t i = task * SQUARES_ELEMENTS;
    job->partial[task] = job->kernels->sum_of_squares(lora_min_i64(SQUARES_ELEMENTS, job->n - i), job->g + i);
}

lora_status lora_sum_of_squares(lora_ctx *ctx, int64_t n, const float *g, double *sum, lora_error *err) {
    LORA_CHECK(sum != NULL, err, LORA_EINVAL, "sum: expected a pointer, got NULL");
    LORA_TRY(lora_mat_check(lora_named("g", lora_mat_vector(g, n)), err));
    int64_t n_tasks = lora_div_up(n, SQUARES_ELEMENTS);
    void *partial;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_REDUCE, (size_t)n_tasks * sizeof(double), &partial, err));
    squares_job job = {&ctx->engine->kernels.rowwise, n, g, partial};
    int64_t began = lora_profile_begin(ctx);
    lora_parallel_for(ctx->engine->pool, n_tasks, squares_task, &job);
    lora_profile_end(ctx, LORA_OP_OPTIMIZER, began, 0, 4.0 * (double)n);
    double total = 0.0;
    for (int64_t t = 0; t < n_tasks; t++) total += job.partial[t];
    *sum = total;
    return LORA_OK;
}
