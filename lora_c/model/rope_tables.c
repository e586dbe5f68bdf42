/* The tables of the rotations, only as far as positions have been asked for: what a configuration allows may be more than
 * the machine has memory for. */
#include "lora_c/base/util.h"
#include "lora_c/model/pass.h"

enum { FIRST_POSITIONS = 4096 };

lora_status lora_copy_inv_freq(lora_decoder *d, lora_error *err) {
    for (int i = 0; i < d->config.n_ropes; i++) {
        lora_rope_config *r = &d->config.ropes[i];
        size_t bytes = (size_t)(r->rotary / 2) * sizeof(double);
        d->inv_freq[i] = lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, bytes);
        LORA_CHECK(d->inv_freq[i], err, LORA_ENOMEM, "rope_inv_freq: expected %zu bytes, got none", bytes);
        for (int64_t f = 0; f < r->rotary / 2; f++) d->inv_freq[i][f] = r->inv_freq[f];
        r->inv_freq = NULL; /* the caller's */
    }
    return LORA_OK;
}

static void drop_tables(lora_decoder *d) {
    float *cosine = d->cos, *sine = d->sin;
    d->rope_positions = 0; /* first: a child forked right here must not have freed ones */
    d->cos = d->sin = NULL;
    lora_ctx_free(d->ctx, cosine);
    lora_ctx_free(d->ctx, sine);
}

void lora_free_rope_tables(lora_decoder *d) {
    drop_tables(d);
    for (int i = 0; i < LORA_MAX_ROPES; i++) lora_host_free(d->ctx, d->inv_freq[i]);
}

/* n is below 2^31 and rotary, too: two tables stay below 2^62 floats. */
static lora_status make_tables(lora_decoder *d, int64_t n, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    size_t floats = 0, bytes;
    for (int i = 0; i < c->n_ropes; i++) {
        d->rope_at[i] = (int64_t)floats;
        floats += (size_t)n * (size_t)(c->ropes[i].rotary / 2);
    }
    LORA_CHECK(lora_mul_size(floats, sizeof(float), &bytes), err, LORA_ENOMEM,
               "input_ids: expected RoPE tables that fit the address space, got %lld positions", (long long)n);
    d->cos = lora_ctx_alloc_uncleared(d->ctx, LORA_MEM_SCRATCH, bytes);
    d->sin = d->cos ? lora_ctx_alloc_uncleared(d->ctx, LORA_MEM_SCRATCH, bytes) : NULL;
    LORA_CHECK(d->sin, err, LORA_ENOMEM, "input_ids: expected twice %zu bytes for the RoPE tables of %lld positions, got none", bytes,
               (long long)n);
    for (int i = 0; i < c->n_ropes; i++)
        LORA_TRY(lora_rope_table(d->ctx, n, NULL, c->ropes[i].rotary / 2, d->inv_freq[i], c->ropes[i].scale, d->cos + d->rope_at[i],
                                 d->sin + d->rope_at[i], err));
    d->rope_positions = n;
    return LORA_OK;
}

/* What the tables grow to where longest is more than they have. */
static int64_t grown(const lora_decoder *d, int64_t longest) {
    int64_t n = lora_max_i64(longest, lora_max_i64(FIRST_POSITIONS, 2 * d->rope_positions)); /* rarely again */
    return lora_min_i64(n, d->config.max_position_embeddings);
}

int64_t lora_rope_tables_bytes(const lora_decoder *d, int64_t n_tokens) {
    int64_t n = n_tokens > d->rope_positions ? grown(d, n_tokens) : d->rope_positions, floats = 0;
    for (int i = 0; i < d->config.n_ropes; i++) floats += n * (d->config.ropes[i].rotary / 2);
    return 2 * floats * (int64_t)sizeof *d->cos;
}

lora_status lora_reach_positions(lora_decoder *d, const lora_run *run, lora_error *err) {
    int64_t longest = 0;
    for (int64_t s = 0; s < run->n_segments; s++)
        longest = lora_max_i64(longest, lora_past_tokens(run, s) + run->cu_seqlens[s + 1] - run->cu_seqlens[s]);
    if (d->config.n_ropes == 0 || longest <= d->rope_positions) return LORA_OK;
    int64_t n = grown(d, longest);
    drop_tables(d);
    lora_status status = make_tables(d, n, err);
    if (status != LORA_OK) drop_tables(d);
    return status;
}
