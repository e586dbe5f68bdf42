/* Creation, and the setters with every shape check. */
#include "lora_c/decoder.h"

#include <math.h>
#include <stdio.h>

#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/rows.h"

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
    return LORA_OK;
}

static lora_status check_config(const lora_decoder_config *c, lora_error *err) {
    LORA_TRY(check_sizes(c, err));
    LORA_CHECK(c->num_attention_heads % c->num_key_value_heads == 0, err, LORA_EINVAL,
               "num_attention_heads: expected a multiple of num_key_value_heads (%lld), got %lld",
               (long long)c->num_key_value_heads, (long long)c->num_attention_heads);
    LORA_CHECK(c->head_dim % 2 == 0, err, LORA_EINVAL, "head_dim: expected an even number, got %lld",
               (long long)c->head_dim);
    LORA_CHECK(lora_q_width(c) < INT32_MAX, err, LORA_EINVAL,
               "num_attention_heads: expected num_attention_heads * head_dim below %d, got %lld", INT32_MAX,
               (long long)lora_q_width(c));
    LORA_CHECK(c->rms_norm_eps > 0 && isfinite(c->rms_norm_eps), err, LORA_EINVAL,
               "rms_norm_eps: expected a finite number > 0, got %g", c->rms_norm_eps);
    LORA_CHECK(c->sliding_window >= 0, err, LORA_EINVAL, "sliding_window: expected >= 0, got %lld",
               (long long)c->sliding_window);
    LORA_CHECK(c->rope_scale > 0 && isfinite(c->rope_scale), err, LORA_EINVAL,
               "rope_scale: expected a finite number > 0, got %g", c->rope_scale);
    LORA_CHECK(c->rope_inv_freq, err, LORA_EINVAL, "rope_inv_freq: expected head_dim / 2 values, got NULL");
    for (int64_t i = 0; i < c->head_dim / 2; i++)
        LORA_CHECK(isfinite(c->rope_inv_freq[i]), err, LORA_EINVAL, "rope_inv_freq: expected finite values, got %g at index %lld",
                   c->rope_inv_freq[i], (long long)i);
    return LORA_OK;
}

static lora_status make_rope_table(lora_decoder *d, lora_error *err) {
    int64_t half = d->config.head_dim / 2, n = d->config.max_position_embeddings;
    size_t bytes = (size_t)n * (size_t)half * sizeof(float); /* below 2^31 * 2^30 * 4 */
    bool fits = bytes < SIZE_MAX / 8;
    d->cos = fits ? lora_mem_alloc(&d->ctx->mem, LORA_MEM_SCRATCH, bytes) : NULL;
    d->sin = d->cos ? lora_mem_alloc(&d->ctx->mem, LORA_MEM_SCRATCH, bytes) : NULL;
    LORA_CHECK(d->sin, err, LORA_ENOMEM, "max_position_embeddings: expected twice %zu bytes for the RoPE table, got none", bytes);
    return lora_rope_table(d->ctx, n, half, d->config.rope_inv_freq, d->config.rope_scale, d->cos, d->sin, err);
}

