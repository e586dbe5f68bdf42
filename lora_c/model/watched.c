/* Which operation of a pass made the first value that is not finite, in the decoder's names. */
#include <stdio.h>

#include "lora_c/model/decoder_struct.h"

lora_status lora_decoder_watch(lora_decoder *d, bool on, lora_error *err) { return lora_ctx_watch(d->ctx, on, err); }

static bool is_data(const lora_weight *w, const void *data) {
    const void *own = w->kind == LORA_WEIGHT_NF4    ? (const void *)w->nf4.codes
                      : w->kind == LORA_WEIGHT_GGML ? (const void *)w->ggml.blocks
                                                    : w->dense.data;
    return own == data;
}

/* "o_proj.bottleneck" and "q_proj.scaling", or an empty name. */
static lora_slot_name name_of_method(const lora_layer *l, const void *weight) {
    lora_slot_name name = {""};
    for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++)
        if (l->matrices[slot].scaling.l == weight)
            snprintf(name.text, sizeof name.text, "%.24s.scaling", lora_decoder_slot_name(false, slot).text);
    for (int place = 0; place < LORA_BOTTLENECK_PLACES; place++) {
        const lora_bottleneck *b = &l->bottlenecks[place];
        if (b->size == 0 || (b->down != weight && b->up != weight)) continue;
        int slot = place == LORA_AFTER_ATTENTION ? LORA_O_PROJ : LORA_DOWN_PROJ;
        snprintf(name.text, sizeof name.text, "%.24s.bottleneck", lora_decoder_slot_name(false, slot).text);
    }
    return name;
}

static lora_slot_name name_in_layer(const lora_layer *l, const void *weight) {
    for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++)
        if (l->matrices[slot].set && is_data(&l->matrices[slot].w, weight)) return lora_decoder_slot_name(false, slot);
    for (int slot = 0; slot < LORA_LAYER_NORMS; slot++)
        if (l->norms[slot].w == weight) return lora_decoder_slot_name(true, slot);
    return name_of_method(l, weight);
}

static lora_slot_name name_of_global(const lora_decoder *d, const void *weight) {
    if (d->final_norm.w == weight) return lora_decoder_slot_name(true, LORA_FINAL_NORM);
    for (int slot = LORA_LAYER_MATRICES; slot < LORA_MATRIX_SLOTS; slot++)
        if (lora_global(d, slot)->set && is_data(&lora_global(d, slot)->w, weight)) return lora_decoder_slot_name(false, slot);
    return (lora_slot_name){""};
}

/* The name of a weight, and its layer where an operation around the pass read it. The embedding's copy with its adapter is none of the
 * weights that were set; the operation says enough there. */
static lora_slot_name name_of(const lora_decoder *d, const void *weight, int64_t *layer) {
    if (!weight) return (lora_slot_name){""};
    if (*layer >= 0) return name_in_layer(&d->layers[*layer], weight);
    lora_slot_name name = name_of_global(d, weight);
    for (int64_t l = 0; !name.text[0] && l < d->config.num_hidden_layers; l++) {
        name = name_in_layer(&d->layers[l], weight);
        if (name.text[0]) *layer = l;
    }
    return name;
}

lora_nonfinite lora_decoder_nonfinite(const lora_decoder *d) {
    lora_nonfinite first = {.found = lora_ctx_watch_found(d->ctx)};
    if (first.found.operation) first.weight = name_of(d, first.found.weight, &first.found.layer);
    return first;
}
