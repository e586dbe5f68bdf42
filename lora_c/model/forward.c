/* The forward pass of a layer: training, evaluation, recomputation and cached decoding all run this one.
 *     x2 = x + o_proj(attention(norm(x)))        x' = x2 + down_proj(activation(gate) * up), gate and up of norm(x2)
 * with the variations that lora_decoder_config names.
 * Source   Llama, arXiv:2302.13971, section 2.2; Gemma 2, arXiv:2408.00118, section 2; OLMo 2, arXiv:2501.00656, section 2 */
#include "lora_c/model/extras.h"
#include "lora_c/watch.h"

static lora_status norm(lora_decoder *d, int64_t layer, int slot, lora_mat x, lora_mat y, float *stats, lora_error *err) {
    lora_norm n = lora_decoder_norm(d, layer, slot);
    return lora_norm_forward(d->ctx, &n, x, y, stats, err);
}

/* *out: what attention or the MLP reads of the stream x, its norm in b->xn or x itself. */
lora_status lora_block_input(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, const float *x, float *stats,
                             lora_mat *out, lora_error *err) {
    int64_t H = d->config.hidden_size;
    *out = lora_run_mat(run, x, H);
    if (!d->config.pre_norm) return LORA_OK;
    *out = lora_run_typed(run, b->xn, H, slot == LORA_INPUT_LAYERNORM ? b->types.attention_input : b->types.mlp_input, b->types.lent);
    return norm(d, layer, slot, lora_run_mat(run, x, H), *out, stats, err);
}

/* The projection of x and the bottleneck behind it into branch. */
static lora_status make_branch(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, lora_mat x, lora_mat branch,
                               lora_error *err) {
    int place = slot == LORA_O_PROJ ? LORA_AFTER_ATTENTION : LORA_AFTER_MLP;
    if (!lora_has_bottleneck(d, layer, place)) return lora_project(d, run, b, layer, slot, 1, x, &branch, false, err);
    const float *kept = b->states[layer].before[place];
    lora_mat before = kept ? lora_run_mat(run, kept, d->config.hidden_size) : branch;
    LORA_TRY(lora_project(d, run, b, layer, slot, 1, x, &before, false, err));
    return lora_bottleneck_forward(d, run, b, layer, place, before, branch, err);
}

/* to = from + residual_scale * post_norm(projection of x): straight into the stream where nothing lies between. */
static lora_status add_block(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, lora_mat x, float *branch,
                             const float *from, float *to, lora_error *err) {
    int64_t H = d->config.hidden_size;
    int norm_slot = slot == LORA_O_PROJ ? LORA_ATTENTION_OUTPUT_NORM : LORA_MLP_OUTPUT_NORM;
    lora_mat stream = lora_run_mat(run, to, H), added = lora_run_mat(run, branch, H), normed = lora_run_mat(run, b->xn, H);
    if (to != from) LORA_TRY(lora_copy_rows(d->ctx, lora_run_mat(run, from, H), NULL, stream, NULL, false, err)); /* else nothing is kept */
    if (!branch) return lora_project(d, run, b, layer, slot, 1, x, &stream, true, err);
    LORA_TRY(make_branch(d, run, b, layer, slot, x, added, err));
    if (d->config.post_norm) LORA_TRY(norm(d, layer, norm_slot, added, normed, b->states[layer].stats[norm_slot], err));
    return lora_scale_rows(d->ctx, (float)d->config.residual_scale, d->config.post_norm ? normed : added, stream, true, err);
}

/* q, k and v of the layer: projected, q and k normed and rotated; those of a prefix as they are, by way of memory as wide as k. */
static lora_status make_qkv(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, float *memory, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t Q = lora_q_width(c), KV = lora_kv_width(c), ld = lora_qkv_width(c);
    lora_mat q = lora_run_cols(run, s->qkv, Q, ld), k = lora_run_cols(run, s->qkv + Q, KV, ld),
             v = lora_run_cols(run, s->qkv + Q + KV, KV, ld);
    /* before the norms; the same place where it is not kept */
    lora_mat raw_q = s->qk ? lora_run_cols(run, s->qk, Q, Q + KV) : q, raw_k = s->qk ? lora_run_cols(run, s->qk + Q, KV, Q + KV) : k;
    lora_mat x;
    LORA_TRY(lora_block_input(d, run, b, layer, LORA_INPUT_LAYERNORM, b->x[layer], s->stats[LORA_INPUT_LAYERNORM], &x, err));
    const lora_mat out[] = {raw_q, raw_k, v};
    LORA_TRY(lora_project(d, run, b, layer, LORA_Q_PROJ, 3, x, out, false, err));
    if (c->qk_norm != LORA_QK_NORM_NONE) {
        LORA_TRY(norm(d, layer, LORA_Q_NORM, raw_q, q, s->stats[LORA_Q_NORM], err));
        LORA_TRY(norm(d, layer, LORA_K_NORM, raw_k, k, s->stats[LORA_K_NORM], err));
    }
    LORA_TRY(lora_rotate(d, run, b, layer, s->qkv, false, err));
    return lora_put_prefix(d, run, b, layer, memory, err);
}

