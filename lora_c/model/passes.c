/* What callers ask of a batch: loss with gradients, loss, logits, hidden states. */
#include <math.h>

#include "lora_c/model/extras.h"

static lora_run run_of(const lora_batch *batch, bool training, bool wants_loss) {
    return (lora_run){.n_tokens = batch->n_tokens,
                      .n_segments = batch->n_segments,
                      .input_ids = batch->input_ids,
                      .cu_seqlens = batch->cu_seqlens,
                      .wants_loss = wants_loss,
                      .targets = batch->targets,
                      .loss_weight = batch->loss_weight,
                      .values = batch->values,
                      .training = training,
                      .dropout_step = batch->dropout_step};
}

static lora_mat hidden(const lora_decoder *d, int64_t M, const float *data) {
    return data ? lora_mat_f32(data, M, d->config.hidden_size, d->config.hidden_size) : lora_mat_none();
}

/* The logits of normed rows before logits.scale and logits.softcap. */
static lora_status plain_logits(lora_decoder *d, int64_t M, const float *xn, lora_mat logits, lora_error *err) {
    lora_weight head = lora_global_weight(d, LORA_LM_HEAD);
    lora_linear_layer layer = {.w = &head, .y = logits};
    return lora_linear_forward(d->ctx, hidden(d, M, xn), 1, &layer, err);
}

/* The loss of a classifier whose numbers are compared with values, and its gradients. */
static lora_status values_loss(lora_decoder *d, const lora_run *run, const lora_buffers *b, float grad_scale, float *row_loss, lora_mat dx,
                               lora_error *err) {
    const lora_decoder_config *c = &d->config;
    int64_t M = run->n_tokens;
    lora_values loss = {.kind = c->problem == LORA_REGRESSION ? LORA_VALUES_SQUARED_ERROR : LORA_VALUES_BINARY_ENTROPY,
                        .values = b->tables.values,
                        .loss_weight = b->tables.loss_weight,
                        .grad_scale = grad_scale,
                        .loss_sum = b->loss_sum,
                        .row_loss = row_loss};
    lora_mat labels = lora_mat_f32(b->labels, M, c->num_labels, c->num_labels);
    LORA_TRY(plain_logits(d, M, b->xn, labels, err));
    LORA_TRY(lora_values_loss(d->ctx, labels, &loss, run->training ? labels : lora_mat_none(), err));
    lora_weight head = lora_global_weight(d, LORA_LM_HEAD);
    lora_linear_gradient gradient = {.dy = labels, .w = &head, .dW = run->training ? lora_global_gradient(d, LORA_LM_HEAD) : NULL};
    if (!gradient.dW && !dx.data) return LORA_OK;
    lora_ctx_watch_at(d->ctx, -1, true);
    return lora_linear_backward(d->ctx, hidden(d, M, b->xn), 1, &gradient, dx, false, err);
}

/* The loss of the normed rows, and with dx their gradient; *loss_sum stands after the pass. */
static lora_status head_and_loss(lora_decoder *d, const lora_run *run, const lora_buffers *b, float grad_scale, float *token_loss,
                                 lora_mat dx, double *loss_sum, lora_error *err) {
    if (lora_has_values(&d->config)) {
        LORA_TRY(values_loss(d, run, b, grad_scale, token_loss, dx, err));
        return lora_download(d->ctx, loss_sum, b->loss_sum, sizeof *loss_sum, err);
    }
    lora_weight head = lora_global_weight(d, LORA_LM_HEAD);
    lora_loss loss = {.targets = b->tables.targets,
                      .loss_weight = b->tables.loss_weight,
                      .grad_scale = grad_scale,
                      .loss_sum = b->loss_sum,
                      .token_loss = token_loss,
                      .map = d->config.logits};
    float *dW = run->training ? lora_global_gradient(d, LORA_LM_HEAD) : NULL;
    LORA_TRY(lora_linear_cross_entropy(d->ctx, hidden(d, run->n_tokens, b->xn), &head, &loss, dx, dW, err));
    return lora_download(d->ctx, loss_sum, b->loss_sum, sizeof *loss_sum, err);
}

