/* What weights are called: in errors, and by callers who name a weight. */
#include <stdio.h>

#include "lora_c/model/decoder_struct.h"

static const char *const MATRIX_NAMES[] = {"q_proj",  "k_proj",    "v_proj",       "o_proj",  "gate_proj",
                                           "up_proj", "down_proj", "embed_tokens", "lm_head", "embed_positions"};
static const char *const NORM_NAMES[] = {
    "input_layernorm", "post_attention_layernorm", "attention_output_norm", "mlp_output_norm", "q_norm", "k_norm", "norm"};

lora_slot_name lora_decoder_slot_name(bool vector, int slot) {
    lora_slot_name name;
    bool norm = vector && slot < LORA_BIAS;
    const char *part = norm ? NORM_NAMES[slot % LORA_NORM_SLOTS] : MATRIX_NAMES[vector ? slot - LORA_BIAS : slot];
    snprintf(name.text, sizeof name.text, "%s%s", part, vector && slot >= LORA_NORM_BIAS ? ".bias" : "");
    return name;
}

static lora_weight_name name_of(int64_t layer, bool vector, int slot) {
    lora_weight_name name;
    lora_slot_name part = lora_decoder_slot_name(vector, slot);
    if (layer < 0)
        snprintf(name.text, sizeof name.text, "%s", part.text);
    else
        snprintf(name.text, sizeof name.text, "layers.%lld.%s", (long long)layer, part.text);
    return name;
}

lora_weight_name lora_matrix_name(int64_t layer, int slot) { return name_of(layer, false, slot); }
lora_weight_name lora_vector_name(int64_t layer, int slot) { return name_of(layer, true, slot); }
