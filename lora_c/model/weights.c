/* The setters of weights and adapters, with every check of their shapes. */
#include "lora_c/base/mat.h"
#include "lora_c/model/extras.h"
#include "lora_c/weight_rows.h"

/* --- places --- */

static lora_status check_layer(const lora_decoder *d, int64_t layer, bool global, const char *part, lora_error *err) {
    if (global)
        LORA_CHECK(layer == -1, err, LORA_EINVAL, "%s: expected layer -1, got %lld", part, (long long)layer);
    else
        LORA_CHECK(layer >= 0 && layer < d->config.num_hidden_layers, err, LORA_EINVAL, "%s: expected layer 0 to %lld, got %lld", part,
                   (long long)d->config.num_hidden_layers - 1, (long long)layer);
    return LORA_OK;
}

static lora_status check_place(const lora_decoder *d, int64_t layer, int slot, lora_error *err) {
    LORA_CHECK(slot >= 0 && slot < LORA_MATRIX_SLOTS, err, LORA_EINVAL, "slot: expected 0 to %d, got %d", LORA_MATRIX_SLOTS - 1, slot);
    LORA_TRY(check_layer(d, layer, slot >= LORA_LAYER_MATRICES, lora_decoder_slot_name(false, slot).text, err));
    LORA_CHECK(d->config.gated_mlp || slot != LORA_GATE_PROJ, err, LORA_EINVAL,
               "gate_proj: expected none in this model (gated_mlp), got one");
    LORA_CHECK(d->config.learned_positions || slot != LORA_EMBED_POSITIONS, err, LORA_EINVAL,
               "embed_positions: expected none in this model (learned_positions), got one");
    return LORA_OK;
}

static lora_status find_matrix(lora_decoder *d, int64_t layer, int slot, lora_matrix **out, lora_error *err) {
    LORA_TRY(check_place(d, layer, slot, err));
    *out = slot >= LORA_LAYER_MATRICES ? &d->globals[slot - LORA_LAYER_MATRICES] : &d->layers[layer].matrices[slot];
    return LORA_OK;
}

static void matrix_shape(const lora_decoder_config *c, int slot, int64_t *rows, int64_t *cols) {
    int64_t H = c->hidden_size, I = c->intermediate_size, Q = lora_q_width(c), KV = lora_kv_width(c), V = c->vocab_size;
    const int64_t shapes[][2] = {
        {Q, H}, {KV, H}, {KV, H}, {H, Q}, {I, H}, {I, H}, {H, I}, {V, H}, {lora_head_rows(c), H}, {c->max_position_embeddings, H}};
    *rows = shapes[slot][0];
    *cols = shapes[slot][1];
}

void lora_decoder_matrix_shape(const lora_decoder *d, lora_matrix_slot slot, int64_t *rows, int64_t *cols) {
    matrix_shape(&d->config, (int)slot, rows, cols);
}

/* --- setters --- */

static lora_status check_matrix(const lora_weight *w, int64_t rows, int64_t cols, bool trained, const char *name, lora_error *err) {
    LORA_TRY(lora_mat_check_weight(name, w, err));
    LORA_CHECK(w->rows == rows && w->cols == cols, err, LORA_ESHAPE, "%s: expected (%lld, %lld), got (%lld, %lld)", name, (long long)rows,
               (long long)cols, (long long)w->rows, (long long)w->cols);
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

lora_status lora_decoder_set_vector(lora_decoder *d, int64_t layer, lora_vector_slot vector_slot, const float *v, int64_t n, float *grad,
                                    lora_error *err) {
    int slot = (int)vector_slot;
    LORA_CHECK(slot >= 0 && slot < LORA_VECTOR_SLOTS, err, LORA_EINVAL, "slot: expected 0 to %d, got %d", LORA_VECTOR_SLOTS - 1, slot);
    LORA_TRY(check_layer(d, layer, is_global_vector(slot), lora_decoder_slot_name(true, slot).text, err));
    lora_weight_name name = lora_vector_name(layer, slot);
    bool belongs = slot >= LORA_BIAS
                       ? d->config.gated_mlp || slot != LORA_BIAS + LORA_GATE_PROJ
                       : lora_has_norm(&d->config, slot % LORA_NORM_SLOTS) && (slot < LORA_NORM_BIAS || d->config.norm == LORA_NORM_LAYER);
    LORA_CHECK(belongs, err, LORA_EINVAL, "%s: expected none in this model, got one", name.text);
    int64_t expected = vector_size(&d->config, slot);
    LORA_CHECK(v, err, LORA_EINVAL, "%s: expected a vector, got NULL", name.text);
    LORA_CHECK(n == expected, err, LORA_ESHAPE, "%s: expected (%lld,), got (%lld,)", name.text, (long long)expected, (long long)n);
    put_vector(d, layer, slot, v, grad);
    return LORA_OK;
}

lora_status lora_check_adapter(const lora_decoder *d, int64_t layer, int slot, const lora_adapter *adapter, lora_error *err) {
    LORA_TRY(check_place(d, layer, slot, err));
    lora_weight_name name = lora_matrix_name(layer, slot);
    LORA_CHECK(slot != LORA_EMBED_POSITIONS, err, LORA_EUNSUPPORTED, "%s: expected another matrix for an adapter, got this one", name.text);
    if (!adapter) return LORA_OK;
    LORA_CHECK(adapter->A && adapter->B, err, LORA_EINVAL, "%s: expected A and B, got NULL", name.text);
    LORA_CHECK(adapter->rank > 0 && adapter->rank < INT32_MAX, err, LORA_EINVAL, "%s: expected r > 0, got %lld", name.text,
               (long long)adapter->rank);
    LORA_CHECK(adapter->dropout >= 0 && adapter->dropout < 1, err, LORA_EINVAL, "%s: expected 0 <= lora_dropout < 1, got %g", name.text,
               (double)adapter->dropout);
    return LORA_OK;
}

lora_status lora_decoder_set_adapter(lora_decoder *d, int64_t layer, lora_matrix_slot slot, const lora_adapter *adapter, lora_error *err) {
    lora_matrix *m = NULL;
    LORA_TRY(lora_check_adapter(d, layer, (int)slot, adapter, err));
    LORA_TRY(find_matrix(d, layer, (int)slot, &m, err));
    if (adapter) {
        if ((int)slot >= LORA_LAYER_MATRICES) LORA_TRY(lora_make_adapted_global(d, slot, adapter, err));
        if (adapter->magnitude) {
            LORA_CHECK(m->set, err, LORA_EINVAL, "%s: expected its weight before a DoRA adapter, got none",
                       lora_matrix_name(layer, (int)slot).text);
            LORA_TRY(lora_make_adapter_norm(d, m, err));
        }
        m->adapter = *adapter;
    }
    m->has_adapter = adapter != NULL;
    if (!adapter && (int)slot >= LORA_LAYER_MATRICES) return lora_make_adapted_global(d, slot, NULL, err);
    return LORA_OK;
}

bool lora_decoder_has_dropout(const lora_decoder *d) {
    if (d->noise_alpha > 0) return true;
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            const lora_matrix *m = &d->layers[layer].matrices[slot];
            if (m->has_adapter && m->adapter.dropout > 0) return true;
        }
    return false; /* adapters of the embedding and the head have none while they train */
}
