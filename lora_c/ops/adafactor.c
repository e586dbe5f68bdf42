/* Adafactor: means of squares, sums of the update's squares, the update; a pass over every array each.
 * An array that is no matrix is one row: its second moments are those of its columns, and its row has the factor 1. */
#include <math.h>

#include "lora_c/base/util.h"
#include "lora_c/ops/cpu_ops.h"
#include "lora_c/ops/optim_chunks.h"

enum { COLUMNS = 256 }; /* of a task that adds down the rows */

typedef struct adafactor_job {
    const lora_kernels *kernels;
    const lora_chunks *chunks;
    const lora_adafactor_state *state;
    const lora_adafactor_hyper *hyper;
    double beta2;
    double *partial;     /* (tasks): of the arrays' squares, then of the updates' */
    double *scale;       /* (n_params): root mean square of the array */
    double *update_rms;  /* (n_params): root mean square of its update */
    double *row_mean;    /* (n_params): of the second moments of its rows */
    float *col_factor;   /* (columns of all arrays): 1 / sqrt */
    const int64_t *band; /* (n_params + 1): the first band of columns of an array */
} adafactor_job;

static int64_t width_of(const lora_param *p) { return p->n == 0 ? 0 : p->cols ? p->cols : p->n; }

static float blend(float old, double beta2, double mean) { return (float)(beta2 * old + (1.0 - beta2) * mean); }

/* --- second moments --- */

static void rows_chunk(void *arg, const lora_chunk *c) {
    const adafactor_job *job = arg;
    const lora_param *p = c->param;
    if (job->hyper->scale_parameter) job->partial[c->task] = job->kernels->rowwise.sum_of_squares(c->count, p->data + c->first);
    if (!p->cols) return;
    float *row = job->state->row + c->start->row + c->first / p->cols;
    for (int64_t i = 0; i < c->count; i += p->cols, row++) {
        double sum = job->kernels->optim.shifted_squares(p->cols, p->grad + c->first + i, (float)job->hyper->grad_scale, job->hyper->eps1);
        *row = blend(*row, job->beta2, sum / (double)p->cols);
    }
}

static void columns_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const adafactor_job *job = arg;
    int64_t index = 0;
    while (job->band[index + 1] <= task) index++;
    const lora_param *p = &job->chunks->params[index];
    int64_t width = width_of(p), first = (task - job->band[index]) * COLUMNS, count = lora_min_i64(COLUMNS, width - first);
    double sums[COLUMNS] = {0}, rows = (double)(p->n / width);
    for (int64_t at = first; at < p->n; at += width)
        job->kernels->optim.add_shifted_squares(count, p->grad + at, (float)job->hyper->grad_scale, job->hyper->eps1, sums);
    int64_t at = job->chunks->starts[index].col + first;
    for (int64_t j = 0; j < count; j++) {
        float col = job->state->col[at + j] = blend(job->state->col[at + j], job->beta2, sums[j] / rows);
        job->col_factor[at + j] = (float)(1.0 / sqrt((double)col));
    }
}

static void finish_rows(adafactor_job *job) {
    for (int64_t i = 0; i < job->chunks->n_params; i++) {
        const lora_param *p = &job->chunks->params[i];
        const lora_array_start *start = &job->chunks->starts[i], *end = start + 1;
        if (job->hyper->scale_parameter && p->n) job->scale[i] = sqrt(lora_chunk_sum(job->chunks, i, job->partial) / (double)p->n);
        double sum = 0.0;
        for (int64_t r = start->row; r < end->row; r++) sum += job->state->row[r];
        job->row_mean[i] = sum / (double)lora_max_i64(1, end->row - start->row);
    }
}

/* --- the update --- */

/* What a row of the gradient is multiplied by first. */
static float row_factor(const adafactor_job *job, const lora_chunk *c, int64_t first) {
    if (!c->param->cols) return (float)job->hyper->grad_scale;
    double row = job->state->row[c->start->row + first / c->param->cols];
    return (float)(job->hyper->grad_scale / sqrt(row / job->row_mean[c->index]));
}

/* Calls a kernel for each row of a chunk, or for the whole chunk of an array that is no matrix. */
#define EACH_ROW(job, c, at, n, col)                                                                                                       \
    for (int64_t at = (c)->first, n = (c)->param->cols ? (c)->param->cols : (c)->count,                                                    \
                 col = (c)->start->col + ((c)->param->cols ? 0 : (c)->first);                                                              \
         at < (c)->first + (c)->count; at += n)

