/* Runs with virtual tokens: the caller's tables with their rows in them, and the caller's rows out of what a pass has made. */
#include "lora_c/base/util.h"
#include "lora_c/model/pass.h"

typedef struct tables {
    int32_t *input_ids, *cu_seqlens, *targets; /* (M), (S + 1), (M) */
    float *loss_weight;                        /* (M) */
    float *values;                             /* (M, num_labels), or NULL: targets count */
} tables;

static tables lay(lora_carver *at, const lora_decoder_config *c, int64_t M, int64_t n_segments) {
    tables t;
    t.input_ids = lora_carve(at, M, sizeof *t.input_ids);
    t.cu_seqlens = lora_carve(at, n_segments + 1, sizeof *t.cu_seqlens);
    t.targets = lora_carve(at, M, sizeof *t.targets);
    t.loss_weight = lora_carve(at, M, sizeof *t.loss_weight);
    t.values = lora_has_values(c) ? lora_carve(at, M, (size_t)c->num_labels * sizeof *t.values) : NULL;
    return t;
}

/* Memory for them, which grows only. */
static lora_status make_tables(lora_decoder *d, int64_t M, int64_t n_segments, tables *out, lora_error *err) {
    lora_carver at = {.base = NULL};
    (void)lay(&at, &d->config, M, n_segments);
    if (at.used > d->with_virtual_bytes) {
        void *old = d->with_virtual;
        d->with_virtual_bytes = 0;
        d->with_virtual = NULL;
        lora_host_free(d->ctx, old);
        d->with_virtual = lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, at.used);
        LORA_CHECK(d->with_virtual, err, LORA_ENOMEM, "batch: expected %zu bytes for the tables of %lld tokens, got none", at.used,
                   (long long)M);
        d->with_virtual_bytes = at.used;
    }
    at = (lora_carver){.base = d->with_virtual};
    *out = lay(&at, &d->config, M, n_segments);
    return LORA_OK;
}

/* One row of the caller, or with from < 0 one of a virtual token, which has no loss and whose id is not looked at. */
static void fill_row(const lora_decoder *d, const lora_run *run, tables *t, int64_t to, int64_t from) {
    bool real = from >= 0, with_loss = real && run->wants_loss;
    int64_t labels = t->values ? d->config.num_labels : 0;
    t->input_ids[to] = real ? run->input_ids[from] : 0;
    t->targets[to] = with_loss && !t->values ? run->targets[from] : 0;
    t->loss_weight[to] = with_loss ? run->loss_weight[from] : 0.0f;
    for (int64_t i = 0; i < labels; i++) t->values[to * labels + i] = with_loss ? run->values[from * labels + i] : 0.0f;
}

static void fill(const lora_decoder *d, const lora_run *run, tables *t) {
    int64_t m = 0;
    t->cu_seqlens[0] = 0;
    for (int64_t s = 0; s < run->n_segments; s++) {
        int64_t n = lora_virtual_before(d, run, s);
        while (n-- > 0) fill_row(d, run, t, m++, -1);
        for (int64_t from = run->cu_seqlens[s]; from < run->cu_seqlens[s + 1]; from++) fill_row(d, run, t, m++, from);
        t->cu_seqlens[s + 1] = (int32_t)m;
    }
}

lora_status lora_add_virtual_tokens(lora_decoder *d, lora_run *run, lora_error *err) {
    tables t = {0};
    int64_t n = 0;
    for (int64_t s = 0; s < run->n_segments; s++) n += lora_virtual_before(d, run, s);
    run->n_virtual = n;
    if (n == 0) return LORA_OK;
    LORA_CHECK(run->n_tokens + n < INT32_MAX, err, LORA_ESHAPE, "input_ids: expected 1 to %d tokens with the virtual ones, got %lld",
               INT32_MAX - 1, (long long)(run->n_tokens + n));
    LORA_TRY(make_tables(d, run->n_tokens + n, run->n_segments, &t, err));
    fill(d, run, &t);
    run->n_tokens += n;
    run->input_ids = t.input_ids;
    run->cu_seqlens = t.cu_seqlens;
    run->targets = t.targets;
    run->loss_weight = t.loss_weight;
    run->values = t.values;
    return LORA_OK;
}

lora_status lora_real_rows(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_mat x, float *out, lora_mat *rows,
                           lora_error *err) {
    *rows = x;
    if (run->n_virtual == 0) return LORA_OK;
    *rows = lora_mat_f32(out, run->n_tokens - run->n_virtual, x.cols, x.cols);
    return lora_copy_rows(d->ctx, x, b->tables.real_rows, *rows, NULL, false, err);
}
