/* What callers ask of a batch: loss with gradients, loss, logits, hidden states. */
#include <math.h>
#include <string.h>

#include "lora_c/model/decoder_struct.h"

static lora_run run_of(const lora_batch *batch, bool training) {
    return (lora_run){.n_tokens = batch->n_tokens,
                      .n_segments = batch->n_segments,
                      .input_ids = batch->input_ids,
                      .cu_seqlens = batch->cu_seqlens,
                      .training = training,
                      .dropout_step = batch->dropout_step};
}

/* Before the pass, so that a refused batch leaves no half of its gradients behind. */
static lora_status check_targets(const lora_decoder *d, const lora_batch *batch, lora_error *err) {
    LORA_CHECK(batch->targets && batch->loss_weight, err, LORA_EINVAL, "%s: expected an array, got NULL",
               batch->targets ? "loss_weight" : "targets");
    for (int64_t m = 0; m < batch->n_tokens; m++) {
        if (batch->loss_weight[m] == 0.0f) continue;
        LORA_CHECK(isfinite(batch->loss_weight[m]), err, LORA_EINVAL,
                   "loss_weight: expected finite values, got %g at index %lld", (double)batch->loss_weight[m], (long long)m);
        LORA_CHECK(batch->targets[m] >= 0 && batch->targets[m] < d->config.vocab_size, err, LORA_EINVAL,
                   "targets: expected 0 to %lld where loss_weight is not 0, got %d at index %lld",
                   (long long)d->config.vocab_size - 1, (int)batch->targets[m], (long long)m);
    }
    return LORA_OK;
}

static lora_status forward_backward(lora_decoder *d, const lora_batch *batch, float grad_scale, double *loss_sum, lora_error *err) {
    int64_t M = batch->n_tokens, H = d->config.hidden_size, L = d->config.num_hidden_layers;
    lora_weight head = lora_global_weight(d, LORA_LM_HEAD);
    lora_run run = run_of(batch, true);
    lora_buffers b;
    LORA_TRY(lora_check_run(d, &run, err));
    LORA_TRY(check_targets(d, batch, err));
    LORA_TRY(lora_arena_prepare(d, M, true, &b, err));
    run.states = b.states;
    LORA_TRY(lora_layers_forward(d, &run, &b, err));
    float *dxn = b.lowest < L || lora_norm_trains(&d->final_norm) ? b.dxn : NULL;
    lora_loss loss = {.targets = batch->targets, .loss_weight = batch->loss_weight, .grad_scale = grad_scale, .loss_sum = loss_sum,
                      .map = d->config.logits};
    LORA_TRY(lora_linear_cross_entropy(d->ctx, lora_mat_f32(b.xn, M, H, H), &head, &loss, lora_mat_f32(dxn, M, H, H),
                                       lora_global_gradient(d, LORA_LM_HEAD), err));
    if (!dxn) return LORA_OK; /* nothing trains below the head */
    lora_norm norm = lora_decoder_norm(d, L, LORA_FINAL_NORM);
    LORA_TRY(lora_norm_backward(d->ctx, &norm, lora_mat_f32(dxn, M, H, H), lora_mat_f32(b.x[L], M, H, H), b.stats_final,
                                lora_mat_f32(b.dx, M, H, H), false, d->final_norm.dw, d->final_norm.db, err));
    return b.lowest < L ? lora_layers_backward(d, &run, &b, err) : LORA_OK;
}

lora_status lora_decoder_forward_backward(lora_decoder *d, const lora_batch *batch, float grad_scale, double *loss_sum,
                                          lora_error *err) {
    lora_status status = forward_backward(d, batch, grad_scale, loss_sum, err);
    lora_status collected = lora_collect_adapted_globals(d, status == LORA_OK, err);
    if (status == LORA_OK) status = collected;
    collected = lora_collect_token_rows(d, status == LORA_OK, err);
    return status == LORA_OK ? collected : status;
}

static lora_status evaluate(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    LORA_TRY(lora_arena_prepare(d, run->n_tokens, false, b, err));
    return lora_layers_forward(d, run, b, err);
}

lora_status lora_decoder_loss(lora_decoder *d, const lora_batch *batch, double *loss_sum, float *token_loss, lora_error *err) {
    lora_run run = run_of(batch, false);
    lora_buffers b;
    LORA_TRY(lora_check_run(d, &run, err));
    LORA_TRY(check_targets(d, batch, err));
    LORA_TRY(evaluate(d, &run, &b, err));
    lora_weight head = lora_global_weight(d, LORA_LM_HEAD);
    int64_t H = d->config.hidden_size;
    lora_loss loss = {.targets = batch->targets, .loss_weight = batch->loss_weight, .grad_scale = 1.0f, .loss_sum = loss_sum,
                      .token_loss = token_loss, .map = d->config.logits};
    return lora_linear_cross_entropy(d->ctx, lora_mat_f32(b.xn, batch->n_tokens, H, H), &head, &loss, lora_mat_none(), NULL, err);
}

lora_status lora_decoder_logits(lora_decoder *d, const lora_batch *batch, float *logits, lora_error *err) {
    lora_run run = run_of(batch, false);
    lora_buffers b;
    LORA_TRY(lora_check_run(d, &run, err));
    LORA_TRY(evaluate(d, &run, &b, err));
    return lora_decoder_head(d, batch->n_tokens, b.xn, logits, err);
}

lora_status lora_decoder_head(lora_decoder *d, int64_t M, const float *xn, float *logits, lora_error *err) {
    const lora_logit_map *map = &d->config.logits;
    int64_t V = d->config.vocab_size, H = d->config.hidden_size;
    lora_weight head = lora_global_weight(d, LORA_LM_HEAD);
    lora_mat y = lora_mat_f32(logits, M, V, V);
    lora_linear_layer layer = {.w = &head, .y = y};
    LORA_TRY(lora_linear_forward(d->ctx, lora_mat_f32(xn, M, H, H), 1, &layer, err));
    if (map->scale != 1.0f) LORA_TRY(lora_scale_rows(d->ctx, map->scale, y, y, false, err));
    return map->softcap > 0 ? lora_softcap_rows(d->ctx, map->softcap, y, err) : LORA_OK;
}

lora_status lora_decoder_hidden_states(lora_decoder *d, const lora_batch *batch, int64_t layer, float *out, lora_error *err) {
    int64_t L = d->config.num_hidden_layers;
    LORA_CHECK(layer >= 0 && layer <= L, err, LORA_EINVAL, "layer: expected 0 (the embedding) to %lld (the last, normed), got %lld",
               (long long)L, (long long)layer);
    lora_run run = run_of(batch, false);
    lora_buffers b;
    run.layers_left_out = L - layer;
    LORA_TRY(lora_check_run(d, &run, err));
    LORA_TRY(evaluate(d, &run, &b, err));
    memcpy(out, layer == L ? b.xn : b.x[layer], (size_t)(batch->n_tokens * d->config.hidden_size) * sizeof(float));
    return LORA_OK;
}
