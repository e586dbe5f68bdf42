/* Whether every weight that a pass reads is there. */
#include "lora_c/model/pass.h"

static lora_status missing(lora_weight_name name, lora_error *err) {
    return lora_fail(err, LORA_EINVAL, "%s: expected a weight, got none", name.text);
}

static lora_status check_norm(const lora_decoder *d, int64_t layer, int slot, const lora_norm_weights *n, lora_error *err) {
    if (!lora_has_norm(&d->config, slot)) return LORA_OK;
    if (!n->w) return missing(lora_vector_name(layer, slot), err);
    return d->config.norm == LORA_NORM_LAYER && !n->b ? missing(lora_vector_name(layer, LORA_NORM_BIAS + slot), err) : LORA_OK;
}

lora_status lora_check_complete(const lora_decoder *d, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    if (!lora_global(d, LORA_EMBED_TOKENS)->set) return missing(lora_matrix_name(-1, LORA_EMBED_TOKENS), err);
    if (c->learned_positions && !lora_global(d, LORA_EMBED_POSITIONS)->set) return missing(lora_matrix_name(-1, LORA_EMBED_POSITIONS), err);
    if (!lora_head(d)->set) return missing(lora_matrix_name(-1, LORA_LM_HEAD), err);
    LORA_TRY(check_norm(d, -1, LORA_FINAL_NORM, &d->final_norm, err));
    for (int64_t layer = 0; layer < c->num_hidden_layers; layer++) {
        const lora_layer *l = &d->layers[layer];
        for (int slot = 0; slot < LORA_LAYER_NORMS; slot++) LORA_TRY(check_norm(d, layer, slot, &l->norms[slot], err));
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++)
            if (!l->matrices[slot].set && (c->gated_mlp || slot != LORA_GATE_PROJ)) return missing(lora_matrix_name(layer, slot), err);
    }
    return LORA_OK;
}
