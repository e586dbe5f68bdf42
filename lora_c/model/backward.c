/* The backward pass: the layers from the top, down to the lowest one that has something to train. In that one, only
 * what a gradient still needs is computed. */
#include "lora_c/model/decoder_struct.h"

static lora_linear_gradient gradient_of(const lora_decoder *d, const lora_run *run, int64_t layer, int slot, const float *dy, int64_t lddy) {
    const lora_layer *l = &d->layers[layer];
    const lora_matrix *m = &l->matrices[slot];
    return (lora_linear_gradient){.dy = lora_mat_f32(dy, run->n_tokens, m->w.rows, lddy), .w = &m->w, .adapter = lora_adapter_of(m),
                                  .pass = lora_run_adapter(l, run, layer, slot), .dW = m->dW, .dbias = m->dbias};
}

static lora_status project_backward(lora_decoder *d, const lora_run *run, int64_t layer, int slot, const float *dy,
                                    int64_t lddy, const float *x, int64_t ldx, float *dx, int64_t lddx, bool accumulate,
                                    lora_error *err) {
    int64_t M = run->n_tokens, K = d->layers[layer].matrices[slot].w.cols;
    if (!dx && !lora_matrix_trains(&d->layers[layer].matrices[slot])) return LORA_OK;
    lora_linear_gradient g = gradient_of(d, run, layer, slot, dy, lddy);
    return lora_linear_backward(d->ctx, lora_mat_f32(x, M, K, ldx), 1, &g, lora_mat_f32(dx, M, K, lddx), accumulate, err);
}

/* One of the projections of a common input, and the gradient of its output. */
typedef struct projected {
    int slot;
    const float *dy;
    int64_t lddy;
} projected;

/* Those that something wants a gradient of: dx (+)= the sum of their parts, one product. */
static lora_status project_backward_many(lora_decoder *d, const lora_run *run, int64_t layer, int n, const projected *parts, const float *x,
                                         float *dx, bool accumulate, lora_error *err) {
    int64_t M = run->n_tokens, H = d->config.hidden_size;
    lora_linear_gradient gradients[LORA_LINEAR_LAYERS];
    int n_wanted = 0;
    for (int i = 0; i < n; i++)
        if (dx || lora_matrix_trains(&d->layers[layer].matrices[parts[i].slot]))
            gradients[n_wanted++] = gradient_of(d, run, layer, parts[i].slot, parts[i].dy, parts[i].lddy);
    if (n_wanted == 0) return LORA_OK;
    return lora_linear_backward(d->ctx, lora_mat_f32(x, M, H, H), n_wanted, gradients, lora_mat_f32(dx, M, H, H), accumulate, err);
}

/* dx (added to when accumulate, else it may be dy) through the norm of slot, and the gradients of its weights. */
static lora_status norm_backward(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, int slot,
                                 const float *dy, int64_t lddy, const float *x, int64_t ldx, float *dx, int64_t lddx,
                                 bool accumulate, lora_error *err) {
    lora_norm n = lora_decoder_norm(d, layer, slot);
    const lora_norm_weights *w = &d->layers[layer].norms[slot];
    int64_t M = run->n_tokens, width = n.groups * n.H;
    return lora_norm_backward(d->ctx, &n, lora_mat_f32(dy, M, width, lddy), lora_mat_f32(x, M, width, ldx), b->states[layer].stats[slot],
                              lora_mat_f32(dx, M, width, lddx), accumulate, w->dw, w->db, err);
}

/* *dy: the gradient of what a projection puts out, from that of the stream: the same, or b->dbranch behind factor and norm. */
static lora_status branch_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int norm_slot,
                                   const float *branch, const float **dy, lora_error *err) {
    int64_t M = run->n_tokens, H = d->config.hidden_size;
    *dy = b->dx;
    if (!branch) return LORA_OK;
    *dy = b->dbranch;
    lora_mat dx = lora_mat_f32(b->dx, M, H, H), dbranch = lora_mat_f32(b->dbranch, M, H, H);
    LORA_TRY(lora_scale_rows(d->ctx, (float)d->config.residual_scale, dx, dbranch, false, err));
    if (!d->config.post_norm) return LORA_OK;
    return norm_backward(d, run, b, layer, norm_slot, b->dbranch, H, branch, H, b->dbranch, H, false, err);
}

