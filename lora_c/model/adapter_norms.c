/* The row lengths that DoRA divides by, computed once per pass. */
#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"

/* A pass that only goes on with cached sequences: their keys and values already hold the adapter to what it was when they
 * were begun, so the norms of that pass stand. Without this, each new token would cost N * K * R per matrix. */
bool lora_goes_on(const lora_run *run) {
    if (!run->cache) return false;
    for (int64_t s = 0; s < run->n_segments; s++)
        if (run->cache->lengths[run->sequences[s]] == 0) return false;
    return true;
}

static lora_status refresh(lora_decoder *d, const lora_run *run, lora_matrix *m, lora_error *err) {
    if (!m->has_adapter || !m->adapter.magnitude || (m->norm_known && lora_goes_on(run))) return LORA_OK;
    LORA_TRY(lora_dora_norm(d->ctx, &m->w, &m->adapter, m->norm, err));
    m->norm_known = true;
    return LORA_OK;
}

lora_status lora_refresh_adapter_norms(lora_decoder *d, const lora_run *run, lora_error *err) {
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) LORA_TRY(refresh(d, run, &d->layers[layer].matrices[slot], err));
    return LORA_OK;
}

lora_status lora_make_adapter_norm(lora_decoder *d, lora_matrix *m, lora_error *err) {
    m->norm_known = false;
    if (m->norm) return LORA_OK;
    size_t bytes = (size_t)m->w.rows * sizeof *m->norm;
    m->norm = lora_mem_alloc(&d->ctx->engine->mem, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(m->norm, err, LORA_ENOMEM, "adapter: expected %zu bytes for the row norms of DoRA, got none", bytes);
    return LORA_OK;
}

void lora_free_adapter_norms(lora_decoder *d) {
    if (!d->layers) return;
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) lora_mem_free(&d->ctx->engine->mem, d->layers[layer].matrices[slot].norm);
}
