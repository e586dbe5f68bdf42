/* Trained rows of a frozen embedding. The embedding matrix that the decoder holds is a copy made for this: its rows are
 * overwritten before each pass, and its gradient only passes through to the rows. A tied head, which reads the same copy,
 * sees the rows and adds its share of the gradient. */
#include <string.h>

#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"

static lora_status check_rows(const lora_decoder *d, int64_t n, const int32_t *ids, const float *rows, const float *grad,
                              lora_error *err) {
    const lora_matrix *e = lora_global(d, LORA_EMBED_TOKENS);
    LORA_CHECK(ids && rows && grad, err, LORA_EINVAL, "token rows: expected ids, rows and a gradient, got NULL");
    LORA_CHECK(e->set && e->w.kind == LORA_WEIGHT_F32 && e->dW && e->w.dense.ld == e->w.cols, err, LORA_EINVAL,
               "token rows: expected embed_tokens as a trained float32 matrix, got another; give it a copy first");
    LORA_CHECK(n >= 1 && n <= d->config.vocab_size, err, LORA_ESHAPE, "token rows: expected 1 to %lld, got %lld",
               (long long)d->config.vocab_size, (long long)n);
    for (int64_t i = 0; i < n; i++)
        LORA_CHECK(ids[i] >= 0 && ids[i] < d->config.vocab_size, err, LORA_EINVAL, "token rows: expected ids 0 to %lld, got %d at index %lld",
                   (long long)d->config.vocab_size - 1, (int)ids[i], (long long)i);
    return LORA_OK;
}

lora_status lora_decoder_set_token_rows(lora_decoder *d, int64_t n, const int32_t *ids, const float *rows, float *grad, lora_error *err) {
    int64_t *copy = NULL;
    if (n > 0) {
        LORA_TRY(check_rows(d, n, ids, rows, grad, err));
        copy = lora_mem_alloc(&d->ctx->engine->mem, LORA_MEM_SCRATCH, (size_t)n * sizeof *copy);
        LORA_CHECK(copy, err, LORA_ENOMEM, "token rows: expected %zu bytes for their ids, got none", (size_t)n * sizeof *copy);
        for (int64_t i = 0; i < n; i++) copy[i] = ids[i];
    }
    int64_t *old = d->token_rows.ids;
    d->token_rows = (lora_token_rows){.n = n > 0 ? n : 0, .ids = copy, .rows = rows, .grad = grad};
    lora_mem_free(&d->ctx->engine->mem, old);
    return LORA_OK;
}

/* The embedding may have been replaced since, even by the rows themselves: then there is nothing to keep in step. */
static float *target(const lora_decoder *d) {
    const lora_matrix *e = lora_global(d, LORA_EMBED_TOKENS);
    return d->token_rows.n > 0 && e->dW && e->dW != d->token_rows.grad ? (float *)(uintptr_t)e->w.dense.data : NULL; /* a trained matrix is the caller's to change */
}

lora_status lora_write_token_rows(lora_decoder *d, lora_error *err) {
    const lora_token_rows *t = &d->token_rows;
    float *embedding = target(d);
    int64_t V = d->config.vocab_size, H = d->config.hidden_size;
    if (!embedding) return LORA_OK;
    return lora_copy_rows(d->ctx, lora_mat_f32(t->rows, t->n, H, H), NULL, lora_mat_f32(embedding, V, H, H), t->ids, false, err);
}

void lora_drop_token_gradients(lora_decoder *d) {
    if (target(d))
        memset(lora_global(d, LORA_EMBED_TOKENS)->dW, 0, (size_t)(d->config.vocab_size * d->config.hidden_size) * sizeof(float));
}

lora_status lora_collect_token_rows(lora_decoder *d, bool complete, lora_error *err) {
    const lora_token_rows *t = &d->token_rows;
    int64_t V = d->config.vocab_size, H = d->config.hidden_size;
    lora_mat dE = lora_mat_f32(lora_global(d, LORA_EMBED_TOKENS)->dW, V, H, H), grad = lora_mat_f32(t->grad, t->n, H, H);
    lora_status status = complete && target(d) ? lora_copy_rows(d->ctx, dE, t->ids, grad, NULL, true, err) : LORA_OK;
    lora_drop_token_gradients(d);
    return status;
}