/* Where the gradient of a block's input goes: without a norm before it straight into that of the stream, added. */
typedef struct input_gradient {
    float *dx;
    bool added; /* from the first projection on; else that one sets it */
} input_gradient;

static input_gradient input_gradient_of(const lora_decoder *d, const lora_buffers *b, const lora_norm_weights *norm, bool below) {
    if (!d->config.pre_norm) return (input_gradient){below ? b->dx : NULL, true};
    return (input_gradient){below || lora_norm_trains(norm) ? b->dxn : NULL, false};
}

/* The input of the block again, from the stream and the same kernel as in forward: the same bits. */
static lora_status input_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, const float *x, bool read,
                               const float **out, lora_error *err) {
    *out = x; /* not read */
    return read ? lora_block_input(d, run, b, layer, slot, x, NULL, out, err) : LORA_OK;
}

/* b->dx holds the gradient of the layer's output and, after this, of x2. below: something under the MLP wants it. */
static lora_status mlp_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, bool below,
                                lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    const lora_layer *l = &d->layers[layer];
    int64_t M = run->n_tokens, H = d->config.hidden_size, I = d->config.intermediate_size;
    bool inner = below || lora_gate_up_trains(l), gated = d->config.gated_mlp;
    input_gradient in = input_gradient_of(d, b, &l->norms[LORA_POST_ATTENTION_LAYERNORM], below);
    const float *x, *dy;
    LORA_TRY(branch_backward(d, run, b, layer, LORA_MLP_OUTPUT_NORM, s->mlp_branch, &dy, err));
    if (lora_reads_input(&l->matrices[LORA_DOWN_PROJ])) LORA_TRY(lora_layer_activation(d, run, s, b->h, err));
    LORA_TRY(project_backward(d, run, layer, LORA_DOWN_PROJ, dy, H, b->h, I, inner ? b->dh : NULL, I, false, err));
    if (!inner) return LORA_OK;
    /* gate and up are not needed again: their gradients take their place */
    lora_mat gate = lora_mat_f32(s->gate, M, I, I), up = gated ? lora_mat_f32(s->up, M, I, I) : lora_mat_none();
    LORA_TRY(lora_mlp_backward(d->ctx, d->config.activation, lora_mat_f32(b->dh, M, I, I), gate, up, gate, up, err));
    bool read = lora_reads_input(&l->matrices[LORA_GATE_PROJ]) || lora_reads_input(&l->matrices[LORA_UP_PROJ]);
    LORA_TRY(input_again(d, run, b, layer, LORA_POST_ATTENTION_LAYERNORM, s->x2, read, &x, err));
    const projected parts[] = {{LORA_UP_PROJ, s->up, I}, {LORA_GATE_PROJ, s->gate, I}};
    LORA_TRY(project_backward_many(d, run, layer, gated ? 2 : 1, parts, x, in.dx, in.added, err));
    if (!d->config.pre_norm || !in.dx) return LORA_OK;
    return norm_backward(d, run, b, layer, LORA_POST_ATTENTION_LAYERNORM, in.dx, H, s->x2, H, b->dx, H, true, err);
}

