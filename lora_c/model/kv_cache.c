/* The KV cache: keys after RoPE and values of past tokens. */
#include "lora_c/base/util.h"
#include "lora_c/device.h"
#include "lora_c/model/pass.h"

static lora_status cache_bytes(const lora_decoder *d, int64_t n_sequences, int64_t max_tokens, size_t *bytes, lora_error *err) {
    LORA_CHECK(n_sequences > 0 && n_sequences < INT32_MAX, err, LORA_EINVAL, "n_sequences: expected 1 to %d, got %lld", INT32_MAX - 1,
               (long long)n_sequences);
    LORA_CHECK(max_tokens > 0 && max_tokens <= d->config.max_position_embeddings, err, LORA_EINVAL,
               "max_tokens: expected 1 to %lld (max_position_embeddings), got %lld", (long long)d->config.max_position_embeddings,
               (long long)max_tokens);
    size_t row = (size_t)lora_kv_width(&d->config) * sizeof(float), n = 2 * (size_t)d->config.num_hidden_layers;
    LORA_CHECK(lora_mul_size(row, n, bytes) && lora_mul_size(*bytes, (size_t)n_sequences, bytes) &&
                   lora_mul_size(*bytes, (size_t)max_tokens, bytes) && *bytes < SIZE_MAX / 2,
               err, LORA_ENOMEM, "max_tokens: expected a KV cache that fits the address space, got %lld sequences of %lld tokens",
               (long long)n_sequences, (long long)max_tokens);
    return LORA_OK;
}

lora_status lora_kv_cache_create(lora_decoder *d, int64_t n_sequences, int64_t max_tokens, lora_kv_cache **out, lora_error *err) {
    size_t bytes = 0;
    *out = NULL;
    LORA_TRY(cache_bytes(d, n_sequences, max_tokens, &bytes, err));
    LORA_TRY(lora_device_check(d->shared, err));
    size_t tables = sizeof(lora_kv_cache) + (size_t)n_sequences * (2 * sizeof(int64_t) + sizeof(uint8_t));
    float *data = lora_ctx_alloc_uncleared(d->shared, LORA_MEM_ACTIVATION, bytes); /* the larger one first */
    lora_kv_cache *c = data ? lora_host_alloc(d->shared, LORA_MEM_ACTIVATION, tables) : NULL;
    if (!c) {
        lora_ctx_free(d->shared, data);
        return lora_fail(err, LORA_ENOMEM, "max_tokens: expected %zu bytes for the KV cache, got none; use a smaller one", bytes);
    }
    int64_t *lengths = (int64_t *)(c + 1);
    *c = (lora_kv_cache){.ctx = d->shared,
                         .decoder = d,
                         .n_sequences = n_sequences,
                         .max_tokens = max_tokens,
                         .width = lora_kv_width(&d->config),
                         .lengths = lengths,
                         .virtual = lengths + n_sequences,
                         .named = (uint8_t *)(lengths + 2 * n_sequences),
                         .data = data};
    *out = c;
    return LORA_OK;
}

void lora_kv_cache_destroy(lora_kv_cache *c) {
    if (!c) return;
    lora_ctx_free(c->ctx, c->data);
    lora_host_free(c->ctx, c);
}

int64_t lora_kv_cache_sequences(const lora_kv_cache *c) { return c->n_sequences; }
int64_t lora_kv_cache_max_tokens(const lora_kv_cache *c) { return c->max_tokens; }
int64_t lora_kv_cache_length(const lora_kv_cache *c, int64_t sequence) {
    return sequence >= 0 && sequence < c->n_sequences ? c->lengths[sequence] - c->virtual[sequence] : 0;
}

