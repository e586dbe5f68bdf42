/* Decoding with a KV cache: prefill and single tokens are the same call. */
#include "lora_c/model/extras.h"

/* Marks each sequence as named, and says how many were marked before a mistake. */
static lora_status mark_sequences(lora_kv_cache *c, int64_t n_segments, const int32_t *sequences, int64_t *marked, lora_error *err) {
    for (*marked = 0; *marked < n_segments; ++*marked) {
        int32_t sequence = sequences[*marked];
        LORA_CHECK(sequence >= 0 && sequence < c->n_sequences, err, LORA_EINVAL, "sequences: expected 0 to %lld, got %d at index %lld",
                   (long long)c->n_sequences - 1, (int)sequence, (long long)*marked);
        LORA_CHECK(!c->named[sequence], err, LORA_EINVAL, "sequences: expected distinct values, got %d twice", (int)sequence);
        c->named[sequence] = 1;
    }
    return LORA_OK;
}

static lora_status check_sequences(lora_kv_cache *c, int64_t n_segments, const int32_t *sequences, lora_error *err) {
    int64_t marked;
    LORA_CHECK(n_segments >= 1 && n_segments <= c->n_sequences, err, LORA_ESHAPE, "sequences: expected 1 to %lld of them, got %lld",
               (long long)c->n_sequences, (long long)n_segments);
    LORA_CHECK(sequences, err, LORA_EINVAL, "sequences: expected an array, got NULL");
    lora_status status = mark_sequences(c, n_segments, sequences, &marked, err);
    for (int64_t s = 0; s < marked; s++) c->named[sequences[s]] = 0;
    return status;
}

lora_status lora_decoder_decode(lora_decoder *d, lora_kv_cache *c, int64_t n_segments, const int32_t *cu_seqlens, const int32_t *sequences,
                                const int32_t *input_ids, const lora_decoder_adapters *const *adapters, float *logits, lora_error *err) {
    LORA_CHECK(c->decoder == d, err, LORA_EINVAL, "cache: expected one made by this decoder, got one of another");
    LORA_CHECK(cu_seqlens, err, LORA_EINVAL, "cu_seqlens: expected an array, got NULL");
    LORA_TRY(check_sequences(c, n_segments, sequences, err));
    lora_run run = {.n_tokens = cu_seqlens[n_segments],
                    .n_segments = n_segments,
                    .input_ids = input_ids,
                    .cu_seqlens = cu_seqlens,
                    .cache = c,
                    .sequences = sequences};
    lora_grouped grouped;
    LORA_TRY(lora_check_run(d, &run, err));
    if (adapters) LORA_TRY(lora_group_segments(d, adapters, &run, &grouped, err));
    LORA_TRY(lora_end_pass(d, &run, lora_last_logits(d, &run, logits, err), err));
    /* only now: a failed call leaves no trace */
    for (int64_t s = 0; s < n_segments; s++) {
        int32_t sequence = sequences[s];
        if (c->lengths[sequence] == 0) c->lengths[sequence] = c->virtual[sequence] = d->virtual.tokens.n;
        c->lengths[sequence] += cu_seqlens[s + 1] - cu_seqlens[s];
    }
    return LORA_OK;
}
