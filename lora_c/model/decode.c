/* Decoding with a KV cache: prefill and single tokens are the same call. */
#include <string.h>

#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"

static lora_status check_sequences(lora_ctx *ctx, const lora_kv_cache *c, int64_t n_segments, const int32_t *sequences, lora_error *err) {
    LORA_CHECK(n_segments >= 1 && n_segments <= c->n_sequences, err, LORA_ESHAPE,
               "sequences: expected 1 to %lld of them, got %lld", (long long)c->n_sequences, (long long)n_segments);
    LORA_CHECK(sequences, err, LORA_EINVAL, "sequences: expected an array, got NULL");
    void *scratch;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_REDUCE, (size_t)c->n_sequences, &scratch, err));
    unsigned char *seen = memset(scratch, 0, (size_t)c->n_sequences);
    for (int64_t s = 0; s < n_segments; s++) {
        LORA_CHECK(sequences[s] >= 0 && sequences[s] < c->n_sequences, err, LORA_EINVAL,
                   "sequences: expected 0 to %lld, got %d at index %lld", (long long)c->n_sequences - 1, (int)sequences[s],
                   (long long)s);
        LORA_CHECK(!seen[sequences[s]]++, err, LORA_EINVAL, "sequences: expected distinct values, got %d twice", (int)sequences[s]);
    }
    return LORA_OK;
}

lora_status lora_decoder_decode(lora_decoder *d, lora_kv_cache *c, int64_t n_segments, const int32_t *cu_seqlens,
                                const int32_t *sequences, const int32_t *input_ids, float *logits, lora_error *err) {
    LORA_CHECK(c->decoder == d, err, LORA_EINVAL, "cache: expected one made by this decoder, got one of another");
    LORA_CHECK(cu_seqlens, err, LORA_EINVAL, "cu_seqlens: expected an array, got NULL");
    LORA_TRY(check_sequences(d->ctx, c, n_segments, sequences, err));
    int64_t H = d->config.hidden_size;
    lora_run run = {.n_tokens = cu_seqlens[n_segments], .n_segments = n_segments, .input_ids = input_ids,
                    .cu_seqlens = cu_seqlens, .cache = c, .sequences = sequences};
    lora_buffers b;
    LORA_TRY(lora_check_run(d, &run, err));
    LORA_TRY(lora_arena_prepare(d, run.n_tokens, false, &b, err));
    LORA_TRY(lora_layers_forward(d, &run, &b, err));
    for (int64_t s = 0; s < n_segments; s++) b.last_rows[s] = cu_seqlens[s + 1] - 1; /* no other goes through the head */
    float *last = b.x[d->config.num_hidden_layers]; /* normed into b.xn, not needed again */
    LORA_TRY(lora_copy_rows(d->ctx, lora_mat_f32(b.xn, run.n_tokens, H, H), b.last_rows, lora_mat_f32(last, n_segments, H, H), NULL, false, err));
    LORA_TRY(lora_decoder_head(d, n_segments, last, logits, err));
    /* only now: a failed call leaves no trace */
    for (int64_t s = 0; s < n_segments; s++) c->lengths[sequences[s]] += cu_seqlens[s + 1] - cu_seqlens[s];
    return LORA_OK;
}
