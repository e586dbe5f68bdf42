/* Scaling vectors (IA3) and bottlenecks (adapters of Houlsby and Pfeiffer): their setters, and which layers have them. */
#include <math.h>

#include "lora_c/model/extras.h"

static bool has_scaling(const lora_layer *l, int first, int end) {
    for (int slot = first; slot < end; slot++)
        if (l->matrices[slot].scaling.l) return true;
    return false;
}

bool lora_has_scalings(const lora_decoder *d) {
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        if (has_scaling(&d->layers[layer], 0, LORA_LAYER_MATRICES)) return true;
    return false;
}

bool lora_has_bottleneck(const lora_decoder *d, int64_t layer, int place) {
    if (layer >= 0) return d->layers[layer].bottlenecks[place].size > 0;
    for (int64_t i = 0; i < d->config.num_hidden_layers; i++)
        if (d->layers[i].bottlenecks[place].size > 0) return true;
    return false;
}

bool lora_has_bottlenecks(const lora_decoder *d) {
    return lora_has_bottleneck(d, -1, LORA_AFTER_ATTENTION) || lora_has_bottleneck(d, -1, LORA_AFTER_MLP);
}

bool lora_has_branches(const lora_decoder *d) {
    if (d->config.post_norm || d->config.residual_scale != 1.0 || lora_has_bottlenecks(d)) return true;
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        if (has_scaling(&d->layers[layer], LORA_O_PROJ, LORA_O_PROJ + 1) ||
            has_scaling(&d->layers[layer], LORA_DOWN_PROJ, LORA_DOWN_PROJ + 1))
            return true;
    return false;
}

static lora_status check_layer_matrix(const lora_decoder *d, int64_t layer, int slot, lora_error *err) {
    LORA_TRY(lora_check_adapter(d, layer, slot, NULL, err));
    LORA_CHECK(slot < LORA_LAYER_MATRICES, err, LORA_EINVAL, "%s: expected a matrix of a layer for a scaling vector, got this one",
               lora_matrix_name(layer, slot).text);
    return LORA_OK;
}

lora_status lora_decoder_set_scaling(lora_decoder *d, int64_t layer, lora_matrix_slot slot, const lora_scaling *scaling, lora_error *err) {
    LORA_TRY(check_layer_matrix(d, layer, (int)slot, err));
    LORA_CHECK(!scaling || scaling->l, err, LORA_EINVAL, "%s: expected a scaling vector, got NULL",
               lora_matrix_name(layer, (int)slot).text);
    d->layers[layer].matrices[slot].scaling = scaling ? *scaling : (lora_scaling){0};
    return LORA_OK;
}

static lora_status check_bottleneck(const lora_bottleneck *b, lora_error *err) {
    LORA_CHECK(b->size > 0 && b->size < INT32_MAX, err, LORA_EINVAL, "bottleneck: expected a size of 1 to %d, got %lld", INT32_MAX - 1,
               (long long)b->size);
    LORA_CHECK(b->down && b->down_bias && b->up && b->up_bias, err, LORA_EINVAL,
               "bottleneck: expected down, up and their biases, got NULL");
    LORA_CHECK(isfinite(b->scale), err, LORA_EINVAL, "bottleneck: expected a finite scale, got %g", (double)b->scale);
    LORA_CHECK((int)b->activation >= 0 && b->activation < LORA_ACTIVATIONS, err, LORA_EINVAL,
               "bottleneck: expected an activation of 0 to %d, got %d", LORA_ACTIVATIONS - 1, (int)b->activation);
    return LORA_OK;
}

lora_status lora_decoder_set_bottleneck(lora_decoder *d, int64_t layer, lora_bottleneck_place place, const lora_bottleneck *bottleneck,
                                        lora_error *err) {
    LORA_CHECK(layer >= 0 && layer < d->config.num_hidden_layers, err, LORA_EINVAL, "bottleneck: expected layer 0 to %lld, got %lld",
               (long long)d->config.num_hidden_layers - 1, (long long)layer);
    LORA_CHECK((int)place >= 0 && place < LORA_BOTTLENECK_PLACES, err, LORA_EINVAL, "bottleneck: expected place 0 to %d, got %d",
               LORA_BOTTLENECK_PLACES - 1, (int)place);
    if (bottleneck) LORA_TRY(check_bottleneck(bottleneck, err));
    d->layers[layer].bottlenecks[place] = bottleneck ? *bottleneck : (lora_bottleneck){0};
    return LORA_OK;
}
