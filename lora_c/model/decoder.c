/* Creation, and the setters with every shape check. */
#include "lora_c/decoder.h"

#include <math.h>

#include "lora_c/base/mat.h"
#include "lora_c/model/extras.h"
#include "lora_c/weight_rows.h"

/* --- creation --- */

static lora_status check_sizes(const lora_decoder_config *c, lora_error *err) {
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"hidden_size", c->hidden_size},
                 {"intermediate_size", c->intermediate_size},
                 {"num_hidden_layers", c->num_hidden_layers},
                 {"num_attention_heads", c->num_attention_heads},
                 {"num_key_value_heads", c->num_key_value_heads},
                 {"head_dim", c->head_dim},
                 {"vocab_size", c->vocab_size},
                 {"max_position_embeddings", c->max_position_embeddings}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        LORA_CHECK(sizes[i].value > 0 && sizes[i].value < INT32_MAX, err, LORA_EINVAL, "%s: expected 1 to %d, got %lld",
                   sizes[i].name, INT32_MAX - 1, (long long)sizes[i].value);
    LORA_CHECK(c->num_hidden_layers <= LORA_MAX_LAYERS, err, LORA_EINVAL, "num_hidden_layers: expected 1 to %d, got %lld", LORA_MAX_LAYERS,
               (long long)c->num_hidden_layers);
    return LORA_OK;
}

static lora_status check_number(const char *name, double x, bool may_be_zero, lora_error *err) {
    LORA_CHECK((may_be_zero ? x >= 0 : x > 0) && isfinite(x), err, LORA_EINVAL, "%s: expected a finite number %s 0, got %g", name,
               may_be_zero ? ">=" : ">", x);
    return LORA_OK;
}

static lora_status check_numbers(const lora_decoder_config *c, lora_error *err) {
    LORA_TRY(check_number("norm_eps", c->norm_eps, false, err));
    LORA_TRY(check_number("norm_weight_offset", c->norm_weight_offset, true, err));
    LORA_TRY(check_number("embedding_scale", c->embedding_scale, false, err));
    LORA_TRY(check_number("residual_scale", c->residual_scale, false, err));
    LORA_TRY(check_number("attention_scale", c->attention_scale, false, err));
    LORA_TRY(check_number("attention_softcap", c->attention_softcap, true, err));
    LORA_TRY(check_number("logit_scale", (double)c->logits.scale, false, err));
    return check_number("logit_softcap", (double)c->logits.softcap, true, err);
}

static lora_status check_rope(const lora_decoder_config *c, const lora_rope_config *r, lora_error *err) {
    LORA_CHECK(r->rotary >= 2 && r->rotary % 2 == 0 && r->rotary <= c->head_dim, err, LORA_EINVAL,
               "rope_inv_freq: expected 1 to head_dim / 2 = %lld values, got %lld", (long long)c->head_dim / 2, (long long)r->rotary / 2);
    LORA_TRY(check_number("rope_scale", r->scale, false, err));
    LORA_CHECK(r->inv_freq, err, LORA_EINVAL, "rope_inv_freq: expected values, got NULL");
    for (int64_t i = 0; i < r->rotary / 2; i++)
        LORA_CHECK(isfinite(r->inv_freq[i]), err, LORA_EINVAL, "rope_inv_freq: expected finite values, got %g at index %lld",
                   r->inv_freq[i], (long long)i);
    return LORA_OK;
}

static lora_status check_ropes(const lora_decoder_config *c, lora_error *err) {
    LORA_CHECK(c->n_ropes >= 0 && c->n_ropes <= LORA_MAX_ROPES, err, LORA_EINVAL, "n_ropes: expected 0 to %d, got %d", LORA_MAX_ROPES,
               c->n_ropes);
    for (int i = 0; i < c->n_ropes; i++) LORA_TRY(check_rope(c, &c->ropes[i], err));
    for (int64_t i = 0; c->layer_rope && i < c->num_hidden_layers; i++)
        LORA_CHECK(c->layer_rope[i] >= -1 && c->layer_rope[i] < c->n_ropes, err, LORA_EINVAL, "layer_rope: expected -1 to %d, got %d at index %lld",
                   c->n_ropes - 1, (int)c->layer_rope[i], (long long)i);
    if (!c->rope_switch) return LORA_OK;
    LORA_CHECK(c->n_ropes == 2 && !c->layer_rope && c->ropes[0].rotary == c->ropes[1].rotary, err, LORA_EINVAL,
               "rope_switch: expected two tables of one size for all layers, got others");
    LORA_CHECK(c->rope_switch > 0 && c->max_position_embeddings < INT32_MAX / 2, err, LORA_EINVAL, "rope_switch: expected > 0, got %lld",
               (long long)c->rope_switch);
    return LORA_OK;
}