lora_status lora_rotate(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, float *qkv, bool backward, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    int rope = d->layers[layer].rope;
    if (rope < 0) return LORA_OK;
    int64_t n_tables = c->rope_switch ? LORA_MAX_ROPES : 1, at = d->rope_at[rope];
    lora_rotations table = {
        .cos = d->cos + at, .sin = d->sin + at, .n_positions = n_tables * d->rope_positions, .half = c->ropes[rope].rotary / 2};
    int64_t heads = c->num_attention_heads + c->num_key_value_heads; /* of q and k lie behind each other: one call rotates both */
    lora_mat x = lora_run_cols(run, qkv, heads * c->head_dim, lora_qkv_width(c));
    return lora_rope(d->ctx, &table, heads, c->head_dim, b->tables.rope_rows, x, backward, err);
}

lora_attention_shape lora_layer_attention(const lora_decoder *d, int64_t layer) {
    const lora_decoder_config *c = &d->config;
    return (lora_attention_shape){.n_heads = c->num_attention_heads,
                                  .n_kv_heads = c->num_key_value_heads,
                                  .head_dim = c->head_dim,
                                  .scale = (float)c->attention_scale,
                                  .softcap = (float)c->attention_softcap,
                                  .sliding_window = d->layers[layer].sliding_window};
}

/* Of the layer's q, k and v; its output and the sums of its softmax are kept. */
static lora_status attend(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    lora_attention_shape shape = lora_layer_attention(d, layer);
    lora_segments segments = lora_run_segments(run, b);
    lora_kv kv = lora_layer_kv(d, run, b, layer, s->qkv);
    lora_mat q = lora_run_cols(run, s->qkv, lora_q_width(&d->config), lora_qkv_width(&d->config));
    return lora_attention_forward(d->ctx, &shape, &segments, q, &kv, lora_attention_output(d, run, b, layer), s->lse, err);
}

static lora_status attention_block(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t Q = lora_q_width(c), KV = lora_kv_width(c), ld = lora_qkv_width(c);
    LORA_TRY(make_qkv(d, run, b, layer, s->att, err)); /* attention's output is not there yet */
    if (run->cache) LORA_TRY(lora_kv_append(d, run, b, layer, s->qkv + Q, s->qkv + Q + KV, ld, err));
    LORA_TRY(attend(d, run, b, layer, err));
    return add_block(d, run, b, layer, LORA_O_PROJ, lora_attention_output(d, run, b, layer), s->att_branch, b->x[layer], s->x2, err);
}

static lora_status mlp_inputs(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    int64_t I = d->config.intermediate_size;
    lora_mat x;
    LORA_TRY(lora_block_input(d, run, b, layer, LORA_POST_ATTENTION_LAYERNORM, s->x2, s->stats[LORA_POST_ATTENTION_LAYERNORM], &x, err));
    const lora_mat gate_up[] = {lora_run_mat(run, s->gate, I), lora_run_mat(run, s->up, I)};
    int without_gate = d->config.gated_mlp ? 0 : 1;
    return lora_project(d, run, b, layer, LORA_GATE_PROJ + without_gate, 2 - without_gate, x, gate_up + without_gate, false, err);
}

static lora_status mlp_output(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    LORA_TRY(lora_layer_activation(d, run, b, layer, err));
    return add_block(d, run, b, layer, LORA_DOWN_PROJ, lora_mlp_inner(d, run, b), s->mlp_branch, s->x2, b->x[layer + 1], err);
}

lora_status lora_layer_activation(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    int64_t I = d->config.intermediate_size;
    lora_mat up = d->config.gated_mlp ? lora_run_mat(run, s->up, I) : lora_mat_none();
    return lora_mlp_forward(d->ctx, d->config.activation, lora_run_mat(run, s->gate, I), up, lora_mlp_inner(d, run, b), err);
}

