/* What a configuration must be for a decoder to be made of it. */
#include <math.h>

#include "lora_c/model/extras.h"

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
        LORA_CHECK(sizes[i].value > 0 && sizes[i].value < INT32_MAX, err, LORA_EINVAL, "%s: expected 1 to %d, got %lld", sizes[i].name,
                   INT32_MAX - 1, (long long)sizes[i].value);
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
        LORA_CHECK(c->layer_rope[i] >= -1 && c->layer_rope[i] < c->n_ropes, err, LORA_EINVAL,
                   "layer_rope: expected -1 to %d, got %d at index %lld", c->n_ropes - 1, (int)c->layer_rope[i], (long long)i);
    if (!c->rope_switch) return LORA_OK;
    LORA_CHECK(c->n_ropes == 2 && !c->layer_rope && c->ropes[0].rotary == c->ropes[1].rotary, err, LORA_EINVAL,
               "rope_switch: expected two tables of one size for all layers, got others");
    LORA_CHECK(c->rope_switch > 0 && c->max_position_embeddings < INT32_MAX / 2, err, LORA_EINVAL, "rope_switch: expected > 0, got %lld",
               (long long)c->rope_switch);
    return LORA_OK;
}

static lora_status check_labels(const lora_decoder_config *c, lora_error *err) {
    if (!c->num_labels) return LORA_OK;
    LORA_CHECK(c->num_labels > 0 && c->num_labels < INT32_MAX, err, LORA_EINVAL, "num_labels: expected 0 to %d, got %lld", INT32_MAX - 1,
               (long long)c->num_labels);
    LORA_CHECK(c->problem >= LORA_SINGLE_LABEL && c->problem <= LORA_MULTI_LABEL, err, LORA_EINVAL,
               "problem: expected single label, regression or multi label, got %d", (int)c->problem);
    LORA_CHECK(!c->tie_word_embeddings, err, LORA_EINVAL, "tie_word_embeddings: expected false with num_labels, got true");
    LORA_CHECK(c->logits.scale == 1 && c->logits.softcap == 0, err, LORA_EINVAL,
               "logit_scale, logit_softcap: expected 1 and 0 with num_labels, got %g and %g", (double)c->logits.scale,
               (double)c->logits.softcap);
    return LORA_OK;
}

lora_status lora_check_config(const lora_decoder_config *c, lora_error *err) {
    LORA_TRY(check_sizes(c, err));
    LORA_CHECK(c->num_attention_heads % c->num_key_value_heads == 0, err, LORA_EINVAL,
               "num_attention_heads: expected a multiple of num_key_value_heads (%lld), got %lld", (long long)c->num_key_value_heads,
               (long long)c->num_attention_heads);
    LORA_CHECK(lora_q_width(c) < INT32_MAX, err, LORA_EINVAL,
               "num_attention_heads: expected num_attention_heads * head_dim below %d, got %lld", INT32_MAX, (long long)lora_q_width(c));
    LORA_CHECK(c->pre_norm || c->post_norm, err, LORA_EINVAL, "pre_norm, post_norm: expected at least one of them, got none");
    LORA_CHECK(c->activation == LORA_SILU || c->activation == LORA_GELU_TANH, err, LORA_EUNSUPPORTED,
               "activation: expected silu or gelu_tanh, got %d", (int)c->activation);
    LORA_CHECK(c->gated_mlp || c->activation == LORA_GELU_TANH, err, LORA_EUNSUPPORTED,
               "activation: expected gelu_tanh without a gate, got another");
    for (int64_t i = 0; c->sliding_window && i < c->num_hidden_layers; i++)
        LORA_CHECK(c->sliding_window[i] >= 0, err, LORA_EINVAL, "sliding_window: expected >= 0, got %d at index %lld",
                   (int)c->sliding_window[i], (long long)i);
    LORA_TRY(check_labels(c, err));
    LORA_TRY(check_numbers(c, err));
    return check_ropes(c, err);
}
