/* The backward pass: the layers from the top, down to the lowest one that has something to train. In that one, only
 * what a gradient still needs is computed. */
#include "lora_c/model/decoder_struct.h"

static lora_status project_backward(lora_decoder *d, const lora_run *run, int64_t layer, int slot, const float *dy,
                                    int64_t lddy, const float *x, int64_t ldx, float *dx, int64_t lddx, bool accumulate,
                                    lora_error *err) {
    const lora_matrix *m = &d->layers[layer].matrices[slot];
    lora_adapter storage;
    if (!dx && !lora_matrix_trains(m)) return LORA_OK;
    return lora_linear_backward(d->ctx, run->n_tokens, dy, lddy, x, ldx, &m->w,
                                lora_run_adapter(m, run, layer, slot, &storage), dx, lddx, accumulate, m->dW, m->dbias, err);
}

/* xn again, from the input and the same kernel as in forward: the same bits. */
static lora_status norm_again(lora_decoder *d, const lora_run *run, const float *x, const lora_norm *n, lora_buffers *b,
                              lora_error *err) {
    int64_t H = d->config.hidden_size;
    return lora_rmsnorm_forward(d->ctx, run->n_tokens, H, x, H, n->w, (float)d->config.rms_norm_eps, b->xn, H, NULL, err);
}

/* dx of the residual stream += gradient through the norm; dxn NULL: nothing below wants it. */
static lora_status norm_backward(lora_decoder *d, const lora_run *run, const float *dxn, const float *x, const float *rstd,
                                 const lora_norm *n, lora_buffers *b, lora_error *err) {
    int64_t H = d->config.hidden_size;
    if (!dxn) return LORA_OK;
    return lora_rmsnorm_backward(d->ctx, run->n_tokens, H, dxn, H, x, H, n->w, rstd, b->dx, H, true, n->dw, err);
}

/* b->dx holds the gradient of the layer's output and, after this, of x2. below: something under the MLP wants it. */
static lora_status mlp_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, bool below,
                                lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    const lora_layer *l = &d->layers[layer];
    int64_t M = run->n_tokens, H = d->config.hidden_size, I = d->config.intermediate_size;
    bool inner = below || lora_gate_up_trains(l);
    float *dxn = below || l->post_attention_norm.dw ? b->dxn : NULL;
    if (lora_reads_input(&l->matrices[LORA_DOWN_PROJ]))
        LORA_TRY(lora_swiglu_forward(d->ctx, M, I, s->gate, I, s->up, I, b->h, I, err));
    LORA_TRY(project_backward(d, run, layer, LORA_DOWN_PROJ, b->dx, H, b->h, I, inner ? b->dh : NULL, I, false, err));
    if (!inner) return LORA_OK;
    /* gate and up are not needed again: their gradients take their place */
    LORA_TRY(lora_swiglu_backward(d->ctx, M, I, b->dh, I, s->gate, I, s->up, I, s->gate, I, s->up, I, err));
    if (lora_reads_input(&l->matrices[LORA_GATE_PROJ]) || lora_reads_input(&l->matrices[LORA_UP_PROJ]))
        LORA_TRY(norm_again(d, run, s->x2, &l->post_attention_norm, b, err));
    LORA_TRY(project_backward(d, run, layer, LORA_GATE_PROJ, s->gate, I, b->xn, H, dxn, H, false, err));
    LORA_TRY(project_backward(d, run, layer, LORA_UP_PROJ, s->up, I, b->xn, H, dxn, H, true, err));
    return norm_backward(d, run, dxn, s->x2, s->rstd2, &l->post_attention_norm, b, err);
}

/* datt -> dqkv of the projections' outputs: through attention and back through the rotation. */
static lora_status core_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_decoder_config *k = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t Q = lora_q_width(k), KV = lora_kv_width(k), ld = lora_qkv_width(k);
    LORA_TRY(lora_attention_backward(d->ctx, &d->attention, run->n_segments, run->cu_seqlens, s->qkv, ld, s->qkv + Q, ld,
                                     s->qkv + Q + KV, ld, s->att, Q, s->lse, b->datt, Q, b->dqkv, ld, b->dqkv + Q, ld,
                                     b->dqkv + Q + KV, ld, err));
    return lora_rope(d->ctx, run->n_tokens, k->num_attention_heads + k->num_key_value_heads, k->head_dim, b->dqkv, ld,
                     b->positions, d->cos, d->sin, k->max_position_embeddings, true, err);
}

static bool qkv_reads_input(const lora_layer *l) {
    return lora_reads_input(&l->matrices[LORA_Q_PROJ]) || lora_reads_input(&l->matrices[LORA_K_PROJ]) ||
           lora_reads_input(&l->matrices[LORA_V_PROJ]);
}

/* b->dx holds the gradient of x2 and, after this, of the layer's input. below: something under the layer wants it. */
static lora_status attention_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, bool below,
                                      lora_error *err) {
    const lora_decoder_config *k = &d->config;
    const lora_layer_state *s = &b->states[layer];
    const lora_layer *l = &d->layers[layer];
    int64_t H = k->hidden_size, Q = lora_q_width(k), KV = lora_kv_width(k), ld = lora_qkv_width(k);
    bool inner = below || lora_qkv_trains(l);
    float *dk = b->dqkv + Q, *dv = dk + KV, *dxn = below || l->input_norm.dw ? b->dxn : NULL;
    LORA_TRY(project_backward(d, run, layer, LORA_O_PROJ, b->dx, H, s->att, Q, inner ? b->datt : NULL, Q, false, err));
    if (!inner) return LORA_OK;
    LORA_TRY(core_backward(d, run, b, layer, err));
    if (qkv_reads_input(l)) LORA_TRY(norm_again(d, run, b->x[layer], &l->input_norm, b, err));
    LORA_TRY(project_backward(d, run, layer, LORA_Q_PROJ, b->dqkv, ld, b->xn, H, dxn, H, false, err));
    LORA_TRY(project_backward(d, run, layer, LORA_K_PROJ, dk, ld, b->xn, H, dxn, H, true, err));
    LORA_TRY(project_backward(d, run, layer, LORA_V_PROJ, dv, ld, b->xn, H, dxn, H, true, err));
    return norm_backward(d, run, dxn, b->x[layer], s->rstd1, &l->input_norm, b, err);
}

lora_status lora_layers_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    int64_t L = d->config.num_hidden_layers, H = d->config.hidden_size;
    float *dE = d->embed_tokens.dW;
    for (int64_t layer = L - 1; layer >= b->lowest; layer--) {
        bool below = layer > b->lowest || dE, attention = below || lora_attention_trains(&d->layers[layer]);
        /* the shared state still holds the last layer */
        if (d->recompute == LORA_RECOMPUTE_LAYER && layer < L - 1) LORA_TRY(lora_layer_recompute(d, run, b, layer, err));
        LORA_TRY(mlp_backward(d, run, b, layer, attention, err));
        if (attention) LORA_TRY(attention_backward(d, run, b, layer, below, err));
    }
    if (!dE) return LORA_OK;
    return lora_embedding_backward(d->ctx, run->n_tokens, run->input_ids, b->dx, H, d->config.vocab_size, H, dE, err);
}
