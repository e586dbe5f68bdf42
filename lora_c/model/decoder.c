/* Creation, and the setters with every shape check. */
#include "lora_c/decoder.h"

#include <stdio.h>
#include <string.h>

#include "lora_c/model/decoder_struct.h"
#include "lora_c/ops/ctx.h"

static const char *const matrix_names[] = {"q_proj",  "k_proj",    "v_proj",       "o_proj", "gate_proj",
                                           "up_proj", "down_proj", "embed_tokens", "lm_head"};

/* "layers.3.q_proj", or "embed_tokens" for layer -1 */
static const char *weight_name(char *buffer, size_t size, int64_t layer, const char *name) {
    if (layer < 0)
        snprintf(buffer, size, "%s", name);
    else
        snprintf(buffer, size, "layers.%lld.%s", (long long)layer, name);
    return buffer;
}

static lora_status check_config(const lora_decoder_config *c, lora_error *err) {
    const struct { const char *name; int64_t value; } sizes[] = {
        {"hidden_size", c->hidden_size}, {"intermediate_size", c->intermediate_size},
        {"num_hidden_layers", c->num_hidden_layers}, {"num_attention_heads", c->num_attention_heads},
        {"num_key_value_heads", c->num_key_value_heads}, {"head_dim", c->head_dim}, {"vocab_size", c->vocab_size},
        {"max_position_embeddings", c->max_position_embeddings}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        LORA_CHECK(sizes[i].value > 0 && sizes[i].value < INT32_MAX, err, LORA_EINVAL, "%s: expected 1 to %d, got %lld", sizes[i].name,
                   INT32_MAX - 1, (long long)sizes[i].value);
    LORA_CHECK(c->num_attention_heads % c->num_key_value_heads == 0, err, LORA_EINVAL,
               "num_attention_heads: expected a multiple of num_key_value_heads (%lld), got %lld", (long long)c->num_key_value_heads,
               (long long)c->num_attention_heads);
    LORA_CHECK(c->head_dim % 2 == 0, err, LORA_EINVAL, "head_dim: expected an even number, got %lld", (long long)c->head_dim);
    LORA_CHECK(c->rms_norm_eps > 0, err, LORA_EINVAL, "rms_norm_eps: expected > 0, got %g", c->rms_norm_eps);
    LORA_CHECK(c->sliding_window >= 0, err, LORA_EINVAL, "sliding_window: expected >= 0, got %lld", (long long)c->sliding_window);
    return LORA_OK;
}

static lora_status make_rope_table(lora_decoder *d, lora_error *err) {
    int64_t half = d->config.head_dim / 2, n = d->config.max_position_embeddings;
    size_t bytes = (size_t)n * (size_t)half * sizeof(float);
    d->cos = lora_mem_alloc(&d->ctx->mem, LORA_MEM_SCRATCH, bytes);
    d->sin = lora_mem_alloc(&d->ctx->mem, LORA_MEM_SCRATCH, bytes);
    LORA_CHECK(d->cos && d->sin, err, LORA_ENOMEM, "decoder: expected %zu bytes for the RoPE table, got none", 2 * bytes);
    return lora_rope_table(d->ctx, n, half, d->config.rope_inv_freq, d->config.rope_scale, d->cos, d->sin, err);
}

lora_status lora_decoder_create(lora_ctx *ctx, const lora_decoder_config *config, lora_decoder **out, lora_error *err) {
    *out = NULL;
    LORA_TRY(check_config(config, err));
    lora_decoder *d = lora_mem_calloc(&ctx->mem, LORA_MEM_SCRATCH, sizeof *d);
    LORA_CHECK(d, err, LORA_ENOMEM, "decoder: expected %zu bytes, got none", sizeof *d);
    d->ctx = ctx;
    d->config = *config;
    d->attention = (lora_attention_shape){config->num_attention_heads, config->num_key_value_heads, config->head_dim, 0,
                                          config->sliding_window};
    d->attention.scale = 1.0f / __builtin_sqrtf((float)config->head_dim);
    d->layers = lora_mem_calloc(&ctx->mem, LORA_MEM_SCRATCH, (size_t)config->num_hidden_layers * sizeof *d->layers);
    lora_status status = d->layers ? make_rope_table(d, err) : lora_fail(err, LORA_ENOMEM, "decoder: expected memory for %lld layers, got none",
                                                                        (long long)config->num_hidden_layers);
    d->config.rope_inv_freq = NULL; /* borrowed for the table only */
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
    lora_mem_free(mem, d->layers);
    lora_mem_free(mem, d);
}

void lora_decoder_set_recompute(lora_decoder *d, lora_recompute recompute) { d->recompute = recompute; }

static void matrix_shape(const lora_decoder_config *c, lora_matrix_slot slot, int64_t *rows, int64_t *cols) {
    int64_t H = c->hidden_size, I = c->intermediate_size, Q = lora_q_width(c), KV = lora_kv_width(c);
    const int64_t shapes[][2] = {{Q, H}, {KV, H}, {KV, H}, {H, Q}, {I, H}, {I, H}, {H, I}, {c->vocab_size, H}, {c->vocab_size, H}};
    *rows = shapes[slot][0];
    *cols = shapes[slot][1];
}

static lora_status find_matrix(lora_decoder *d, int64_t layer, lora_matrix_slot slot, lora_matrix **out, lora_error *err) {
    bool global = slot == LORA_EMBED_TOKENS || slot == LORA_LM_HEAD;
    LORA_CHECK(slot >= 0 && slot <= LORA_LM_HEAD, err, LORA_EINVAL, "slot: expected 0 to %d, got %d", LORA_LM_HEAD, (int)slot);
    LORA_CHECK(global ? layer == -1 : layer >= 0 && layer < d->config.num_hidden_layers, err, LORA_EINVAL,
               "layers.%lld.%s: expected a layer below %lld, got %lld", (long long)layer, matrix_names[slot],
               (long long)d->config.num_hidden_layers, (long long)layer);
    LORA_CHECK(slot != LORA_LM_HEAD || !d->config.tie_word_embeddings, err, LORA_EINVAL,
               "lm_head: expected none with tie_word_embeddings, got a weight; set tie_word_embeddings to false to untie it");
    *out = slot == LORA_EMBED_TOKENS ? &d->embed_tokens : slot == LORA_LM_HEAD ? &d->lm_head : &d->layers[layer].matrices[slot];
    return LORA_OK;
}

lora_status lora_decoder_set_matrix(lora_decoder *d, int64_t layer, lora_matrix_slot slot, const lora_weight *w, float *grad,
                                    lora_error *err) {
    char name[96];
    lora_matrix *m = NULL;
    int64_t rows, cols;
    LORA_TRY(find_matrix(d, layer, slot, &m, err));
    matrix_shape(&d->config, slot, &rows, &cols);
    weight_name(name, sizeof name, layer, matrix_names[slot]);
    LORA_CHECK(w->rows == rows && w->cols == cols, err, LORA_ESHAPE, "%s: expected (%lld, %lld), got (%lld, %lld)", name,
               (long long)rows, (long long)cols, (long long)w->rows, (long long)w->cols);
    LORA_CHECK(!grad || w->kind == LORA_WEIGHT_F32, err, LORA_EDTYPE, "%s: expected float32 for a trained weight, got another type",
               name);
    m->w = *w;
    m->set = true;
    m->dW = grad;
    return LORA_OK;
}

lora_status lora_decoder_set_vector(lora_decoder *d, int64_t layer, lora_vector_slot slot, const float *v, int64_t n, float *grad,
                                    lora_error *err) {
    char name[96], text[40];
    int64_t rows = d->config.hidden_size, cols;
    LORA_CHECK(slot >= 0 && slot < LORA_VECTOR_SLOTS, err, LORA_EINVAL, "slot: expected 0 to %d, got %d", LORA_VECTOR_SLOTS - 1,
               (int)slot);
    LORA_CHECK(slot == LORA_FINAL_NORM ? layer == -1 : layer >= 0 && layer < d->config.num_hidden_layers, err, LORA_EINVAL,
               "layer: expected 0 to %lld, got %lld", (long long)d->config.num_hidden_layers - 1, (long long)layer);
    if (slot >= LORA_BIAS) matrix_shape(&d->config, (lora_matrix_slot)(slot - LORA_BIAS), &rows, &cols);
    snprintf(text, sizeof text, "%s%s",
             slot == LORA_INPUT_LAYERNORM            ? "input_layernorm"
             : slot == LORA_POST_ATTENTION_LAYERNORM ? "post_attention_layernorm"
             : slot == LORA_FINAL_NORM               ? "norm"
                                                     : matrix_names[slot - LORA_BIAS],
             slot >= LORA_BIAS ? ".bias" : "");
    weight_name(name, sizeof name, layer, text);
    LORA_CHECK(n == rows, err, LORA_ESHAPE, "%s: expected (%lld,), got (%lld,)", name, (long long)rows, (long long)n);
    if (slot >= LORA_BIAS) {
        lora_matrix *m = &d->layers[layer].matrices[slot - LORA_BIAS];
        m->bias = v;
        m->dbias = grad;
        return LORA_OK;
    }
    lora_norm *norm = slot == LORA_FINAL_NORM        ? &d->final_norm
                      : slot == LORA_INPUT_LAYERNORM ? &d->layers[layer].input_norm
                                                     : &d->layers[layer].post_attention_norm;
    *norm = (lora_norm){v, grad};
    return LORA_OK;
}

lora_status lora_decoder_set_adapter(lora_decoder *d, int64_t layer, lora_matrix_slot slot, const lora_adapter *adapter,
                                     lora_error *err) {
    lora_matrix *m = NULL;
    LORA_CHECK(slot < LORA_LAYER_MATRICES, err, LORA_EUNSUPPORTED, "%s: expected a layer matrix for an adapter, got %s",
               matrix_names[slot], matrix_names[slot]);
    LORA_TRY(find_matrix(d, layer, slot, &m, err));
    if (adapter) {
        LORA_CHECK(adapter->rank > 0, err, LORA_EINVAL, "r: expected > 0, got %lld", (long long)adapter->rank);
        LORA_CHECK(adapter->dropout >= 0 && adapter->dropout < 1, err, LORA_EINVAL, "lora_dropout: expected 0 <= p < 1, got %g",
                   (double)adapter->dropout);
        m->adapter = *adapter;
    }
    m->has_adapter = adapter != NULL;
    return LORA_OK;
}

lora_status lora_check_complete(const lora_decoder *d, lora_error *err) {
    char name[96];
    LORA_CHECK(d->embed_tokens.set, err, LORA_EINVAL, "embed_tokens: expected a weight, got none");
    LORA_CHECK(d->lm_head.set || d->config.tie_word_embeddings, err, LORA_EINVAL, "lm_head: expected a weight, got none");
    LORA_CHECK(d->final_norm.w, err, LORA_EINVAL, "norm: expected a weight, got none");
    for (int64_t layer = 0; layer < d->config.num_hidden_layers; layer++) {
        const lora_layer *l = &d->layers[layer];
        const char *missing = !l->input_norm.w ? "input_layernorm" : !l->post_attention_norm.w ? "post_attention_layernorm" : NULL;
        for (int slot = 0; slot < LORA_LAYER_MATRICES && !missing; slot++)
            if (!l->matrices[slot].set) missing = matrix_names[slot];
        LORA_CHECK(!missing, err, LORA_EINVAL, "%s: expected a weight, got none", weight_name(name, sizeof name, layer, missing));
    }
    return LORA_OK;
}