static lora_status check_config(const lora_decoder_config *c, lora_error *err) {
    LORA_TRY(check_sizes(c, err));
    LORA_CHECK(c->num_attention_heads % c->num_key_value_heads == 0, err, LORA_EINVAL,
               "num_attention_heads: expected a multiple of num_key_value_heads (%lld), got %lld",
               (long long)c->num_key_value_heads, (long long)c->num_attention_heads);
    LORA_CHECK(lora_q_width(c) < INT32_MAX, err, LORA_EINVAL,
               "num_attention_heads: expected num_attention_heads * head_dim below %d, got %lld", INT32_MAX,
               (long long)lora_q_width(c));
    LORA_CHECK(c->pre_norm || c->post_norm, err, LORA_EINVAL, "pre_norm, post_norm: expected at least one of them, got none");
    LORA_CHECK(c->gated_mlp || c->activation == LORA_GELU_TANH, err, LORA_EUNSUPPORTED, "activation: expected gelu_tanh without a gate, got another");
    for (int64_t i = 0; c->sliding_window && i < c->num_hidden_layers; i++)
        LORA_CHECK(c->sliding_window[i] >= 0, err, LORA_EINVAL, "sliding_window: expected >= 0, got %d at index %lld",
                   (int)c->sliding_window[i], (long long)i);
    LORA_TRY(check_numbers(c, err));
    return check_ropes(c, err);
}

static lora_status make_parts(lora_decoder *d, lora_error *err) {
    lora_decoder_config *c = &d->config;
    size_t L = (size_t)c->num_hidden_layers, bytes = L * sizeof *d->layers;
    d->layers = lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, bytes);
    d->states = d->layers ? lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, L * sizeof *d->states) : NULL;
    d->streams = d->states ? lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, (L + 1) * sizeof *d->streams) : NULL;
    d->kept = d->streams ? lora_host_alloc(d->ctx, LORA_MEM_SCRATCH, L * sizeof *d->kept) : NULL;
    LORA_CHECK(d->kept, err, LORA_ENOMEM, "num_hidden_layers: expected %zu bytes for %lld layers, got none", bytes,
               (long long)c->num_hidden_layers);
    for (int64_t i = 0; i < c->num_hidden_layers; i++) {
        d->layers[i].sliding_window = c->sliding_window ? c->sliding_window[i] : 0;
        d->layers[i].rope = c->layer_rope ? c->layer_rope[i] : c->n_ropes ? 0 : -1;
    }
    c->sliding_window = NULL; /* the layers hold them */
    c->layer_rope = NULL;
    return lora_copy_inv_freq(d, err);
}

lora_status lora_decoder_create(lora_ctx *ctx, const lora_decoder_config *config, lora_decoder **out, lora_error *err) {
    *out = NULL;
    LORA_TRY(check_config(config, err));
    lora_decoder *d = lora_host_alloc(ctx, LORA_MEM_SCRATCH, sizeof *d);
    LORA_CHECK(d, err, LORA_ENOMEM, "decoder: expected %zu bytes, got none", sizeof *d);
    d->shared = ctx;
    d->config = *config;
    lora_status status = lora_ctx_create_view(ctx, &d->ctx, err);
    if (status == LORA_OK) status = make_parts(d, err);
    if (status != LORA_OK) {
        lora_decoder_destroy(d);
        return status;
    }
    *out = d;
    return LORA_OK;
}

