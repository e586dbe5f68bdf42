/* The row lengths that DoRA divides by, computed once per pass. */
#include "lora_c/model/extras.h"

static lora_status refresh(lora_decoder *d, const lora_run *run, lora_matrix *m, lora_error *err) {
    if (!m->has_adapter || !m->adapter.magnitude || (m->norm_known && lora_goes_on(run))) return LORA_OK;
    LORA_TRY(lora_dora_norm(d->ctx, &m->w, &m->adapter, m->norm, err));
    m->norm_known = true;
    return LORA_OK;
}

static lora_status before(lora_decoder *d, const lora_run *run, lora_error *err) {
    if (run->n_groups) return LORA_OK; /* with other adapters, which have no norms */
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) LORA_TRY(refresh(d, run, &d->layers[layer].matrices[slot], err));
    return LORA_OK;
}

const lora_pass_hook lora_adapter_norms_hook = {.before = before};

lora_status lora_make_adapter_norm(lora_decoder *d, lora_matrix *m, lora_error *err) {
    m->norm_known = false;
    if (m->norm) return LORA_OK;
    size_t bytes = (size_t)m->w.rows * sizeof *m->norm;
    m->norm = lora_ctx_alloc_uncleared(d->ctx, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(m->norm, err, LORA_ENOMEM, "adapter: expected %zu bytes for the row norms of DoRA, got none", bytes);
    return LORA_OK;
}

void lora_forget_adapter_norms(lora_decoder *d) {
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) d->layers[layer].matrices[slot].norm_known = false;
}

void lora_free_adapter_norms(lora_decoder *d) {
    if (!d->layers) return;
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) lora_ctx_free(d->ctx, d->layers[layer].matrices[slot].norm);
}
