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
    LORA_CHECK(e->set && e->w.kind == LORA_WEIGHT_F32 && e->dW && e->w.ld == e->w.cols, err, LORA_EINVAL,
               "token rows: expected embed_tokens as a trained float32 matrix, got another; give it a copy first");
    LORA_CHECK(n >= 1 && n <= d->config.vocab_size, err, LORA_ESHAPE, "token rows: expected 1 to %lld, got %lld",
               (long long)d->config.vocab_size, (long long)n);
    for (int64_t i = 0; i < n; i++)
        LORA_CHECK(ids[i] >= 0 && ids[i] < d->config.vocab_size, err, LORA_EINVAL, "token rows: expected ids 0 to %lld, got %d at index %lld",
                   (long long)d->config.vocab_size - 1, (int)ids[i], (long long)i);
    return LORA_OK;
}

lora_status lora_decoder_set_token_rows(lora_decoder *d, int64_t n, const int32_t *ids, const float *rows, float *grad, lora_error *err) {
    int32_t *copy = NULL;
    if (n > 0) {
        LORA_TRY(check_rows(d, n, ids, rows, grad, err));
        copy = lora_mem_alloc(&d->ctx->engine->mem, LORA_MEM_SCRATCH, (size_t)n * sizeof *copy);
        LORA_CHECK(copy, err, LORA_ENOMEM, "token rows: expected %zu bytes for their ids, got none", (size_t)n * sizeof *copy);
        memcpy(copy, ids, (size_t)n * sizeof *copy);
    }
    int32_t *old = d->token_rows.ids;
    d->token_rows = (lora_token_rows){n > 0 ? n : 0, copy, rows, grad};
    lora_mem_free(&d->ctx->engine->mem, old);
    return LORA_OK;
}

/* The embedding may have been replaced since, even by the rows themselves: then there is nothing to keep in step. */
static float *target(const lora_decoder *d) {
    const lora_matrix *e = lora_global(d, LORA_EMBED_TOKENS);
    return d->token_rows.n > 0 && e->dW && e->dW != d->token_rows.grad ? (float *)(uintptr_t)e->w.data : NULL; /* a trained matrix is the caller's to change */
}

void lora_write_token_rows(lora_decoder *d) {
    float *embedding = target(d);
    int64_t H = d->config.hidden_size;
    for (int64_t i = 0; embedding && i < d->token_rows.n; i++)
        memcpy(embedding + d->token_rows.ids[i] * H, d->token_rows.rows + i * H, (size_t)H * sizeof(float));
}

void lora_collect_token_rows(lora_decoder *d, bool complete) {
    if (!target(d)) return;
    int64_t H = d->config.hidden_size;
    float *dE = lora_global(d, LORA_EMBED_TOKENS)->dW;
    for (int64_t i = 0; complete && i < d->token_rows.n; i++)
        for (int64_t k = 0; k < H; k++) d->token_rows.grad[i * H + k] += dE[d->token_rows.ids[i] * H + k];
    memset(dE, 0, (size_t)(d->config.vocab_size * H) * sizeof(float));
}
