/* The backward pass: the layers from the top, down to the lowest one that has something to train. In that one, only
 * what a gradient still needs is computed. */
#include "lora_c/model/extras.h"
#include "lora_c/watch.h"

/* dx (added to when accumulate, else it may be dy) through the norm of slot, and the gradients of its weights. */
static lora_status norm_backward(lora_decoder *d, const lora_buffers *b, int64_t layer, int slot, lora_mat dy, lora_mat x, lora_mat dx,
                                 bool accumulate, lora_error *err) {
    lora_norm n = lora_decoder_norm(d, layer, slot);
    const lora_norm_weights *w = &d->layers[layer].norms[slot];
    return lora_norm_backward(d->ctx, &n, dy, x, b->states[layer].stats[slot], dx, accumulate, w->dw, w->db, err);
}

/* *dy: the gradient of what projection slot puts out, from that of the stream: the same, or b->dbranch behind factor, norm and
 * bottleneck. below: something under the projection wants it. */
static lora_status branch_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, bool below,
                                   const float **dy, lora_error *err) {
    int64_t H = d->config.hidden_size;
    bool attention = slot == LORA_O_PROJ;
    const lora_layer_state *s = &b->states[layer];
    const float *branch = attention ? s->att_branch : s->mlp_branch;
    int norm_slot = attention ? LORA_ATTENTION_OUTPUT_NORM : LORA_MLP_OUTPUT_NORM,
        place = attention ? LORA_AFTER_ATTENTION : LORA_AFTER_MLP;
    *dy = b->dx;
    if (!branch) return LORA_OK;
    *dy = b->dbranch;
    lora_mat dbranch = lora_run_mat(run, b->dbranch, H);
    LORA_TRY(lora_scale_rows(d->ctx, (float)d->config.residual_scale, lora_run_mat(run, b->dx, H), dbranch, false, err));
    if (d->config.post_norm) LORA_TRY(norm_backward(d, b, layer, norm_slot, dbranch, lora_run_mat(run, branch, H), dbranch, false, err));
    below = below || lora_matrix_trains(&d->layers[layer].matrices[slot]);
    if (!lora_has_bottleneck(d, layer, place) || (!below && !lora_bottleneck_trains(&d->layers[layer].bottlenecks[place]))) return LORA_OK;
    return lora_bottleneck_backward(d, run, b, layer, place, dbranch, below, err);
}

/* Where the gradient of a block's input goes: without a norm before it straight into that of the stream, added. */
typedef struct input_gradient {
    float *dx;
    bool added; /* from the first projection on; else that one sets it */
} input_gradient;

static input_gradient input_gradient_of(const lora_decoder *d, const lora_buffers *b, const lora_norm_weights *norm, bool below) {
    if (!d->config.pre_norm) return (input_gradient){.dx = below ? b->dx : NULL, .added = true};
    return (input_gradient){.dx = below || lora_norm_trains(norm) ? b->dxn : NULL};
}

/* The input of the block again, from the stream and the same kernel as in forward: the same bits. */
static lora_status input_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, const float *x, bool read,
                               lora_mat *out, lora_error *err) {
    *out = lora_run_mat(run, x, d->config.hidden_size); /* not read */
    return read ? lora_block_input(d, run, b, layer, slot, x, NULL, out, err) : LORA_OK;
}

