/* The norms of a decoder as operations. */
#include "lora_c/model/decoder_struct.h"

int64_t lora_norm_width(const lora_decoder_config *c, int slot) {
    if (slot != LORA_Q_NORM && slot != LORA_K_NORM) return c->hidden_size;
    if (c->qk_norm == LORA_QK_NORM_HEAD) return c->head_dim;
    return slot == LORA_Q_NORM ? lora_q_width(c) : lora_kv_width(c);
}

lora_norm lora_decoder_norm(const lora_decoder *d, int64_t layer, int slot) {
    const lora_decoder_config *c = &d->config;
    const lora_norm_weights *w = slot == LORA_FINAL_NORM ? &d->final_norm : &d->layers[layer].norms[slot];
    lora_norm norm = {.kind = c->norm,
                      .H = lora_norm_width(c, slot),
                      .groups = 1,
                      .eps = (float)c->norm_eps,
                      .weight_offset = (float)c->norm_weight_offset,
                      .weight = w->w,
                      .bias = w->b};
    if (slot == LORA_Q_NORM) norm.groups = lora_q_width(c) / norm.H;
    if (slot == LORA_K_NORM) norm.groups = lora_kv_width(c) / norm.H;
    return norm;
}