lora_status lora_kv_cache_truncate(lora_kv_cache *c, int64_t sequence, int64_t length, lora_error *err) {
    LORA_CHECK(sequence >= 0 && sequence < c->n_sequences, err, LORA_EINVAL, "sequence: expected 0 to %lld, got %lld",
               (long long)c->n_sequences - 1, (long long)sequence);
    int64_t present = lora_kv_cache_length(c, sequence);
    LORA_CHECK(length >= 0 && length <= present, err, LORA_EINVAL, "length: expected 0 to %lld, got %lld", (long long)present,
               (long long)length);
    if (length == 0) c->virtual[sequence] = 0; /* it begins anew, with the virtual tokens of that time */
    c->lengths[sequence] = length + c->virtual[sequence];
    return LORA_OK;
}

/* Keys (part 0) or values (part 1) of a layer: (n_sequences * max_tokens, KV). */
static lora_mat part_of(const lora_kv_cache *c, int64_t layer, int64_t part) {
    int64_t rows = c->n_sequences * c->max_tokens;
    return lora_mat_f32(c->data + (layer * 2 + part) * rows * c->width, rows, c->width, c->width);
}

/* The first rows of them of one sequence. */
static lora_mat rows_of(const lora_kv_cache *c, int64_t layer, int64_t part, int64_t sequence, int64_t rows) {
    int64_t first = ((layer * 2 + part) * c->n_sequences + sequence) * c->max_tokens;
    return lora_mat_f32(c->data + first * c->width, rows, c->width, c->width);
}

lora_status lora_kv_cache_copy(lora_kv_cache *c, int64_t from, int64_t to, int64_t length, lora_error *err) {
    LORA_CHECK(to >= 0 && to < c->n_sequences, err, LORA_EINVAL, "to: expected 0 to %lld, got %lld", (long long)c->n_sequences - 1,
               (long long)to);
    LORA_CHECK(from >= 0 && from < c->n_sequences, err, LORA_EINVAL, "from: expected 0 to %lld, got %lld", (long long)c->n_sequences - 1,
               (long long)from);
    int64_t present = lora_kv_cache_length(c, from);
    LORA_CHECK(length >= 0 && length <= present, err, LORA_EINVAL, "length: expected 0 to %lld, got %lld", (long long)present,
               (long long)length);
    if (from == to || length == 0) return lora_kv_cache_truncate(c, to, length, err);
    LORA_TRY(lora_device_check(c->ctx, err));
    int64_t rows = length + c->virtual[from];
    c->lengths[to] = c->virtual[to] = 0; /* until all of it is there */
    for (int64_t layer = 0; layer < c->decoder->config.num_hidden_layers; layer++)
        for (int64_t part = 0; part < 2; part++)
            LORA_TRY(
                lora_copy_rows(c->ctx, rows_of(c, layer, part, from, rows), NULL, rows_of(c, layer, part, to, rows), NULL, false, err));
    c->virtual[to] = c->virtual[from];
    c->lengths[to] = rows;
    return LORA_OK;
}

lora_status lora_kv_append(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, const float *k, const float *v,
                           int64_t ld, lora_error *err) {
    const lora_kv_cache *c = run->cache;
    lora_mat keys = lora_mat_f32(k, run->n_tokens, c->width, ld), values = lora_mat_f32(v, run->n_tokens, c->width, ld);
    LORA_TRY(lora_copy_rows(d->ctx, keys, NULL, part_of(c, layer, 0), b->tables.cache_rows, false, err));
    return lora_copy_rows(d->ctx, values, NULL, part_of(c, layer, 1), b->tables.cache_rows, false, err);
}

lora_kv lora_layer_kv(const lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, const float *qkv) {
    const lora_decoder_config *c = &d->config;
    const float *k = qkv + lora_q_width(c), *v = k + lora_kv_width(c);
    int64_t ld = lora_qkv_width(c);
    if (run->cache) {
        k = part_of(run->cache, layer, 0).data;
        v = part_of(run->cache, layer, 1).data;
        ld = run->cache->width;
    }
    return (lora_kv){.k = k, .v = v, .ldk = ld, .ldv = ld, .start = b->tables.kv_start, .length = b->tables.kv_length};
}
