/* The forward pass of a layer: training, evaluation, recomputation and cached decoding all run this one.
 *     x2 = x + o_proj(attention(norm(x)))        x' = x2 + down_proj(silu(gate) * up), gate and up of norm(x2)
 * Source   Llama, arXiv:2302.13971, section 2.2 */
#include <string.h>

#include "lora_c/model/decoder_struct.h"

/* No dropout outside training; a mask of its own for every step, layer and matrix. */
const lora_adapter *lora_run_adapter(const lora_matrix *m, const lora_run *run, int64_t layer, int slot,
                                     lora_adapter *storage) {
    if (!m->has_adapter) return NULL;
    *storage = m->adapter;
    if (!run->training) storage->dropout = 0;
    storage->dropout_stream = (run->dropout_step << 20) + ((uint64_t)layer << 4) + (uint64_t)slot;
    return storage;
}

static lora_status project(lora_decoder *d, const lora_run *run, int64_t layer, int slot, const float *x, int64_t ldx,
                           float *y, int64_t ldy, bool accumulate, lora_error *err) {
    const lora_matrix *m = &d->layers[layer].matrices[slot];
    lora_adapter storage;
    return lora_linear_forward(d->ctx, run->n_tokens, x, ldx, &m->w, m->bias,
                               lora_run_adapter(m, run, layer, slot, &storage), y, ldy, accumulate, err);
}

static void views_of_batch(const lora_run *run, const float *k, const float *v, int64_t ld, lora_kv_view *views) {
    for (int64_t s = 0; s < run->n_segments; s++) {
        int64_t begin = run->cu_seqlens[s];
        views[s] = (lora_kv_view){k + begin * ld, v + begin * ld, ld, ld, run->cu_seqlens[s + 1] - begin};
    }
}

static lora_status norm(lora_decoder *d, const lora_run *run, const float *x, const lora_norm *n, lora_buffers *b,
                        float *rstd, lora_error *err) {
    int64_t H = d->config.hidden_size;
    return lora_rmsnorm_forward(d->ctx, run->n_tokens, H, x, H, n->w, (float)d->config.rms_norm_eps, b->xn, H, rstd, err);
}

/* The residual stream that a projection is added to; the same memory where nothing is kept. */
static void copy_stream(const lora_decoder *d, const lora_run *run, float *to, const float *from) {
    if (to != from) memcpy(to, from, (size_t)(run->n_tokens * d->config.hidden_size) * sizeof(float));
}

static lora_status attention_block(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_decoder_config *k = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t H = k->hidden_size, Q = lora_q_width(k), KV = lora_kv_width(k), ld = lora_qkv_width(k);
    float *keys = s->qkv + Q, *values = keys + KV;
    LORA_TRY(norm(d, run, b->x[layer], &d->layers[layer].input_norm, b, s->rstd1, err));
    LORA_TRY(project(d, run, layer, LORA_Q_PROJ, b->xn, H, s->qkv, ld, false, err));
    LORA_TRY(project(d, run, layer, LORA_K_PROJ, b->xn, H, keys, ld, false, err));
    LORA_TRY(project(d, run, layer, LORA_V_PROJ, b->xn, H, values, ld, false, err));
    /* q and k heads lie behind each other: one call rotates both */
    LORA_TRY(lora_rope(d->ctx, run->n_tokens, k->num_attention_heads + k->num_key_value_heads, k->head_dim, s->qkv, ld,
                       b->positions, d->cos, d->sin, k->max_position_embeddings, false, err));
    if (run->cache)
        lora_kv_append(run, layer, keys, values, ld, b->views);
    else
        views_of_batch(run, keys, values, ld, b->views);
    LORA_TRY(lora_attention_forward(d->ctx, &d->attention, run->n_segments, run->cu_seqlens, s->qkv, ld, b->views, s->att,
                                    Q, s->lse, err));
    copy_stream(d, run, s->x2, b->x[layer]);
    return project(d, run, layer, LORA_O_PROJ, s->att, Q, s->x2, H, true, err);
}

static lora_status mlp_inputs(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    int64_t H = d->config.hidden_size, I = d->config.intermediate_size;
    LORA_TRY(norm(d, run, s->x2, &d->layers[layer].post_attention_norm, b, s->rstd2, err));
    LORA_TRY(project(d, run, layer, LORA_GATE_PROJ, b->xn, H, s->gate, I, false, err));
    return project(d, run, layer, LORA_UP_PROJ, b->xn, H, s->up, I, false, err);
}

static lora_status mlp_output(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_layer_state *s = &b->states[layer];
    int64_t H = d->config.hidden_size, I = d->config.intermediate_size;
    LORA_TRY(lora_swiglu_forward(d->ctx, run->n_tokens, I, s->gate, I, s->up, I, b->h, I, err));
    copy_stream(d, run, b->x[layer + 1], s->x2);
    return project(d, run, layer, LORA_DOWN_PROJ, b->h, I, b->x[layer + 1], H, true, err);
}

lora_status lora_layer_recompute(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) {
    LORA_TRY(attention_block(d, run, b, layer, err));
    return mlp_inputs(d, run, b, layer, err);
}

lora_status lora_layers_forward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) {
    int64_t H = d->config.hidden_size, L = d->config.num_hidden_layers;
    LORA_TRY(lora_refresh_adapter_norms(d, run, err));
    lora_write_token_rows(d);
    lora_set_positions(run, b->positions);
    LORA_TRY(lora_embedding_forward(d->ctx, run->n_tokens, run->input_ids, &d->embed_tokens.w, b->x[0], H, err));
    for (int64_t layer = 0; layer < L; layer++) {
        LORA_TRY(lora_layer_recompute(d, run, b, layer, err));
        LORA_TRY(mlp_output(d, run, b, layer, err));
    }
    return norm(d, run, b->x[L], &d->final_norm, b, b->rstd_final, err);
}