static void squares_chunk(void *arg, const lora_chunk *c) {
    const adafactor_job *job = arg;
    double sum = 0.0;
    EACH_ROW(job, c, at, n, col)
    sum += job->kernels->optim.adafactor_squares(n, c->param->grad + at, row_factor(job, c, at), job->col_factor + col);
    job->partial[c->task] = sum;
}

static void finish_squares(adafactor_job *job) {
    for (int64_t i = 0; i < job->chunks->n_params; i++) {
        int64_t n = job->chunks->params[i].n;
        if (n > 0) job->update_rms[i] = sqrt(lora_chunk_sum(job->chunks, i, job->partial) / (double)n);
    }
}

static double rate_of(const adafactor_job *job, int64_t index) {
    const lora_adafactor_hyper *h = job->hyper;
    double step = (double)h->step, rate = h->lr;
    if (h->relative_step) rate = fmin(h->warmup_init ? 1e-6 * step : 1e-2, 1.0 / sqrt(step));
    if (h->scale_parameter) rate *= fmax(h->eps2, job->scale[index]);
    return rate * job->chunks->params[index].lr_ratio;
}

static void update_chunk(void *arg, const lora_chunk *c) {
    const adafactor_job *job = arg;
    const lora_adafactor_hyper *h = job->hyper;
    const lora_param *p = c->param;
    double rate = rate_of(job, c->index), rms = job->update_rms[c->index];
    lora_adafactor_constants constants = {.lr = (float)(rate / fmax(1.0, rms / h->clip_threshold)),
                                          .beta1 = (float)h->beta1,
                                          .one_minus_beta1 = (float)(1.0 - h->beta1),
                                          .decay = p->decay ? (float)(1.0 - h->weight_decay * rate) : 1.0f};
    EACH_ROW(job, c, at, n, col) {
        constants.row = row_factor(job, c, at);
        float *m = job->state->m ? job->state->m + c->start->element + at : NULL;
        job->kernels->optim.adafactor(n, p->data + at, p->grad + at, m, job->col_factor + col, &constants);
    }
}

/* --- memory --- */

static int64_t find_bands(int64_t n_params, const lora_param *params, int64_t *band) {
    int64_t total = 0;
    for (int64_t i = 0; i < n_params; i++) {
        band[i] = total;
        total += lora_div_up(width_of(&params[i]), COLUMNS);
    }
    return band[n_params] = total;
}

/* Behind each other: bands, three numbers for each array, a factor for each column. */
static lora_status take_scratch(lora_ctx *ctx, int64_t n_params, const lora_param *params, adafactor_job *job, int64_t *bands,
                                lora_error *err) {
    int64_t columns = 0;
    for (int64_t i = 0; i < n_params; i++) columns += width_of(&params[i]);
    size_t heads = (size_t)(n_params + 1) * sizeof(int64_t), numbers = (size_t)n_params * sizeof(double);
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_OPTIM, heads + 3 * numbers + (size_t)columns * sizeof(float), &scratch, err));
    job->scale = (double *)(void *)((char *)scratch + heads);
    job->update_rms = job->scale + n_params;
    job->row_mean = job->update_rms + n_params;
    job->col_factor = (float *)(void *)(job->row_mean + n_params);
    *bands = find_bands(n_params, params, scratch);
    job->band = scratch;
    return LORA_OK;
}

lora_status lora_cpu_adafactor_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adafactor_state *state,
                                    const lora_adafactor_hyper *hyper, lora_error *err) {
    lora_chunks chunks;
    void *partial;
    int64_t bands;
    adafactor_job job = {.kernels = &ctx->engine->kernels, .chunks = &chunks, .state = state, .hyper = hyper};
    LORA_TRY(take_scratch(ctx, n_params, params, &job, &bands, err));
    LORA_TRY(lora_chunks_make(ctx, n_params, params, LORA_OPTIM_ELEMENTS, true, sizeof(double), &chunks, &partial, err));
    job.partial = partial;
    job.beta2 = 1.0 - pow((double)hyper->step, hyper->decay_rate);
    lora_each_chunk(ctx, &chunks, rows_chunk, &job);
    lora_parallel_for(ctx->engine->pool, bands, columns_task, &job);
    finish_rows(&job);
    lora_each_chunk(ctx, &chunks, squares_chunk, &job);
    finish_squares(&job);
    lora_each_chunk(ctx, &chunks, update_chunk, &job);
    return LORA_OK;
}
