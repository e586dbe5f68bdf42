/* Trained rows of a frozen embedding. The embedding matrix that the decoder holds is a copy made for this: its rows are
 * overwritten before each pass, and its gradient only passes through to the rows. A tied head, which reads the same copy,
 * sees the rows and adds its share of the gradient. */
#include "lora_c/model/extras.h"

static lora_status check_rows(const lora_decoder *d, int64_t n, const int32_t *ids, const float *rows, const float *grad, lora_error *err) {
    const lora_matrix *e = lora_global(d, LORA_EMBED_TOKENS);
    LORA_CHECK(ids && rows && grad, err, LORA_EINVAL, "token rows: expected ids, rows and a gradient, got NULL");
    LORA_CHECK(e->set && e->w.kind == LORA_WEIGHT_F32 && e->dW && e->w.dense.ld == e->w.cols, err, LORA_EINVAL,
               "token rows: expected embed_tokens as a trained float32 matrix, got another; give it a copy first");
    LORA_CHECK(n >= 1 && n <= d->config.vocab_size, err, LORA_ESHAPE, "token rows: expected 1 to %lld, got %lld",
               (long long)d->config.vocab_size, (long long)n);
    for (int64_t i = 0; i < n; i++)
        LORA_CHECK(ids[i] >= 0 && ids[i] < d->config.vocab_size, err, LORA_EINVAL,
                   "token rows: expected ids 0 to %lld, got %d at index %lld", (long long)d->config.vocab_size - 1, (int)ids[i],
                   (long long)i);
    return LORA_OK;
}

/* Rows of one token would be written by several threads. */
static lora_status check_distinct(const lora_decoder *d, int64_t n, const int32_t *ids, lora_error *err) {
    size_t bytes = (size_t)d->config.vocab_size;
    uint8_t *seen = lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(seen, err, LORA_ENOMEM, "token rows: expected %zu bytes, got none", bytes);
    int64_t i = 0;
    while (i < n && !seen[ids[i]]) seen[ids[i++]] = 1;
    lora_host_free(d->ctx, seen);
    LORA_CHECK(i == n, err, LORA_EINVAL, "token rows: expected distinct ids, got %d twice", (int)ids[i]);
    return LORA_OK;
}

/* The ids as row numbers on the device. */
static lora_status send_ids(lora_decoder *d, int64_t n, const int32_t *ids, int64_t **out, lora_error *err) {
    size_t bytes = (size_t)n * sizeof **out;
    int64_t *host = lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, bytes);
    *out = host ? lora_ctx_alloc_uncleared(d->ctx, LORA_MEM_SCRATCH, bytes) : NULL;
    for (int64_t i = 0; host && i < n; i++) host[i] = ids[i];
    lora_status status = *out ? lora_upload(d->ctx, *out, host, bytes, err)
                              : lora_fail(err, LORA_ENOMEM, "token rows: expected %zu bytes for their ids, got none", bytes);
    if (status == LORA_OK) status = lora_sync(d->ctx, err); /* host is freed */
    lora_host_free(d->ctx, host);
    if (status != LORA_OK) lora_ctx_free(d->ctx, *out);
    return status;
}

lora_status lora_decoder_set_token_rows(lora_decoder *d, int64_t n, const int32_t *ids, const float *rows, float *grad, lora_error *err) {
    int64_t *copy = NULL;
    if (n > 0) {
        LORA_TRY(check_rows(d, n, ids, rows, grad, err));
        LORA_TRY(check_distinct(d, n, ids, err));
        LORA_TRY(send_ids(d, n, ids, &copy, err));
    }
    int64_t *old = d->token_rows.ids;
    d->token_rows = (lora_token_rows){.n = n > 0 ? n : 0, .ids = copy, .rows = rows, .grad = grad};
    lora_ctx_free(d->ctx, old);
    return LORA_OK;
}

void lora_free_token_rows(lora_decoder *d) { lora_ctx_free(d->ctx, d->token_rows.ids); }

/* The embedding may have been replaced since, even by the rows themselves: then there is nothing to keep in step. */
static bool in_step(const lora_decoder *d) {
    const lora_matrix *e = lora_global(d, LORA_EMBED_TOKENS);
    return d->token_rows.n > 0 && e->dW && e->dW != d->token_rows.grad;
}

static lora_mat of_embedding(const lora_decoder *d, const float *data) {
    return lora_mat_f32(data, d->config.vocab_size, d->config.hidden_size, d->config.hidden_size);
}

static lora_mat of_rows(const lora_decoder *d, const float *data) {
    return lora_mat_f32(data, d->token_rows.n, d->config.hidden_size, d->config.hidden_size);
}

/* A trained matrix is the caller's to change: the rows go into it. */
static lora_status before(lora_decoder *d, const lora_run *run, lora_error *err) {
    (void)run;
    if (!in_step(d)) return LORA_OK;
    lora_mat embedding = of_embedding(d, lora_global(d, LORA_EMBED_TOKENS)->w.dense.data);
    return lora_copy_rows(d->ctx, of_rows(d, d->token_rows.rows), NULL, embedding, d->token_rows.ids, false, err);
}

lora_status lora_drop_token_gradients(lora_decoder *d, lora_error *err) {
    if (!in_step(d)) return LORA_OK;
    float *dE = lora_global(d, LORA_EMBED_TOKENS)->dW;
    return lora_clear(d->ctx, dE, (size_t)(d->config.vocab_size * d->config.hidden_size) * sizeof *dE, err);
}

static lora_status after(lora_decoder *d, const lora_run *run, bool complete, lora_error *err) {
    if (!run->training || !in_step(d)) return LORA_OK;
    lora_mat dE = of_embedding(d, lora_global(d, LORA_EMBED_TOKENS)->dW);
    if (complete) LORA_TRY(lora_copy_rows(d->ctx, dE, d->token_rows.ids, of_rows(d, d->token_rows.grad), NULL, true, err));
    return lora_drop_token_gradients(d, err);
}

const lora_pass_hook lora_token_rows_hook = {.before = before, .after = after};
