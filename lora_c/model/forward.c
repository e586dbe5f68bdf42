/* The forward pass of a layer: training, evaluation, recomputation and cached decoding all run this one.
 *     x2 = x + o_proj(attention(norm(x)))        x' = x2 + down_proj(activation(gate) * up), gate and up of norm(x2)
 * with the variations that lora_decoder_config names.
 * Source   Llama, arXiv:2302.13971, section 2.2; Gemma 2, arXiv:2408.00118, section 2; OLMo 2, arXiv:2501.00656, section 2 */
#include "lora_c/model/decoder_struct.h"

/* The first matrix of the layer with the same A: parts of a fused module share its dropout masks. */
static int mask_slot(const lora_layer *l, int slot) {
    for (int s = 0; s < slot; s++)
        if (l->matrices[s].has_adapter && l->matrices[s].adapter.A == l->matrices[slot].adapter.A) return s;
    return slot;
}

/* No dropout outside training; a mask of its own for every step, layer and module. */
lora_adapter_pass lora_run_adapter(const lora_layer *l, const lora_run *run, int64_t layer, int slot) {
    const lora_matrix *m = &l->matrices[slot];
    if (!m->has_adapter) return (lora_adapter_pass){0};
    return (lora_adapter_pass){.dropout = run->training ? m->adapter.dropout : 0,
                               .dropout_stream = (run->dropout_step << 20) + ((uint64_t)layer << 4) + (uint64_t)mask_slot(l, slot),
                               .norm = m->norm,
                               .low = run->states ? run->states[layer].low[slot] : NULL};
}

static lora_linear_layer projection(const lora_decoder *d, const lora_run *run, int64_t layer, int slot, float *y, int64_t ldy) {
    const lora_layer *l = &d->layers[layer];
    const lora_matrix *m = &l->matrices[slot];
    return (lora_linear_layer){.w = &m->w, .bias = m->bias, .adapter = lora_adapter_of(m), .pass = lora_run_adapter(l, run, layer, slot),
                               .y = lora_mat_f32(y, run->n_tokens, m->w.rows, ldy)};
}

static lora_status project(lora_decoder *d, const lora_run *run, int64_t layer, int slot, const float *x, int64_t ldx,
                           float *y, int64_t ldy, bool accumulate, lora_error *err) {
    lora_linear_layer p = projection(d, run, layer, slot, y, ldy);
    p.accumulate = accumulate;
    return lora_linear_forward(d->ctx, lora_mat_f32(x, run->n_tokens, p.w->cols, ldx), 1, &p, err);
}

typedef struct output {
    float *y;
    int64_t ld;
} output;

/* n consecutive slots that read the same x (M, H). */
static lora_status project_many(lora_decoder *d, const lora_run *run, int64_t layer, int first, int64_t n, const float *x, const output *out,
                                lora_error *err) {
    int64_t H = d->config.hidden_size;
    lora_linear_layer layers[LORA_LINEAR_LAYERS];
    for (int i = 0; i < n; i++) layers[i] = projection(d, run, layer, first + i, out[i].y, out[i].ld);
    return lora_linear_forward(d->ctx, lora_mat_f32(x, run->n_tokens, H, H), n, layers, err);
}

static lora_status norm(lora_decoder *d, const lora_run *run, int64_t layer, int slot, const float *x, int64_t ldx, float *y,
                        int64_t ldy, float *stats, lora_error *err) {
    lora_norm n = lora_decoder_norm(d, layer, slot);
    int64_t M = run->n_tokens, width = n.groups * n.H;
    return lora_norm_forward(d->ctx, &n, lora_mat_f32(x, M, width, ldx), lora_mat_f32(y, M, width, ldy), stats, err);
}

/* *out: what attention or the MLP reads of the stream x, its norm in b->xn or x itself. */
lora_status lora_block_input(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, const float *x,
                             float *stats, const float **out, lora_error *err) {
    int64_t H = d->config.hidden_size;
    *out = d->config.pre_norm ? b->xn : x;
    return d->config.pre_norm ? norm(d, run, layer, slot, x, H, b->xn, H, stats, err) : LORA_OK;
}

/* The residual stream that a projection is added to; the same memory where nothing is kept. */
static lora_status copy_stream(const lora_decoder *d, const lora_run *run, float *to, const float *from, lora_error *err) {
    int64_t M = run->n_tokens, H = d->config.hidden_size;
    if (to == from) return LORA_OK;
    return lora_copy_rows(d->ctx, lora_mat_f32(from, M, H, H), NULL, lora_mat_f32(to, M, H, H), NULL, false, err);
}

