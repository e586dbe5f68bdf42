/* Virtual tokens: rows before those of the caller's tokens, in every segment that begins a sequence. Those of a prompt are trained
 * embeddings. Those of a prefix exist for their keys and values, which are parameters in each layer: what else becomes of
 * their rows is read by nobody, so no gradient comes back to them.
 * Source   prompt tuning, arXiv:2104.08691, section 2; prefix tuning, arXiv:2101.00190, section 4.2 */
#include <math.h>

#include "lora_c/model/extras.h"

/* Floats of a prefix per virtual token. */
static int64_t prefix_width(const lora_decoder_config *c) { return c->num_hidden_layers * 2 * lora_kv_width(c); }

static bool is_prefix(const lora_decoder *d) { return d->virtual.tokens.kind == LORA_PREFIX; }

bool lora_prompt_trains(const lora_decoder *d) {
    const lora_virtual_tokens *t = &d->virtual.tokens;
    return t->n > 0 && t->kind == LORA_PROMPT && t->gradient;
}

int64_t lora_decoder_virtual_tokens(const lora_decoder *d) { return d->virtual.tokens.n; }

/* --- setting ---------------------------------------------------------------------------------------------------------- */

static lora_status check_tokens(const lora_decoder *d, const lora_virtual_tokens *t, lora_error *err) {
    LORA_CHECK(t->kind == LORA_PROMPT || t->kind == LORA_PREFIX, err, LORA_EINVAL, "virtual tokens: expected a prompt or a prefix, got %d",
               (int)t->kind);
    LORA_CHECK(t->n >= 1 && t->n < d->config.max_position_embeddings, err, LORA_EINVAL,
               "virtual tokens: expected 1 to %lld (fewer than max_position_embeddings), got %lld",
               (long long)d->config.max_position_embeddings - 1, (long long)t->n);
    LORA_CHECK(!t->encoder || (t->kind == LORA_PREFIX && !t->values && !t->gradient), err, LORA_EINVAL,
               "virtual tokens: expected an encoder for a prefix without values, got one for others");
    LORA_CHECK(t->encoder || t->values, err, LORA_EINVAL, "virtual tokens: expected values, got NULL");
    LORA_CHECK(t->kind != LORA_PROMPT || (t->scale > 0 && isfinite(t->scale)), err, LORA_EINVAL,
               "virtual tokens: expected a finite scale > 0, got %g", (double)t->scale);
    return LORA_OK;
}

static void free_virtual(lora_decoder *d, lora_virtual *v) {
    if (v->tokens.encoder) lora_free_prefix_encoder(d, v);
}

lora_status lora_decoder_set_virtual_tokens(lora_decoder *d, const lora_virtual_tokens *tokens, lora_error *err) {
    lora_virtual made = {0}, old = d->virtual;
    if (tokens) {
        LORA_TRY(check_tokens(d, tokens, err));
        made.tokens = *tokens;
        if (tokens->encoder) LORA_TRY(lora_make_prefix_encoder(d, tokens, &made, err));
    }
    d->virtual = made;
    if (made.tokens.encoder) d->virtual.tokens.encoder = &d->virtual.encoder;
    bool trains = tokens && tokens->kind == LORA_PREFIX && made.tokens.gradient;
    for (int64_t i = 0; i < d->config.num_hidden_layers; i++) d->layers[i].prefix_trains = trains;
    free_virtual(d, &old);
    return LORA_OK;
}

void lora_free_virtual_tokens(lora_decoder *d) { free_virtual(d, &d->virtual); }

/* --- forward ---------------------------------------------------------------------------------------------------------- */

static lora_mat rows_of(const lora_run *run, const float *data, int64_t cols) { return lora_mat_f32(data, run->n_virtual, cols, cols); }

/* The parameters of each virtual row, brought together in memory of (n_virtual, cols). */
static lora_status gather(lora_decoder *d, const lora_run *run, const lora_buffers *b, const float *values, int64_t cols, int64_t ld,
                          float *memory, lora_error *err) {
    lora_weight w = lora_weight_f32(values, d->virtual.tokens.n, cols, ld);
    return lora_embedding_forward(d->ctx, b->tables.virtual_ids, &w, rows_of(run, memory, cols), err);
}