/* datt -> dqkv of the projections' outputs: through attention, back through the rotation and through the norms. */
static lora_status core_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_decoder_config *k = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t M = run->n_tokens, Q = lora_q_width(k), KV = lora_kv_width(k), ld = lora_qkv_width(k);
    lora_attention_shape shape = lora_layer_attention(d, layer);
    lora_segments segments = lora_run_segments(run);
    float *dq = b->dqkv, *dk = dq + Q, *dv = dk + KV;
    lora_attention_gradient gradient = {
        .q = lora_mat_f32(s->qkv, M, Q, ld), .k = lora_mat_f32(s->qkv + Q, M, KV, ld), .v = lora_mat_f32(s->qkv + Q + KV, M, KV, ld),
        .o = lora_mat_f32(s->att, M, Q, Q), .dout = lora_mat_f32(b->datt, M, Q, Q), .lse = s->lse,
        .dq = lora_mat_f32(dq, M, Q, ld), .dk = lora_mat_f32(dk, M, KV, ld), .dv = lora_mat_f32(dv, M, KV, ld)};
    LORA_TRY(lora_attention_backward(d->ctx, &shape, &segments, &gradient, err));
    LORA_TRY(lora_rotate(d, run, b, layer, dq, true, err));
    if (k->qk_norm == LORA_QK_NORM_NONE) return LORA_OK;
    LORA_TRY(norm_backward(d, run, b, layer, LORA_Q_NORM, dq, ld, s->qk, Q + KV, dq, ld, false, err));
    return norm_backward(d, run, b, layer, LORA_K_NORM, dk, ld, s->qk + Q, Q + KV, dk, ld, false, err);
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
    input_gradient in = input_gradient_of(d, b, &l->norms[LORA_INPUT_LAYERNORM], below);
    const float *x, *dy;
    LORA_TRY(branch_backward(d, run, b, layer, LORA_ATTENTION_OUTPUT_NORM, s->att_branch, &dy, err));
    LORA_TRY(project_backward(d, run, layer, LORA_O_PROJ, dy, H, s->att, Q, inner ? b->datt : NULL, Q, false, err));
    if (!inner) return LORA_OK;
    LORA_TRY(core_backward(d, run, b, layer, err));
    LORA_TRY(input_again(d, run, b, layer, LORA_INPUT_LAYERNORM, b->x[layer], qkv_reads_input(l), &x, err));
    const projected parts[] = {{LORA_Q_PROJ, b->dqkv, ld}, {LORA_K_PROJ, b->dqkv + Q, ld}, {LORA_V_PROJ, b->dqkv + Q + KV, ld}};
    LORA_TRY(project_backward_many(d, run, layer, 3, parts, x, in.dx, in.added, err));
    if (!k->pre_norm || !in.dx) return LORA_OK;
    return norm_backward(d, run, b, layer, LORA_INPUT_LAYERNORM, in.dx, H, b->x[layer], H, b->dx, H, true, err);
}

/* b->dx holds the gradient of the first stream. */
static lora_status embeddings_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    const lora_decoder_config *k = &d->config;
    int64_t M = run->n_tokens, H = k->hidden_size;
    float *tokens = lora_global_gradient(d, LORA_EMBED_TOKENS), *positions = lora_global(d, LORA_EMBED_POSITIONS)->dW;
    lora_mat dx = lora_mat_f32(b->dx, M, H, H);
    if (positions)
        LORA_TRY(lora_embedding_backward(d->ctx, b->positions, dx, lora_mat_f32(positions, k->max_position_embeddings, H, H), err));
    if (!tokens) return LORA_OK;
    if (k->embedding_scale != 1.0) LORA_TRY(lora_scale_rows(d->ctx, (float)k->embedding_scale, dx, dx, false, err));
    return lora_embedding_backward(d->ctx, run->input_ids, dx, lora_mat_f32(tokens, k->vocab_size, H, H), err);
}

lora_status lora_layers_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    int64_t L = d->config.num_hidden_layers;
    bool embeddings = lora_embeddings_train(d);
    for (int64_t layer = L - 1; layer >= b->lowest; layer--) {
        LORA_TRY(lora_check_stop(d, err));
        bool below = layer > b->lowest || embeddings, attention = below || lora_attention_trains(&d->layers[layer]);
        /* the shared state still holds the last layer */
        if (d->recompute == LORA_RECOMPUTE_LAYER && layer < L - 1) LORA_TRY(lora_layer_recompute(d, run, b, layer, err));
        LORA_TRY(lora_restore_layer(d, run, b, layer, err));
        LORA_TRY(mlp_backward(d, run, b, layer, attention, err));
        if (attention) LORA_TRY(attention_backward(d, run, b, layer, below, err));
    }
    return embeddings ? embeddings_backward(d, run, b, err) : LORA_OK;
}