/* b->dx holds the gradient of the layer's output and, after this, of x2. below: something under the MLP wants it. */
static lora_status mlp_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, bool below, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    const lora_layer *l = &d->layers[layer];
    int64_t H = d->config.hidden_size, I = d->config.intermediate_size;
    bool inner = below || lora_gate_up_trains(l), gated = d->config.gated_mlp;
    lora_mat h = lora_mlp_inner(d, run, b), x, dgate, dup;
    input_gradient in = input_gradient_of(d, b, &l->norms[LORA_POST_ATTENTION_LAYERNORM], below);
    const float *dy;
    LORA_TRY(branch_backward(d, run, b, layer, LORA_DOWN_PROJ, inner, &dy, err));
    if (lora_reads_input(&l->matrices[LORA_DOWN_PROJ])) LORA_TRY(lora_layer_activation(d, run, b, layer, err));
    const lora_projected down = {.slot = LORA_DOWN_PROJ, .dy = lora_run_mat(run, dy, H)};
    LORA_TRY(lora_project_backward(d, run, b, layer, 1, &down, h, lora_run_mat(run, inner ? b->dh : NULL, I), false, err));
    if (!inner) return LORA_OK;
    lora_mlp_gradients(d, run, b, layer, &dgate, &dup);
    lora_mat gate = lora_run_mat(run, s->gate, I), up = lora_run_mat(run, gated ? s->up : NULL, I);
    LORA_TRY(lora_mlp_backward(d->ctx, d->config.activation, lora_run_mat(run, b->dh, I), gate, up, dgate, dup, err));
    bool read = lora_reads_input(&l->matrices[LORA_GATE_PROJ]) || lora_reads_input(&l->matrices[LORA_UP_PROJ]);
    LORA_TRY(input_again(d, run, b, layer, LORA_POST_ATTENTION_LAYERNORM, s->x2, read, &x, err));
    const lora_projected parts[] = {{.slot = LORA_UP_PROJ, .dy = gated ? dup : dgate}, {.slot = LORA_GATE_PROJ, .dy = dgate}};
    LORA_TRY(lora_project_backward(d, run, b, layer, gated ? 2 : 1, parts, x, lora_run_mat(run, in.dx, H), in.added, err));
    if (!d->config.pre_norm || !in.dx) return LORA_OK;
    return norm_backward(d, b, layer, LORA_POST_ATTENTION_LAYERNORM, lora_run_mat(run, in.dx, H), lora_run_mat(run, s->x2, H),
                         lora_run_mat(run, b->dx, H), true, err);
}

/* datt -> dqkv of the projections' outputs: through attention, back through the rotation and through the norms. */
static lora_status core_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t Q = lora_q_width(c), KV = lora_kv_width(c), ld = lora_qkv_width(c);
    lora_attention_shape shape = lora_layer_attention(d, layer);
    lora_segments segments = lora_run_segments(run, b);
    lora_attention_gradient g = {
        .q = lora_run_cols(run, s->qkv, Q, ld),
        .k = lora_run_cols(run, s->qkv + Q, KV, ld),
        .v = lora_run_cols(run, s->qkv + Q + KV, KV, ld),
        .o = lora_attention_output(d, run, b, layer),
        .dout = lora_run_mat(run, b->datt, Q),
        .lse = s->lse,
        .dq = lora_run_cols(run, b->dqkv, Q, ld),
        .dk = lora_run_cols(run, b->dqkv + Q, KV, ld),
        .dv = lora_run_cols(run, b->dqkv + Q + KV, KV, ld),
    };
    LORA_TRY(lora_attention_backward(d->ctx, &shape, &segments, &g, err));
    LORA_TRY(lora_collect_prefix(d, run, b, layer, err));
    LORA_TRY(lora_rotate(d, run, b, layer, b->dqkv, true, err));
    if (c->qk_norm == LORA_QK_NORM_NONE) return LORA_OK;
    LORA_TRY(norm_backward(d, b, layer, LORA_Q_NORM, g.dq, lora_run_cols(run, s->qk, Q, Q + KV), g.dq, false, err));
    return norm_backward(d, b, layer, LORA_K_NORM, g.dk, lora_run_cols(run, s->qk + Q, KV, Q + KV), g.dk, false, err);
}

static bool qkv_reads_input(const lora_layer *l) {
    return lora_reads_input(&l->matrices[LORA_Q_PROJ]) || lora_reads_input(&l->matrices[LORA_K_PROJ]) ||
           lora_reads_input(&l->matrices[LORA_V_PROJ]);
}