void lora_decoder_destroy(lora_decoder *d) {
    if (!d) return;
    if (d->ctx) {
        lora_decoder_free_activations(d);
        lora_free_rope_tables(d);
        lora_free_adapter_norms(d);
        lora_free_adapted_globals(d);
        lora_free_token_rows(d);
    }
    void *const tables[] = {d->layers, d->states, d->streams, d->kept};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) lora_host_free(d->shared, tables[i]);
    lora_ctx_destroy(d->ctx);
    lora_host_free(d->shared, d);
}

void lora_decoder_set_recompute(lora_decoder *d, lora_recompute recompute) { d->recompute = recompute; }

lora_status lora_decoder_set_activation_dtype(lora_decoder *d, lora_dtype dtype, lora_error *err) {
    LORA_CHECK(dtype == LORA_F32 || dtype == LORA_BF16, err, LORA_EDTYPE, "activation_dtype: expected float32 or bfloat16, got %s",
               lora_dtype_name(dtype));
    d->activation_dtype = dtype;
    return LORA_OK;
}

void lora_decoder_set_precision(lora_decoder *d, lora_precision precision) {
    lora_status always = lora_ctx_set_precision(d->ctx, precision == LORA_PRECISION_FAST ? LORA_PRECISION_FAST : LORA_PRECISION_EXACT, NULL);
    (void)always; /* both are precisions */
}

lora_precision lora_decoder_precision(const lora_decoder *d) { return lora_ctx_precision(d->ctx); }

void lora_decoder_set_stopping(lora_decoder *d, bool on) { atomic_store(&d->stopping, on); }
bool lora_decoder_stopping(const lora_decoder *d) { return atomic_load(&d->stopping); }

/* What a pass keeps from one call to the next and had begun to write. */
void lora_decoder_after_fork(lora_decoder *d) {
    lora_forget_adapter_norms(d);
    lora_forget_adapted_globals(d);
    lora_status dropped = lora_drop_adapted_gradients(d, NULL);
    if (dropped == LORA_OK) dropped = lora_drop_token_gradients(d, NULL);
    (void)dropped; /* other devices do not survive a fork at all */
}

/* --- places --- */

static lora_status check_layer(const lora_decoder *d, int64_t layer, bool global, const char *part, lora_error *err) {
    if (global)
        LORA_CHECK(layer == -1, err, LORA_EINVAL, "%s: expected layer -1, got %lld", part, (long long)layer);
    else
        LORA_CHECK(layer >= 0 && layer < d->config.num_hidden_layers, err, LORA_EINVAL, "%s: expected layer 0 to %lld, got %lld",
                   part, (long long)d->config.num_hidden_layers - 1, (long long)layer);
    return LORA_OK;
}

static lora_status find_matrix(lora_decoder *d, int64_t layer, int slot, lora_matrix **out, lora_error *err) {
    LORA_CHECK(slot >= 0 && slot < LORA_MATRIX_SLOTS, err, LORA_EINVAL, "slot: expected 0 to %d, got %d", LORA_MATRIX_SLOTS - 1, slot);
    bool global = slot >= LORA_LAYER_MATRICES;
    LORA_TRY(check_layer(d, layer, global, lora_decoder_slot_name(false, slot).text, err));
    LORA_CHECK(d->config.gated_mlp || slot != LORA_GATE_PROJ, err, LORA_EINVAL, "gate_proj: expected none in this model (gated_mlp), got one");
    LORA_CHECK(d->config.learned_positions || slot != LORA_EMBED_POSITIONS, err, LORA_EINVAL,
               "embed_positions: expected none in this model (learned_positions), got one");
    *out = global ? &d->globals[slot - LORA_LAYER_MATRICES] : &d->layers[layer].matrices[slot];
    return LORA_OK;
}

static void matrix_shape(const lora_decoder_config *c, int slot, int64_t *rows, int64_t *cols) {
    int64_t H = c->hidden_size, I = c->intermediate_size, Q = lora_q_width(c), KV = lora_kv_width(c), V = c->vocab_size;
    const int64_t shapes[][2] = {{Q, H}, {KV, H}, {KV, H}, {H, Q}, {I, H}, {I, H}, {H, I}, {V, H}, {V, H}, {c->max_position_embeddings, H}};
    *rows = shapes[slot][0];
    *cols = shapes[slot][1];
}

