/* The KV cache: keys after RoPE and values of past tokens. */
#include "lora_c/base/util.h"
#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"

static lora_status cache_bytes(const lora_decoder *d, int64_t n_sequences, int64_t max_tokens, size_t *bytes,
                               lora_error *err) {
    LORA_CHECK(n_sequences > 0 && n_sequences < INT32_MAX, err, LORA_EINVAL, "n_sequences: expected 1 to %d, got %lld",
               INT32_MAX - 1, (long long)n_sequences);
    LORA_CHECK(max_tokens > 0 && max_tokens <= d->config.max_position_embeddings, err, LORA_EINVAL,
               "max_tokens: expected 1 to %lld (max_position_embeddings), got %lld",
               (long long)d->config.max_position_embeddings, (long long)max_tokens);
    size_t row = (size_t)lora_kv_width(&d->config) * sizeof(float), n = 2 * (size_t)d->config.num_hidden_layers;
    LORA_CHECK(lora_mul_size(row, n, bytes) && lora_mul_size(*bytes, (size_t)n_sequences, bytes) &&
                   lora_mul_size(*bytes, (size_t)max_tokens, bytes) && *bytes < SIZE_MAX / 2,
               err, LORA_ENOMEM, "max_tokens: expected a KV cache that fits the address space, got %lld sequences of %lld tokens",
               (long long)n_sequences, (long long)max_tokens);
    return LORA_OK;
}

lora_status lora_kv_cache_create(lora_decoder *d, int64_t n_sequences, int64_t max_tokens, lora_kv_cache **out,
                                 lora_error *err) {
    size_t bytes = 0;
    *out = NULL;
    LORA_TRY(cache_bytes(d, n_sequences, max_tokens, &bytes, err));
    lora_mem *mem = &d->ctx->engine->mem;
    float *data = lora_mem_alloc(mem, LORA_MEM_ACTIVATION, bytes); /* the larger one first */
    lora_kv_cache *c = data ? lora_mem_calloc(mem, LORA_MEM_ACTIVATION, sizeof *c + (size_t)n_sequences * sizeof *c->lengths) : NULL;
    if (!c) {
        lora_mem_free(mem, data);
        return lora_fail(err, LORA_ENOMEM, "max_tokens: expected %zu bytes for the KV cache, got none; use a smaller one",
                         bytes);
    }
    *c = (lora_kv_cache){d->shared, d, n_sequences, max_tokens, lora_kv_width(&d->config), (int64_t *)(c + 1), data};
    *out = c;
    return LORA_OK;
}

void lora_kv_cache_destroy(lora_kv_cache *c) {
    if (!c) return;
    lora_mem *mem = &c->ctx->engine->mem;
    lora_mem_free(mem, c->data);
    lora_mem_free(mem, c);
}

int64_t lora_kv_cache_sequences(const lora_kv_cache *c) { return c->n_sequences; }
int64_t lora_kv_cache_max_tokens(const lora_kv_cache *c) { return c->max_tokens; }
int64_t lora_kv_cache_length(const lora_kv_cache *c, int64_t sequence) {
    return sequence >= 0 && sequence < c->n_sequences ? c->lengths[sequence] : 0;
}

lora_status lora_kv_cache_truncate(lora_kv_cache *c, int64_t sequence, int64_t length, lora_error *err) {
    LORA_CHECK(sequence >= 0 && sequence < c->n_sequences, err, LORA_EINVAL, "sequence: expected 0 to %lld, got %lld",
               (long long)c->n_sequences - 1, (long long)sequence);
    LORA_CHECK(length >= 0 && length <= c->lengths[sequence], err, LORA_EINVAL, "length: expected 0 to %lld, got %lld",
               (long long)c->lengths[sequence], (long long)length);
    c->lengths[sequence] = length;
    return LORA_OK;
}

void lora_set_kv_rows(const lora_run *run, lora_buffers *b) {
    for (int64_t s = 0; s < run->n_segments; s++) {
        int64_t begin = run->cu_seqlens[s], end = run->cu_seqlens[s + 1], past = lora_past_tokens(run, s);
        b->kv_start[s] = run->cache ? run->sequences[s] * run->cache->max_tokens : begin;
        b->kv_length[s] = past + end - begin;
        for (int64_t m = begin; run->cache && m < end; m++) b->kv_rows[m] = b->kv_start[s] + past + m - begin;
    }
}

/* (n_sequences * max_tokens, KV) of one layer: keys (part 0) or values (part 1) */
static lora_mat layer_rows(const lora_kv_cache *c, int64_t layer, int64_t part) {
    int64_t rows = c->n_sequences * c->max_tokens;
    return lora_mat_f32(c->data + (layer * 2 + part) * rows * c->width, rows, c->width, c->width);
}

lora_status lora_kv_append(const lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, lora_kv *kv, lora_error *err) {
    int64_t M = run->n_tokens, width = run->cache->width;
    lora_mat keys = layer_rows(run->cache, layer, 0), values = layer_rows(run->cache, layer, 1);
    LORA_TRY(lora_copy_rows(d->ctx, lora_mat_f32(kv->k, M, width, kv->ldk), NULL, keys, b->kv_rows, false, err));
    LORA_TRY(lora_copy_rows(d->ctx, lora_mat_f32(kv->v, M, width, kv->ldv), NULL, values, b->kv_rows, false, err));
    kv->k = keys.data;
    kv->v = values.data;
    kv->ldk = kv->ldv = width;
    return LORA_OK;
}