static lora_status forward_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, float grad_scale, double *loss_sum,
                                    lora_error *err) {
    int64_t M = run->n_tokens, L = d->config.num_hidden_layers;
    LORA_TRY(lora_layers_forward(d, run, b, err));
    bool below = b->lowest < L || lora_norm_trains(&d->final_norm);
    lora_mat dxn = hidden(d, M, below ? b->dxn : NULL);
    LORA_TRY(head_and_loss(d, run, b, grad_scale, NULL, dxn, loss_sum, err));
    if (!below) return LORA_OK;
    lora_ctx_watch_at(d->ctx, -1, true);
    lora_norm norm = lora_decoder_norm(d, L, LORA_FINAL_NORM);
    LORA_TRY(lora_norm_backward(d->ctx, &norm, dxn, hidden(d, M, b->x[L]), b->stats_final, hidden(d, M, b->dx), false, d->final_norm.dw,
                                d->final_norm.db, err));
    return b->lowest < L ? lora_layers_backward(d, run, b, err) : LORA_OK;
}

lora_status lora_decoder_forward_backward(lora_decoder *d, const lora_batch *batch, float grad_scale, double *loss_sum, lora_error *err) {
    lora_run run = run_of(batch, true, true);
    lora_buffers b;
    LORA_CHECK(isfinite(grad_scale), err, LORA_EINVAL, "grad_scale: expected a finite number, got %g", (double)grad_scale);
    LORA_TRY(lora_check_run(d, &run, err));
    lora_status status = lora_begin_pass(d, &run, &b, err);
    if (status == LORA_OK) status = forward_backward(d, &run, &b, grad_scale, loss_sum, err);
    return lora_end_pass(d, &run, status, err);
}

static lora_status evaluate_loss(lora_decoder *d, lora_run *run, double *loss_sum, float *token_loss, lora_error *err) {
    lora_buffers b;
    lora_mat real;
    LORA_TRY(lora_begin_pass(d, run, &b, err));
    LORA_TRY(lora_layers_forward(d, run, &b, err));
    bool apart = token_loss && run->n_virtual;
    float *losses = apart ? b.x[d->config.num_hidden_layers] : token_loss; /* the residual stream is not needed any more */
    LORA_TRY(head_and_loss(d, run, &b, 1.0f, losses, lora_mat_none(), loss_sum, err));
    return apart ? lora_real_rows(d, run, &b, lora_run_mat(run, losses, 1), token_loss, &real, err) : LORA_OK;
}

lora_status lora_decoder_loss(lora_decoder *d, const lora_batch *batch, double *loss_sum, float *token_loss, lora_error *err) {
    lora_run run = run_of(batch, false, true);
    size_t bytes = (size_t)batch->n_tokens * sizeof *token_loss;
    void *losses = NULL;
    LORA_TRY(lora_check_run(d, &run, err));
    if (token_loss) LORA_TRY(lora_output_open(d->ctx, token_loss, bytes, &losses, err));
    lora_status status = evaluate_loss(d, &run, loss_sum, losses, err);
    if (token_loss) status = lora_output_close(d->ctx, token_loss, bytes, losses, status, err);
    return lora_end_pass(d, &run, status, err);
}

static lora_status evaluate_logits(lora_decoder *d, lora_run *run, float *logits, lora_error *err) {
    lora_buffers b;
    LORA_TRY(lora_begin_pass(d, run, &b, err));
    LORA_TRY(lora_layers_forward(d, run, &b, err));
    lora_mat real;
    LORA_TRY(lora_real_rows(d, run, &b, hidden(d, run->n_tokens, b.xn), b.x[d->config.num_hidden_layers], &real, err));
    return lora_decoder_head(d, real.rows, real.data, logits, err);
}

