#include "lora_c/ops/optim_chunks.h"

#include "lora_c/base/util.h"

static int64_t elements_per_task(const lora_chunks *c, const lora_param *param) {
    if (!c->whole_rows || param->cols == 0) return c->per_task;
    return lora_max_i64(1, c->per_task / param->cols) * param->cols;
}

static void find_starts(lora_chunks *c) {
    lora_array_start at = {0};
    for (int64_t i = 0; i < c->n_params; i++) {
        const lora_param *p = &c->params[i];
        c->starts[i] = at;
        at.task += lora_div_up(p->n, elements_per_task(c, p));
        at.element += p->n;
        at.block += lora_div_up(p->n, LORA_ADAMW8BIT_BLOCK);
        at.row += p->cols ? p->n / p->cols : 0;
        at.col += p->n == 0 ? 0 : p->cols ? p->cols : p->n;
    }
    c->starts[c->n_params] = at;
}

lora_status lora_chunks_make(lora_ctx *ctx, int64_t n_params, const lora_param *params, int64_t per_task, bool whole_rows,
                             size_t bytes_per_task, lora_chunks *out, void **more, lora_error *err) {
    *out = (lora_chunks){.n_params = n_params, .params = params, .per_task = per_task, .whole_rows = whole_rows};
    int64_t n_tasks = 0;
    for (int64_t i = 0; i < n_params; i++) n_tasks += lora_div_up(params[i].n, elements_per_task(out, &params[i]));
    size_t starts = (size_t)(n_params + 1) * sizeof *out->starts;
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_REDUCE, starts + (size_t)n_tasks * bytes_per_task, &scratch, err));
    out->starts = scratch;
    if (more) *more = (char *)scratch + starts;
    find_starts(out);
    return LORA_OK;
}

/* The array that a task belongs to: the last one that begins at it or before; empty arrays have no tasks. */
static int64_t array_of(const lora_chunks *c, int64_t task) {
    int64_t low = 0, high = c->n_params;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (c->starts[middle].task <= task)
            low = middle;
        else
            high = middle;
    }
    return low;
}

typedef struct each_job {
    const lora_chunks *chunks;
    lora_chunk_fn fn;
    void *job;
} each_job;

static void each_task(void *arg, int64_t task, int worker) {
    (void)worker;
    const each_job *each = arg;
    int64_t index = array_of(each->chunks, task);
    lora_chunk chunk = {.param = &each->chunks->params[index], .start = &each->chunks->starts[index], .index = index, .task = task};
    int64_t per_task = elements_per_task(each->chunks, chunk.param);
    chunk.first = (task - chunk.start->task) * per_task;
    chunk.count = lora_min_i64(per_task, chunk.param->n - chunk.first);
    each->fn(each->job, &chunk);
}

void lora_each_chunk(lora_ctx *ctx, const lora_chunks *chunks, lora_chunk_fn fn, void *job) {
    each_job each = {.chunks = chunks, .fn = fn, .job = job};
    lora_parallel_for(ctx->engine->pool, chunks->starts[chunks->n_params].task, each_task, &each);
}

double lora_chunk_sum(const lora_chunks *chunks, int64_t index, const double *partial) {
    double sum = 0.0;
    for (int64_t t = chunks->starts[index].task; t < chunks->starts[index + 1].task; t++) sum += partial[t];
    return sum;
}