void lora_decoder_matrix_shape(const lora_decoder *d, lora_matrix_slot slot, int64_t *rows, int64_t *cols) {
    matrix_shape(&d->config, (int)slot, rows, cols);
}

/* --- setters --- */

static lora_status check_matrix(const lora_weight *w, int64_t rows, int64_t cols, bool trained, const char *name, lora_error *err) {
    LORA_TRY(lora_mat_check_weight(name, w, err));
    LORA_CHECK(w->rows == rows && w->cols == cols, err, LORA_ESHAPE, "%s: expected (%lld, %lld), got (%lld, %lld)", name,
               (long long)rows, (long long)cols, (long long)w->rows, (long long)w->cols);
    LORA_CHECK(!trained || w->kind == LORA_WEIGHT_F32, err, LORA_EDTYPE, "%s: expected float32 for a trained weight, got %s", name,
               w->kind == LORA_WEIGHT_BF16 ? "bfloat16" : "quantized codes");
    return LORA_OK;
}

lora_status lora_decoder_set_matrix(lora_decoder *d, int64_t layer, lora_matrix_slot slot, const lora_weight *w, float *grad,
                                    lora_error *err) {
    lora_matrix *m = NULL;
    int64_t rows, cols;
    LORA_TRY(find_matrix(d, layer, (int)slot, &m, err));
    matrix_shape(&d->config, (int)slot, &rows, &cols);
    LORA_TRY(check_matrix(w, rows, cols, grad != NULL, lora_matrix_name(layer, (int)slot).text, err));
    LORA_TRY(lora_weight_rows(w, 0, rows, &m->w, err));
    m->norm_known = false;
    lora_forget_adapted_globals(d);
    m->set = true;
    m->dW = grad;
    return LORA_OK;
}

static bool is_global_vector(int slot) { return slot == LORA_FINAL_NORM || slot == LORA_NORM_BIAS + LORA_FINAL_NORM; }

static int64_t vector_size(const lora_decoder_config *c, int slot) {
    int64_t rows, cols;
    if (slot < LORA_BIAS) return lora_norm_width(c, slot % LORA_NORM_SLOTS);
    matrix_shape(c, slot - LORA_BIAS, &rows, &cols);
    return rows;
}

static void put_vector(lora_decoder *d, int64_t layer, int slot, const float *v, float *grad) {
    if (slot >= LORA_BIAS) {
        lora_matrix *m = &d->layers[layer].matrices[slot - LORA_BIAS];
        m->bias = v;
        m->dbias = grad;
        return;
    }
    lora_norm_weights *n = is_global_vector(slot) ? &d->final_norm : &d->layers[layer].norms[slot % LORA_NORM_SLOTS];
    *(slot < LORA_NORM_BIAS ? &n->w : &n->b) = v;
    *(slot < LORA_NORM_BIAS ? &n->dw : &n->db) = grad;
}

lora_status lora_decoder_set_vector(lora_decoder *d, int64_t layer, lora_vector_slot vector_slot, const float *v, int64_t n,
                                    float *grad, lora_error *err) {
    int slot = (int)vector_slot;
    LORA_CHECK(slot >= 0 && slot < LORA_VECTOR_SLOTS, err, LORA_EINVAL, "slot: expected 0 to %d, got %d", LORA_VECTOR_SLOTS - 1, slot);
    LORA_TRY(check_layer(d, layer, is_global_vector(slot), lora_decoder_slot_name(true, slot).text, err));
    lora_weight_name name = lora_vector_name(layer, slot);
    bool belongs = slot >= LORA_BIAS ? d->config.gated_mlp || slot != LORA_BIAS + LORA_GATE_PROJ
                                     : lora_has_norm(&d->config, slot % LORA_NORM_SLOTS) &&
                                           (slot < LORA_NORM_BIAS || d->config.norm == LORA_NORM_LAYER);
    LORA_CHECK(belongs, err, LORA_EINVAL, "%s: expected none in this model, got one", name.text);
    int64_t expected = vector_size(&d->config, slot);
    LORA_CHECK(v, err, LORA_EINVAL, "%s: expected a vector, got NULL", name.text);
    LORA_CHECK(n == expected, err, LORA_ESHAPE, "%s: expected (%lld,), got (%lld,)", name.text, (long long)expected, (long long)n);
    put_vector(d, layer, slot, v, grad);
    return LORA_OK;
}