static lora_status make_parts(lora_decoder *d, lora_error *err) {
    size_t bytes = (size_t)d->config.num_hidden_layers * sizeof *d->layers;
    d->layers = lora_mem_calloc(&d->ctx->mem, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(d->layers, err, LORA_ENOMEM, "num_hidden_layers: expected %zu bytes for %lld layers, got none", bytes,
               (long long)d->config.num_hidden_layers);
    LORA_TRY(make_rope_table(d, err));
    d->config.rope_inv_freq = NULL; /* the table holds all of it */
    return LORA_OK;
}

lora_status lora_decoder_create(lora_ctx *ctx, const lora_decoder_config *config, lora_decoder **out, lora_error *err) {
    *out = NULL;
    LORA_TRY(check_config(config, err));
    lora_decoder *d = lora_mem_calloc(&ctx->mem, LORA_MEM_SCRATCH, sizeof *d);
    LORA_CHECK(d, err, LORA_ENOMEM, "decoder: expected %zu bytes, got none", sizeof *d);
    d->ctx = ctx;
    d->config = *config;
    d->attention = (lora_attention_shape){.n_heads = config->num_attention_heads,
                                          .n_kv_heads = config->num_key_value_heads,
                                          .head_dim = config->head_dim,
                                          .scale = (float)(1.0 / sqrt((double)config->head_dim)),
                                          .sliding_window = config->sliding_window};
    lora_status status = make_parts(d, err);
    if (status != LORA_OK) {
        lora_decoder_destroy(d);
        return status;
    }
    *out = d;
    return LORA_OK;
}

void lora_decoder_destroy(lora_decoder *d) {
    if (!d) return;
    lora_mem *mem = &d->ctx->mem;
    lora_mem_free(mem, d->arena);
    lora_mem_free(mem, d->cos);
    lora_mem_free(mem, d->sin);
    lora_free_adapter_norms(d);
    lora_mem_free(mem, d->token_rows.ids);
    lora_mem_free(mem, d->layers);
    lora_mem_free(mem, d);
}

void lora_decoder_set_recompute(lora_decoder *d, lora_recompute recompute) { d->recompute = recompute; }

/* --- names and places --- */

static const char *const MATRIX_NAMES[] = {"q_proj",  "k_proj",    "v_proj",       "o_proj", "gate_proj",
                                           "up_proj", "down_proj", "embed_tokens", "lm_head"};
static const char *const NORM_NAMES[] = {"input_layernorm", "post_attention_layernorm", "norm"};

/* "layers.3.q_proj", "layers.3.q_proj.bias", or "embed_tokens" for layer -1 */
typedef struct weight_name {
    char text[64];
} weight_name;

static weight_name name_of(int64_t layer, const char *part, const char *suffix) {
    weight_name name;
    if (layer < 0)
        snprintf(name.text, sizeof name.text, "%s%s", part, suffix);
    else
        snprintf(name.text, sizeof name.text, "layers.%lld.%s%s", (long long)layer, part, suffix);
    return name;
}

static weight_name matrix_name(int64_t layer, int slot) { return name_of(layer, MATRIX_NAMES[slot], ""); }

static weight_name vector_name(int64_t layer, int slot) {
    return slot < LORA_BIAS ? name_of(layer, NORM_NAMES[slot], "") : name_of(layer, MATRIX_NAMES[slot - LORA_BIAS], ".bias");
}

static lora_status check_layer(const lora_decoder *d, int64_t layer, bool global, const char *part, lora_error *err) {
    if (global)
        LORA_CHECK(layer == -1, err, LORA_EINVAL, "%s: expected layer -1, got %lld", part, (long long)layer);
    else
        LORA_CHECK(layer >= 0 && layer < d->config.num_hidden_layers, err, LORA_EINVAL, "%s: expected layer 0 to %lld, got %lld",
                   part, (long long)d->config.num_hidden_layers - 1, (long long)layer);
    return LORA_OK;
}

static lora_status find_matrix(lora_decoder *d, int64_t layer, int slot, lora_matrix **out, lora_error *err) {
    LORA_CHECK(slot >= 0 && slot <= LORA_LM_HEAD, err, LORA_EINVAL, "slot: expected 0 to %d, got %d", LORA_LM_HEAD, slot);
    LORA_TRY(check_layer(d, layer, slot >= LORA_LAYER_MATRICES, MATRIX_NAMES[slot], err));
    *out = slot == LORA_EMBED_TOKENS ? &d->embed_tokens : slot == LORA_LM_HEAD ? &d->lm_head : &d->layers[layer].matrices[slot];
    return LORA_OK;
}

static void matrix_shape(const lora_decoder_config *c, int slot, int64_t *rows, int64_t *cols) {
    int64_t H = c->hidden_size, I = c->intermediate_size, Q = lora_q_width(c), KV = lora_kv_width(c), V = c->vocab_size;
    const int64_t shapes[][2] = {{Q, H}, {KV, H}, {KV, H}, {H, Q}, {I, H}, {I, H}, {H, I}, {V, H}, {V, H}};
    *rows = shapes[slot][0];
    *cols = shapes[slot][1];
}

/* --- setters --- */

static lora_status check_matrix(const lora_weight *w, int64_t rows, int64_t cols, bool trained, const char *name, lora_error *err) {
    LORA_TRY(lora_rows_check_weight(name, w, err));
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
    LORA_TRY(check_matrix(w, rows, cols, grad != NULL, matrix_name(layer, (int)slot).text, err));
    m->w = *w;
    m->norm_known = false;
    m->set = true;
    m->dW = grad;
    return LORA_OK;
}

static void put_bias(lora_matrix *m, const float *bias, float *dbias) {
    m->bias = bias;
    m->dbias = dbias;
}

lora_status lora_decoder_set_vector(lora_decoder *d, int64_t layer, lora_vector_slot vector_slot, const float *v, int64_t n,
                                    float *grad, lora_error *err) {
    int slot = (int)vector_slot;
    LORA_CHECK(slot >= 0 && slot < LORA_VECTOR_SLOTS, err, LORA_EINVAL, "slot: expected 0 to %d, got %d", LORA_VECTOR_SLOTS - 1, slot);
    LORA_TRY(check_layer(d, layer, slot == LORA_FINAL_NORM, slot < LORA_BIAS ? NORM_NAMES[slot] : MATRIX_NAMES[slot - LORA_BIAS], err));
    int64_t expected = d->config.hidden_size, cols;
    if (slot >= LORA_BIAS) matrix_shape(&d->config, slot - LORA_BIAS, &expected, &cols);
    weight_name name = vector_name(layer, slot);
    LORA_CHECK(v, err, LORA_EINVAL, "%s: expected a vector, got NULL", name.text);
    LORA_CHECK(n == expected, err, LORA_ESHAPE, "%s: expected (%lld,), got (%lld,)", name.text, (long long)expected, (long long)n);
    lora_norm norm = {v, grad};
    if (slot >= LORA_BIAS)
        put_bias(&d->layers[layer].matrices[slot - LORA_BIAS], v, grad);
    else if (slot == LORA_FINAL_NORM)
        d->final_norm = norm;
    else if (slot == LORA_INPUT_LAYERNORM)
        d->layers[layer].input_norm = norm;
    else
        d->layers[layer].post_attention_norm = norm;
    return LORA_OK;
}

lora_status lora_decoder_set_adapter(lora_decoder *d, int64_t layer, lora_matrix_slot slot, const lora_adapter *adapter,
                                     lora_error *err) {
    lora_matrix *m = NULL;
    LORA_TRY(find_matrix(d, layer, (int)slot, &m, err));
    weight_name name = matrix_name(layer, (int)slot);
    LORA_CHECK((int)slot < LORA_LAYER_MATRICES, err, LORA_EUNSUPPORTED, "%s: expected a matrix of a layer for an adapter, got this one",
               name.text);
    if (adapter) {
        LORA_CHECK(adapter->A && adapter->B, err, LORA_EINVAL, "%s: expected A and B, got NULL", name.text);
        LORA_CHECK(adapter->rank > 0 && adapter->rank < INT32_MAX, err, LORA_EINVAL, "%s: expected r > 0, got %lld", name.text,
                   (long long)adapter->rank);
        LORA_CHECK(adapter->dropout >= 0 && adapter->dropout < 1, err, LORA_EINVAL, "%s: expected 0 <= lora_dropout < 1, got %g",
                   name.text, (double)adapter->dropout);
        if (adapter->magnitude) {
            LORA_CHECK(m->set, err, LORA_EINVAL, "%s: expected its weight before a DoRA adapter, got none", name.text);
            LORA_TRY(lora_make_adapter_norm(d, m, err));
        }
        m->adapter = *adapter;
        m->adapter.norm = m->norm;
    }
    m->has_adapter = adapter != NULL;
    return LORA_OK;
}

/* --- completeness --- */

static lora_status missing(weight_name name, lora_error *err) {
    return lora_fail(err, LORA_EINVAL, "%s: expected a weight, got none", name.text);
}

lora_status lora_check_complete(const lora_decoder *d, lora_error *err) {
    if (!d->embed_tokens.set) return missing(matrix_name(-1, LORA_EMBED_TOKENS), err);
    if (!lora_head(d)->set) return missing(matrix_name(-1, LORA_LM_HEAD), err);
    if (!d->final_norm.w) return missing(vector_name(-1, LORA_FINAL_NORM), err);
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++) {
        const lora_layer *l = &d->layers[layer];
        if (!l->input_norm.w) return missing(vector_name(layer, LORA_INPUT_LAYERNORM), err);
        if (!l->post_attention_norm.w) return missing(vector_name(layer, LORA_POST_ATTENTION_LAYERNORM), err);
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++)
            if (!l->matrices[slot].set) return missing(matrix_name(layer, slot), err);
    }
    return LORA_OK;
}