static lora_status clear_rows(lora_decoder *d, const lora_run *run, float *memory, int64_t cols, lora_error *err) {
    return lora_clear(d->ctx, memory, (size_t)(run->n_virtual * cols) * sizeof *memory, err);
}

static lora_status put(lora_decoder *d, const lora_run *run, const lora_buffers *b, const float *memory, lora_mat to, lora_error *err) {
    return lora_copy_rows(d->ctx, rows_of(run, memory, to.cols), NULL, to, b->tables.virtual_rows, false, err);
}

lora_status lora_put_virtual_embeddings(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_error *err) {
    const lora_virtual_tokens *t = &d->virtual.tokens;
    int64_t H = d->config.hidden_size;
    if (run->n_virtual == 0) return LORA_OK;
    if (is_prefix(d)) {
        LORA_TRY(clear_rows(d, run, b->xn, H, err));
    } else {
        LORA_TRY(gather(d, run, b, t->values, H, H, b->xn, err));
        lora_mat rows = rows_of(run, b->xn, H);
        if (t->scale != 1.0f) LORA_TRY(lora_scale_rows(d->ctx, t->scale, rows, rows, false, err));
    }
    return put(d, run, b, b->xn, lora_run_mat(run, b->x[0], H), err);
}

lora_status lora_put_prefix(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, float *memory, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    const lora_layer_state *s = &b->states[layer];
    int64_t Q = lora_q_width(c), KV = lora_kv_width(c), ld = lora_qkv_width(c);
    if (run->n_virtual == 0 || !is_prefix(d)) return LORA_OK;
    for (int part = 0; part < 2; part++) { /* keys, values */
        LORA_TRY(gather(d, run, b, d->virtual.tokens.values + (2 * layer + part) * KV, KV, prefix_width(c), memory, err));
        LORA_TRY(put(d, run, b, memory, lora_run_cols(run, s->qkv + Q + part * KV, KV, ld), err));
    }
    return LORA_OK;
}

/* --- backward --------------------------------------------------------------------------------------------------------- */

/* Adds the virtual rows of dx, times scale, to gradient (NULL: frozen) and clears them. */
static lora_status collect(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_mat dx, float scale, float *memory,
                           lora_mat gradient, lora_error *err) {
    lora_mat rows = rows_of(run, memory, dx.cols);
    if (gradient.data) {
        LORA_TRY(lora_copy_rows(d->ctx, dx, b->tables.virtual_rows, rows, NULL, false, err));
        if (scale != 1.0f) LORA_TRY(lora_scale_rows(d->ctx, scale, rows, rows, false, err));
        LORA_TRY(lora_embedding_backward(d->ctx, b->tables.virtual_ids, rows, gradient, err));
    }
    LORA_TRY(clear_rows(d, run, memory, dx.cols, err));
    return put(d, run, b, memory, dx, err);
}

/* b->dx holds the gradient of the first stream. */
lora_status lora_collect_embeddings(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_error *err) {
    const lora_virtual_tokens *t = &d->virtual.tokens;
    int64_t H = d->config.hidden_size;
    if (run->n_virtual == 0 || is_prefix(d)) return LORA_OK; /* a prefix: zero already */
    return collect(d, run, b, lora_run_mat(run, b->dx, H), t->scale, b->dxn, lora_mat_f32(t->gradient, t->n, H, H), err);
}

/* b->dqkv holds the gradients of what attention has read; b->datt is not needed any more. */
lora_status lora_collect_prefix(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    const lora_virtual_tokens *t = &d->virtual.tokens;
    int64_t Q = lora_q_width(c), KV = lora_kv_width(c), ld = lora_qkv_width(c);
    if (run->n_virtual == 0 || !is_prefix(d)) return LORA_OK;
    for (int part = 0; part < 2; part++) {
        float *to = t->gradient ? t->gradient + (2 * layer + part) * KV : NULL;
        lora_mat gradient = lora_mat_f32(to, t->n, KV, prefix_width(c)), rows = lora_run_cols(run, b->dqkv + Q + part * KV, KV, ld);
        LORA_TRY(collect(d, run, b, rows, 1.0f, b->datt, gradient, err));
    }
    return LORA_OK;
}