lora_status lora_decoder_set_adapter(lora_decoder *d, int64_t layer, lora_matrix_slot slot, const lora_adapter *adapter,
                                     lora_error *err) {
    lora_matrix *m = NULL;
    LORA_TRY(find_matrix(d, layer, (int)slot, &m, err));
    lora_weight_name name = lora_matrix_name(layer, (int)slot);
    LORA_CHECK(slot != LORA_EMBED_POSITIONS, err, LORA_EUNSUPPORTED, "%s: expected another matrix for an adapter, got this one", name.text);
    if (adapter) {
        LORA_CHECK(adapter->A && adapter->B, err, LORA_EINVAL, "%s: expected A and B, got NULL", name.text);
        LORA_CHECK(adapter->rank > 0 && adapter->rank < INT32_MAX, err, LORA_EINVAL, "%s: expected r > 0, got %lld", name.text,
                   (long long)adapter->rank);
        LORA_CHECK(adapter->dropout >= 0 && adapter->dropout < 1, err, LORA_EINVAL, "%s: expected 0 <= lora_dropout < 1, got %g",
                   name.text, (double)adapter->dropout);
        if ((int)slot >= LORA_LAYER_MATRICES) LORA_TRY(lora_make_adapted_global(d, slot, adapter, err));
        if (adapter->magnitude) {
            LORA_CHECK(m->set, err, LORA_EINVAL, "%s: expected its weight before a DoRA adapter, got none", name.text);
            LORA_TRY(lora_make_adapter_norm(d, m, err));
        }
        m->adapter = *adapter;
    }
    m->has_adapter = adapter != NULL;
    if (!adapter && (int)slot >= LORA_LAYER_MATRICES) return lora_make_adapted_global(d, slot, NULL, err);
    return LORA_OK;
}

bool lora_decoder_has_dropout(const lora_decoder *d) {
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            const lora_matrix *m = &d->layers[layer].matrices[slot];
            if (m->has_adapter && m->adapter.dropout > 0) return true;
        }
    return false; /* adapters of the embedding and the head have none while they train */
}

/* --- completeness --- */

static lora_status missing(lora_weight_name name, lora_error *err) {
    return lora_fail(err, LORA_EINVAL, "%s: expected a weight, got none", name.text);
}

static lora_status check_norm(const lora_decoder *d, int64_t layer, int slot, const lora_norm_weights *n, lora_error *err) {
    if (!lora_has_norm(&d->config, slot)) return LORA_OK;
    if (!n->w) return missing(lora_vector_name(layer, slot), err);
    return d->config.norm == LORA_NORM_LAYER && !n->b ? missing(lora_vector_name(layer, LORA_NORM_BIAS + slot), err) : LORA_OK;
}

lora_status lora_check_complete(const lora_decoder *d, lora_error *err) {
    const lora_decoder_config *c = &d->config;
    if (!lora_global(d, LORA_EMBED_TOKENS)->set) return missing(lora_matrix_name(-1, LORA_EMBED_TOKENS), err);
    if (c->learned_positions && !lora_global(d, LORA_EMBED_POSITIONS)->set) return missing(lora_matrix_name(-1, LORA_EMBED_POSITIONS), err);
    if (!lora_head(d)->set) return missing(lora_matrix_name(-1, LORA_LM_HEAD), err);
    LORA_TRY(check_norm(d, -1, LORA_FINAL_NORM, &d->final_norm, err));
    for (int64_t layer = 0; layer < c->num_hidden_layers; layer++) {
        const lora_layer *l = &d->layers[layer];
        for (int slot = 0; slot < LORA_LAYER_NORMS; slot++) LORA_TRY(check_norm(d, layer, slot, &l->norms[slot], err));
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++)
            if (!l->matrices[slot].set && (c->gated_mlp || slot != LORA_GATE_PROJ)) return missing(lora_matrix_name(layer, slot), err);
    }
    return LORA_OK;
}