/* to = from + residual_scale * post_norm(projection of x): straight into the stream where nothing lies between. */
static lora_status add_block(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, int norm_slot,
                             const float *x, int64_t ldx, float *branch, const float *from, float *to, lora_error *err) {
    int64_t M = run->n_tokens, H = d->config.hidden_size;
    LORA_TRY(copy_stream(d, run, to, from, err));
    if (!branch) return project(d, run, layer, slot, x, ldx, to, H, true, err);
    LORA_TRY(project(d, run, layer, slot, x, ldx, branch, H, false, err));
    if (d->config.post_norm)
        LORA_TRY(norm(d, run, layer, norm_slot, branch, H, b->xn, H, b->states[layer].stats[norm_slot], err));
    lora_mat last = lora_mat_f32(d->config.post_norm ? b->xn : branch, M, H, H);
    return lora_scale_rows(d->ctx, (float)d->config.residual_scale, last, lora_mat_f32(to, M, H, H), true, err);
}

/* q, k and v of the layer: projected, q and k normed and rotated. */
static lora_status make_qkv(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_decoder_config *k = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t Q = lora_q_width(k), KV = lora_kv_width(k), ld = lora_qkv_width(k);
    float *raw = s->qk ? s->qk : s->qkv; /* before the norms; the same place where it is not kept */
    int64_t ld_raw = s->qk ? Q + KV : ld;
    const float *x;
    LORA_TRY(lora_block_input(d, run, b, layer, LORA_INPUT_LAYERNORM, b->x[layer], s->stats[LORA_INPUT_LAYERNORM], &x, err));
    const output qkv[] = {{raw, ld_raw}, {raw + Q, ld_raw}, {s->qkv + Q + KV, ld}};
    LORA_TRY(project_many(d, run, layer, LORA_Q_PROJ, 3, x, qkv, err));
    if (k->qk_norm != LORA_QK_NORM_NONE) {
        LORA_TRY(norm(d, run, layer, LORA_Q_NORM, raw, ld_raw, s->qkv, ld, s->stats[LORA_Q_NORM], err));
        LORA_TRY(norm(d, run, layer, LORA_K_NORM, raw + Q, ld_raw, s->qkv + Q, ld, s->stats[LORA_K_NORM], err));
    }
    return lora_rotate(d, run, b, layer, s->qkv, false, err);
}

lora_status lora_rotate(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, float *qkv, bool backward,
                        lora_error *err) {
    const lora_decoder_config *k = &d->config;
    int rope = d->layers[layer].rope;
    if (rope < 0) return LORA_OK;
    int64_t n_tables = k->rope_switch ? LORA_MAX_ROPES : 1, at = d->rope_at[rope];
    lora_rotations rotations = {.cos = d->cos + at, .sin = d->sin + at, .n_positions = n_tables * d->rope_positions,
                                .half = k->ropes[rope].rotary / 2};
    /* q and k heads lie behind each other: one call rotates both */
    lora_mat qk = lora_mat_f32(qkv, run->n_tokens, lora_q_width(k) + lora_kv_width(k), lora_qkv_width(k));
    return lora_rope(d->ctx, &rotations, k->num_attention_heads + k->num_key_value_heads, k->head_dim, b->rope_rows, qk, backward, err);
}

lora_attention_shape lora_layer_attention(const lora_decoder *d, int64_t layer) {
    const lora_decoder_config *k = &d->config;
    return (lora_attention_shape){.n_heads = k->num_attention_heads, .n_kv_heads = k->num_key_value_heads, .head_dim = k->head_dim,
                                  .scale = (float)k->attention_scale, .softcap = (float)k->attention_softcap,
                                  .sliding_window = d->layers[layer].sliding_window};
}

static lora_status attention_block(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_decoder_config *k = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t Q = lora_q_width(k), KV = lora_kv_width(k), ld = lora_qkv_width(k);
    float *keys = s->qkv + Q, *values = keys + KV;
    lora_attention_shape shape = lora_layer_attention(d, layer);
    LORA_TRY(make_qkv(d, run, b, layer, err));
    lora_segments segments = lora_run_segments(run);
    lora_kv kv = {.k = keys, .v = values, .ldk = ld, .ldv = ld, .start = b->kv_start, .length = b->kv_length};
    if (run->cache) LORA_TRY(lora_kv_append(d, run, b, layer, &kv, err));
    lora_mat q = lora_mat_f32(s->qkv, run->n_tokens, Q, ld), o = lora_mat_f32(s->att, run->n_tokens, Q, Q);
    LORA_TRY(lora_attention_forward(d->ctx, &shape, &segments, q, &kv, o, s->lse, err));
    return add_block(d, run, b, layer, LORA_O_PROJ, LORA_ATTENTION_OUTPUT_NORM, s->att, Q, s->att_branch, b->x[layer], s->x2, err);
}

