/* AdamW and the squared gradient norm, each in one parallel pass over every array. */
#include <math.h>

#include "lora_c/optim.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

enum { ADAMW_ELEMENTS = 16384, SQUARES_ELEMENTS = 65536 }; /* per task; a task lies in one array */

/* --- from tasks to arrays --- */

/* Where an array begins: its first task, and its first element among those of all arrays. */
typedef struct array_start {
    int64_t task, element;
} array_start;

/* starts has an entry more than there are arrays: the ends. */
static void find_starts(int64_t n_params, const lora_param *params, int64_t elements_per_task, array_start *starts) {
    starts[0] = (array_start){.task = 0, .element = 0};
    for (int64_t i = 0; i < n_params; i++)
        starts[i + 1] =
            (array_start){.task = starts[i].task + lora_div_up(params[i].n, elements_per_task), .element = starts[i].element + params[i].n};
}

/* The array that a task belongs to: the last one that begins at it or before; empty arrays have no tasks. */
static int64_t array_of(const array_start *starts, int64_t n_params, int64_t task) {
    int64_t low = 0, high = n_params;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (starts[middle].task <= task)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* --- AdamW --- */

typedef struct adamw_job {
    const lora_rowwise_kernels *kernels;
    int64_t n_params;
    const lora_param *params;
    const array_start *starts;
    float *m, *v;
    lora_adamw_constants constants; /* their decay is that of arrays with decay */
} adamw_job;

static void adamw_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const adamw_job *job = arg;
    int64_t index = array_of(job->starts, job->n_params, task);
    const lora_param *param = &job->params[index];
    const array_start *start = &job->starts[index];
    int64_t i = (task - start->task) * ADAMW_ELEMENTS, count = lora_min_i64(ADAMW_ELEMENTS, param->n - i);
    lora_adamw_constants constants = job->constants;
    if (!param->decay) constants.decay = 1.0f;
    job->kernels->adamw(count, param->data + i, param->grad + i, job->m + start->element + i, job->v + start->element + i, &constants);
}

static lora_adamw_constants constants_of(const lora_adamw_hyper *h) {
    double bias1 = 1.0 - pow(h->beta1, (double)h->step), bias2 = 1.0 - pow(h->beta2, (double)h->step);
    return (lora_adamw_constants){
        .grad_scale = (float)h->grad_scale,
        .decay = (float)(1.0 - h->lr * h->weight_decay),
        .beta1 = (float)h->beta1,
        .one_minus_beta1 = (float)(1.0 - h->beta1),
        .beta2 = (float)h->beta2,
        .one_minus_beta2 = (float)(1.0 - h->beta2),
        .step_size = (float)(h->lr / bias1),
        .sqrt_bias2 = (float)sqrt(bias2),
        .eps = (float)h->eps,
    };
}

lora_status lora_cpu_adamw_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v,
                                const lora_adamw_hyper *hyper, lora_error *err) {
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_REDUCE, (size_t)(n_params + 1) * sizeof(array_start), &scratch, err));
    array_start *starts = scratch;
    find_starts(n_params, params, ADAMW_ELEMENTS, starts);
    adamw_job job = {.kernels = &ctx->engine->kernels.rowwise,
                     .n_params = n_params,
                     .params = params,
                     .starts = starts,
                     .m = m,
                     .v = v,
                     .constants = constants_of(hyper)};
    lora_parallel_for(ctx->engine->pool, starts[n_params].task, adamw_task, &job);
    return LORA_OK;
}

/* --- norm --- */

typedef struct squares_job {
    const lora_rowwise_kernels *kernels;
    int64_t n_params;
    const lora_param *params;
    const array_start *starts;
    double *partial;
} squares_job;

static void squares_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const squares_job *job = arg;
    int64_t index = array_of(job->starts, job->n_params, task);
    const lora_param *param = &job->params[index];
    int64_t i = (task - job->starts[index].task) * SQUARES_ELEMENTS;
    job->partial[task] = job->kernels->sum_of_squares(lora_min_i64(SQUARES_ELEMENTS, param->n - i), param->grad + i);
}

/* First the chunks of each array, then the arrays. */
static double add_partial_sums(const squares_job *job) {
    double total = 0.0;
    for (int64_t i = 0; i < job->n_params; i++) {
        double sum = 0.0;
        for (int64_t t = job->starts[i].task; t < job->starts[i + 1].task; t++) sum += job->partial[t];
        total += sum;
    }
    return total;
}

lora_status lora_cpu_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err) {
    int64_t n_tasks = 0;
    for (int64_t i = 0; i < n_params; i++) n_tasks += lora_div_up(params[i].n, SQUARES_ELEMENTS);
    size_t starts_bytes = (size_t)(n_params + 1) * sizeof(array_start);
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_REDUCE, starts_bytes + (size_t)n_tasks * sizeof(double), &scratch, err));
    array_start *starts = scratch;
    find_starts(n_params, params, SQUARES_ELEMENTS, starts);
    squares_job job = {.kernels = &ctx->engine->kernels.rowwise,
                       .n_params = n_params,
                       .params = params,
                       .starts = starts,
                       .partial = (double *)((char *)scratch + starts_bytes)};
    lora_parallel_for(ctx->engine->pool, n_tasks, squares_task, &job);
    *sum = add_partial_sums(&job);
    return LORA_OK;
}