/* The output of down_proj again, for the norm or the bottleneck behind it; the last thing in b->h. */
static lora_status mlp_branch_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    int64_t H = d->config.hidden_size;
    if (!d->config.post_norm && !lora_has_bottleneck(d, layer, LORA_AFTER_MLP)) return LORA_OK;
    LORA_TRY(lora_layer_activation(d, run, b, layer, err));
    lora_mat branch = lora_run_mat(run, s->mlp_branch, H);
    LORA_TRY(make_branch(d, run, b, layer, LORA_DOWN_PROJ, lora_mlp_inner(d, run, b), branch, err));
    if (!d->config.post_norm) return LORA_OK;
    return norm(d, layer, LORA_MLP_OUTPUT_NORM, branch, lora_run_mat(run, b->xn, H), s->stats[LORA_MLP_OUTPUT_NORM], err);
}

lora_status lora_qkv_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    LORA_TRY(make_qkv(d, run, b, layer, b->datt, err)); /* nothing is in it yet */
    /* From an input that was rounded: its softmax is another one, and with the old sums and output its gradient would not add up. */
    bool rounded = b->kept_dtype != LORA_F32 && lora_keeps_copy(d, b, layer);
    return rounded ? attend(d, run, b, layer, err) : LORA_OK;
}

lora_status lora_stream_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    return add_block(d, run, b, layer, LORA_O_PROJ, lora_attention_output(d, run, b, layer), s->att_branch, b->x[layer], s->x2, err);
}

lora_status lora_layer_recompute(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    LORA_TRY(attention_block(d, run, b, layer, err));
    LORA_TRY(mlp_inputs(d, run, b, layer, err));
    return mlp_branch_again(d, run, b, layer, err);
}

/* No noise outside training, and none on virtual tokens, which are put in after it and count as tokens of their segments. Its stream is
 * none of those of dropout, whose layers are fewer. */
static lora_status add_noise(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_mat x, lora_error *err) {
    if (!run->training || d->noise_alpha == 0) return LORA_OK;
    lora_noise noise = {.alpha = d->noise_alpha, .seed = d->noise_seed, .stream = (run->dropout_step << 20) + 0xfffff};
    lora_segments segments = lora_run_segments(run, b);
    return lora_add_noise(d->ctx, &noise, &segments, x, err);
}

static lora_status embed(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    int64_t H = d->config.hidden_size;
    lora_weight tokens = lora_global_weight(d, LORA_EMBED_TOKENS);
    lora_mat x = lora_run_mat(run, b->x[0], H), positions = lora_run_mat(run, b->xn, H);
    LORA_TRY(lora_embedding_forward(d->ctx, b->tables.input_ids, &tokens, x, err));
    if (d->config.embedding_scale != 1.0) LORA_TRY(lora_scale_rows(d->ctx, (float)d->config.embedding_scale, x, x, false, err));
    LORA_TRY(add_noise(d, run, b, x, err));
    LORA_TRY(lora_put_virtual_embeddings(d, run, b, err));
    if (!d->config.learned_positions) return LORA_OK;
    LORA_TRY(lora_embedding_forward(d->ctx, b->tables.positions, &lora_global(d, LORA_EMBED_POSITIONS)->w, positions, err));
    return lora_scale_rows(d->ctx, 1.0f, positions, x, true, err);
}

lora_status lora_layers_forward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    int64_t H = d->config.hidden_size, L = d->config.num_hidden_layers - run->layers_left_out;
    LORA_TRY(embed(d, run, b, err));
    for (int64_t layer = 0; layer < L; layer++) {
        lora_ctx_watch_at(d->ctx, layer, false);
        LORA_TRY(lora_check_stop(d, err));
        LORA_TRY(attention_block(d, run, b, layer, err));
        LORA_TRY(mlp_inputs(d, run, b, layer, err));
        LORA_TRY(mlp_output(d, run, b, layer, err));
        LORA_TRY(lora_keep_layer(d, run, b, layer, err));
    }
    lora_ctx_watch_at(d->ctx, -1, false);
    if (run->layers_left_out) return LORA_OK;
    return norm(d, L, LORA_FINAL_NORM, lora_run_mat(run, b->x[L], H), lora_run_mat(run, b->xn, H), b->stats_final, err);
}
