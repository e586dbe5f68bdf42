/* A bottleneck behind a projection:   y = h + scale * (up · activation(down · h + down_bias) + up_bias)
 * Source   Houlsby et al., arXiv:1902.00751, section 2.1; after the MLP alone: Pfeiffer et al., arXiv:2005.00247, section 3.1 */
#include "lora_c/model/pass.h"

/* inside = down · h + down_bias */
static lora_status narrow(lora_decoder *d, const lora_bottleneck *n, lora_mat h, lora_mat inside, lora_error *err) {
    lora_weight down = lora_weight_f32(n->down, n->size, h.cols, h.cols);
    lora_linear_layer layer = {.w = &down, .bias = n->down_bias, .y = inside};
    return lora_linear_forward(d->ctx, h, 1, &layer, err);
}

lora_status lora_bottleneck_forward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int place, lora_mat h, lora_mat y,
                                    lora_error *err) {
    const lora_bottleneck *n = &d->layers[layer].bottlenecks[place];
    lora_mat inside = lora_run_mat(run, b->bottleneck[0], n->size), update = lora_run_mat(run, b->xn, h.cols);
    lora_weight up = lora_weight_f32(n->up, h.cols, n->size, n->size);
    lora_linear_layer wide = {.w = &up, .bias = n->up_bias, .y = update};
    LORA_TRY(narrow(d, n, h, inside, err));
    LORA_TRY(lora_mlp_forward(d->ctx, n->activation, inside, lora_mat_none(), inside, err));
    LORA_TRY(lora_linear_forward(d->ctx, inside, 1, &wide, err));
    if (h.data != y.data) LORA_TRY(lora_copy_rows(d->ctx, h, NULL, y, NULL, false, err));
    return lora_scale_rows(d->ctx, n->scale, update, y, true, err);
}

/* The gradient of the update goes through up and the activation into that of the inside, which takes the inside's place. */
static lora_status up_backward(lora_decoder *d, const lora_bottleneck *n, lora_mat dupdate, lora_mat inside, lora_mat active,
                               lora_mat dactive, lora_error *err) {
    lora_weight up = lora_weight_f32(n->up, dupdate.cols, n->size, n->size);
    lora_linear_gradient g = {.dy = dupdate, .w = &up, .dW = n->dup, .dbias = n->dup_bias};
    LORA_TRY(lora_mlp_forward(d->ctx, n->activation, inside, lora_mat_none(), active, err));
    LORA_TRY(lora_linear_backward(d->ctx, active, 1, &g, dactive, false, err));
    return lora_mlp_backward(d->ctx, n->activation, dactive, inside, lora_mat_none(), inside, lora_mat_none(), err);
}

lora_status lora_bottleneck_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int place, lora_mat dy,
                                     bool below, lora_error *err) {
    const lora_bottleneck *n = &d->layers[layer].bottlenecks[place];
    int64_t H = d->config.hidden_size;
    lora_mat h = lora_run_mat(run, b->states[layer].before[place], H), dupdate = lora_run_mat(run, b->xn, H);
    lora_mat inside = lora_run_mat(run, b->bottleneck[0], n->size), active = lora_run_mat(run, b->bottleneck[1], n->size);
    lora_weight down = lora_weight_f32(n->down, n->size, H, H);
    lora_linear_gradient g = {.dy = inside, .w = &down, .dW = n->ddown, .dbias = n->ddown_bias};
    LORA_TRY(narrow(d, n, h, inside, err));
    LORA_TRY(lora_scale_rows(d->ctx, n->scale, dy, dupdate, false, err));
    LORA_TRY(up_backward(d, n, dupdate, inside, active, lora_run_mat(run, b->bottleneck[2], n->size), err));
    return lora_linear_backward(d->ctx, h, 1, &g, below ? dy : lora_mat_none(), true, err);
}