lora_status lora_decoder_logits(lora_decoder *d, const lora_batch *batch, float *logits, lora_error *err) {
    lora_run run = run_of(batch, false, false);
    LORA_TRY(lora_check_run(d, &run, err));
    return lora_end_pass(d, &run, evaluate_logits(d, &run, logits, err), err);
}

static lora_status make_logits(lora_decoder *d, int64_t M, const float *xn, lora_mat logits, lora_error *err) {
    const lora_logit_map *map = &d->config.logits;
    LORA_TRY(plain_logits(d, M, xn, logits, err));
    if (map->scale != 1.0f) LORA_TRY(lora_scale_rows(d->ctx, map->scale, logits, logits, false, err));
    return map->softcap > 0 ? lora_softcap_rows(d->ctx, map->softcap, logits, err) : LORA_OK;
}

lora_status lora_decoder_head(lora_decoder *d, int64_t M, const float *xn, float *logits, lora_error *err) {
    int64_t V = lora_head_rows(&d->config);
    size_t bytes = (size_t)M * (size_t)V * sizeof *logits;
    void *out;
    LORA_TRY(lora_output_open(d->ctx, logits, bytes, &out, err));
    lora_status status = make_logits(d, M, xn, lora_mat_f32(out, M, V, V), err);
    return lora_output_close(d->ctx, logits, bytes, out, status, err);
}

lora_status lora_last_logits(lora_decoder *d, lora_run *run, float *logits, lora_error *err) {
    lora_buffers b;
    int64_t H = d->config.hidden_size, L = d->config.num_hidden_layers;
    LORA_TRY(lora_begin_pass(d, run, &b, err));
    LORA_TRY(lora_layers_forward(d, run, &b, err));
    /* only the last row of a segment goes through the head; the residual stream is not needed any more */
    LORA_TRY(lora_copy_rows(d->ctx, hidden(d, run->n_tokens, b.xn), b.tables.last_tokens, lora_mat_f32(b.x[L], run->n_segments, H, H), NULL,
                            false, err));
    return lora_decoder_head(d, run->n_segments, b.x[L], logits, err);
}

lora_status lora_decoder_last_logits(lora_decoder *d, const lora_batch *batch, float *logits, lora_error *err) {
    lora_run run = run_of(batch, false, false);
    LORA_TRY(lora_check_run(d, &run, err));
    return lora_end_pass(d, &run, lora_last_logits(d, &run, logits, err), err);
}

static lora_status evaluate_states(lora_decoder *d, lora_run *run, int64_t layer, float *out, lora_error *err) {
    lora_buffers b;
    LORA_TRY(lora_begin_pass(d, run, &b, err));
    LORA_TRY(lora_layers_forward(d, run, &b, err));
    bool normed = layer == d->config.num_hidden_layers;
    lora_mat real, states = hidden(d, run->n_tokens, normed ? b.xn : b.x[layer]);
    LORA_TRY(lora_real_rows(d, run, &b, states, normed ? b.x[layer] : b.xn, &real, err));
    return lora_download(d->ctx, out, real.data, (size_t)(real.rows * real.cols) * sizeof *out, err);
}

lora_status lora_decoder_hidden_states(lora_decoder *d, const lora_batch *batch, int64_t layer, float *out, lora_error *err) {
    int64_t L = d->config.num_hidden_layers;
    LORA_CHECK(layer >= 0 && layer <= L, err, LORA_EINVAL, "layer: expected 0 (the embedding) to %lld (the last, normed), got %lld",
               (long long)L, (long long)layer);
    lora_run run = run_of(batch, false, false);
    run.layers_left_out = L - layer;
    LORA_TRY(lora_check_run(d, &run, err));
    return lora_end_pass(d, &run, evaluate_states(d, &run, layer, out, err), err);
}