static lora_status mlp_inputs(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    int64_t I = d->config.intermediate_size;
    const float *x;
    LORA_TRY(lora_block_input(d, run, b, layer, LORA_POST_ATTENTION_LAYERNORM, s->x2, s->stats[LORA_POST_ATTENTION_LAYERNORM], &x, err));
    const output gate_up[] = {{s->gate, I}, {s->up, I}};
    int without_gate = d->config.gated_mlp ? 0 : 1;
    return project_many(d, run, layer, LORA_GATE_PROJ + without_gate, 2 - without_gate, x, gate_up + without_gate, err);
}

static lora_status mlp_output(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    int64_t I = d->config.intermediate_size;
    LORA_TRY(lora_layer_activation(d, run, s, b->h, err));
    return add_block(d, run, b, layer, LORA_DOWN_PROJ, LORA_MLP_OUTPUT_NORM, b->h, I, s->mlp_branch, s->x2, b->x[layer + 1], err);
}

lora_status lora_layer_activation(lora_decoder *d, const lora_run *run, const lora_layer_state *s, float *h, lora_error *err) {
    int64_t M = run->n_tokens, I = d->config.intermediate_size;
    lora_mat up = d->config.gated_mlp ? lora_mat_f32(s->up, M, I, I) : lora_mat_none();
    return lora_mlp_forward(d->ctx, d->config.activation, lora_mat_f32(s->gate, M, I, I), up, lora_mat_f32(h, M, I, I), err);
}

/* The output of down_proj again, for the norm behind it; the last thing in b->h. */
static lora_status mlp_branch_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    int64_t H = d->config.hidden_size, I = d->config.intermediate_size;
    if (!d->config.post_norm) return LORA_OK;
    LORA_TRY(lora_layer_activation(d, run, s, b->h, err));
    LORA_TRY(project(d, run, layer, LORA_DOWN_PROJ, b->h, I, s->mlp_branch, H, false, err));
    return norm(d, run, layer, LORA_MLP_OUTPUT_NORM, s->mlp_branch, H, b->xn, H, s->stats[LORA_MLP_OUTPUT_NORM], err);
}

lora_status lora_layer_recompute(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    LORA_TRY(attention_block(d, run, b, layer, err));
    LORA_TRY(mlp_inputs(d, run, b, layer, err));
    return mlp_branch_again(d, run, b, layer, err);
}

static lora_status embed(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    int64_t M = run->n_tokens, H = d->config.hidden_size;
    lora_weight tokens = lora_global_weight(d, LORA_EMBED_TOKENS);
    lora_mat x = lora_mat_f32(b->x[0], M, H, H), positions = lora_mat_f32(b->xn, M, H, H);
    LORA_TRY(lora_embedding_forward(d->ctx, run->input_ids, &tokens, x, err));
    if (d->config.embedding_scale != 1.0) LORA_TRY(lora_scale_rows(d->ctx, (float)d->config.embedding_scale, x, x, false, err));
    if (!d->config.learned_positions) return LORA_OK;
    LORA_TRY(lora_embedding_forward(d->ctx, b->positions, &lora_global(d, LORA_EMBED_POSITIONS)->w, positions, err));
    return lora_scale_rows(d->ctx, 1.0f, positions, x, true, err);
}

lora_status lora_layers_forward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    int64_t H = d->config.hidden_size, L = d->config.num_hidden_layers - run->layers_left_out;
    LORA_TRY(lora_reach_positions(d, run, err));
    LORA_TRY(lora_refresh_adapter_norms(d, run, err));
    LORA_TRY(lora_write_token_rows(d, err));
    LORA_TRY(lora_write_adapted_globals(d, run, err));
    lora_set_positions(d, run, b);
    lora_set_kv_rows(run, b);
    LORA_TRY(embed(d, run, b, err));
    for (int64_t layer = 0; layer < L; layer++) {
        LORA_TRY(lora_check_stop(d, err));
        LORA_TRY(attention_block(d, run, b, layer, err));
        LORA_TRY(mlp_inputs(d, run, b, layer, err));
        LORA_TRY(mlp_output(d, run, b, layer, err));
        LORA_TRY(lora_keep_layer(d, run, b, layer, err));
    }
    if (run->layers_left_out) return LORA_OK;
    return norm(d, run, L, LORA_FINAL_NORM, b->x[L], H, b->xn, H, b->stats_final, err);
}