/* b->dx holds the gradient of x2 and, after this, of the layer's input. below: something under the layer wants it. */
static lora_status attention_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, bool below, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    const lora_layer *l = &d->layers[layer];
    int64_t H = c->hidden_size, Q = lora_q_width(c), KV = lora_kv_width(c), ld = lora_qkv_width(c);
    bool inner = below || lora_qkv_trains(l);
    input_gradient in = input_gradient_of(d, b, &l->norms[LORA_INPUT_LAYERNORM], below);
    const float *dy;
    lora_mat x;
    LORA_TRY(branch_backward(d, run, b, layer, LORA_O_PROJ, inner, &dy, err));
    const lora_projected o = {.slot = LORA_O_PROJ, .dy = lora_run_mat(run, dy, H)};
    LORA_TRY(lora_project_backward(d, run, b, layer, 1, &o, lora_attention_output(d, run, b, layer),
                                   lora_run_mat(run, inner ? b->datt : NULL, Q), false, err));
    if (!inner) return LORA_OK;
    LORA_TRY(core_backward(d, run, b, layer, err));
    LORA_TRY(input_again(d, run, b, layer, LORA_INPUT_LAYERNORM, b->x[layer], qkv_reads_input(l), &x, err));
    const lora_projected parts[] = {{.slot = LORA_Q_PROJ, .dy = lora_run_cols(run, b->dqkv, Q, ld)},
                                    {.slot = LORA_K_PROJ, .dy = lora_run_cols(run, b->dqkv + Q, KV, ld)},
                                    {.slot = LORA_V_PROJ, .dy = lora_run_cols(run, b->dqkv + Q + KV, KV, ld)}};
    LORA_TRY(lora_project_backward(d, run, b, layer, 3, parts, x, lora_run_mat(run, in.dx, H), in.added, err));
    if (!c->pre_norm || !in.dx) return LORA_OK;
    return norm_backward(d, b, layer, LORA_INPUT_LAYERNORM, lora_run_mat(run, in.dx, H), lora_run_mat(run, b->x[layer], H),
                         lora_run_mat(run, b->dx, H), true, err);
}

/* b->dx holds the gradient of the first stream. */
static lora_status embeddings_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    int64_t H = c->hidden_size;
    float *tokens = lora_global_gradient(d, LORA_EMBED_TOKENS), *positions = lora_global(d, LORA_EMBED_POSITIONS)->dW;
    lora_mat dx = lora_run_mat(run, b->dx, H);
    if (positions)
        LORA_TRY(lora_embedding_backward(d->ctx, b->tables.positions, dx, lora_mat_f32(positions, c->max_position_embeddings, H, H), err));
    LORA_TRY(lora_collect_embeddings(d, run, b, err));
    if (!tokens) return LORA_OK;
    if (c->embedding_scale != 1.0) LORA_TRY(lora_scale_rows(d->ctx, (float)c->embedding_scale, dx, dx, false, err));
    return lora_embedding_backward(d->ctx, b->tables.input_ids, dx, lora_mat_f32(tokens, c->vocab_size, H, H), err);
}

/* What a layer left for its backward pass, where it is not in place. The last layer's is, but for what has no place of its own. */
static lora_status state_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    LORA_TRY(lora_restore_layer(d, run, b, layer, err));
    if (d->recompute == LORA_RECOMPUTE_ATTENTION) return lora_stream_again(d, run, b, layer, err);
    bool again = d->recompute == LORA_RECOMPUTE_LAYER && layer < d->config.num_hidden_layers - 1;
    return again ? lora_layer_recompute(d, run, b, layer, err) : LORA_OK;
}

lora_status lora_layers_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    int64_t L = d->config.num_hidden_layers;
    bool embeddings = lora_embeddings_train(d);
    for (int64_t layer = L - 1; layer >= b->lowest; layer--) {
        lora_ctx_watch_at(d->ctx, layer, true);
        LORA_TRY(lora_check_stop(d, err));
        bool below = layer > b->lowest || embeddings, attention = below || lora_attention_trains(&d->layers[layer]);
        LORA_TRY(state_again(d, run, b, layer, err));
        LORA_TRY(mlp_backward(d, run, b, layer, attention, err));
        if (attention && d->recompute == LORA_RECOMPUTE_ATTENTION) LORA_TRY(lora_qkv_again(d, run, b, layer, err));
        if (attention) LORA_TRY(attention_backward(d, run, b, layer, below, err));
        if (d->layer_done) d->layer_done(d->layer_done_arg, layer);
    }
    lora_ctx_watch_at(d->ctx, -1, true);
    return embeddings ? embeddings_backward(d, run, b, err) : LORA_OK;
}
