/* What the device meta answers to operations: that it computes nothing. Functions of meta.c alone. */
#ifndef LORA_BACKEND_META_REFUSALS_H
#define LORA_BACKEND_META_REFUSALS_H

#include "lora_c/backend.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"

#define REFUSE(name, ...)                                                                                                                  \
    static lora_status meta_##name(lora_ctx *ctx, __VA_ARGS__, lora_error *err) { return refuse(#name, err); }

static lora_status refuse(const char *operation, lora_error *err) {
    return lora_fail(err, LORA_EUNSUPPORTED, "device meta: expected a device that computes for %s, got shapes without memory", operation);
}

REFUSE(norm_forward, const lora_norm *norm, lora_mat x, lora_mat y, float *stats)
REFUSE(norm_backward, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx, bool accumulate_dx, float *dweight,
       float *dbias)
REFUSE(scale_rows, float a, lora_mat x, lora_mat y, bool accumulate)
REFUSE(add_noise, const lora_noise *noise, const lora_segments *segments, lora_mat x)
REFUSE(scale_columns, const float *l, lora_mat x, lora_mat y)
REFUSE(scale_columns_backward, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx, float *dl)
REFUSE(softcap_rows, float softcap, lora_mat x)
REFUSE(softcap_backward, float softcap, lora_mat y, lora_mat dy)
REFUSE(rope_table, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq, double scale, float *cos,
       float *sin)
REFUSE(rope, const lora_rotations *table, int64_t n_heads, int64_t head_dim, const int32_t *positions, lora_mat x, bool backward)
REFUSE(attention_forward, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q, const lora_kv *kv, lora_mat o,
       float *lse)
REFUSE(attention_backward, const lora_attention_shape *shape, const lora_segments *segments, const lora_attention_gradient *gradient)
REFUSE(mlp_forward, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h)
REFUSE(mlp_backward, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate, lora_mat dup)
REFUSE(embedding_forward, const int32_t *ids, const lora_weight *w, lora_mat y)
REFUSE(embedding_backward, const int32_t *ids, lora_mat dy, lora_mat dW)
REFUSE(linear_cross_entropy, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW)
REFUSE(values_loss, lora_mat y, const lora_values *loss, lora_mat dy)
REFUSE(copy_rows, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate)
REFUSE(convert_rows, lora_mat from, lora_mat to)
REFUSE(linear_forward, lora_mat x, int64_t n, const lora_linear_layer *layers)
REFUSE(linear_backward, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx, bool accumulate_dx)
REFUSE(dora_norm, const lora_weight *w, const lora_adapter *adapter, float *norm)
REFUSE(linear_merge, const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign, float *merged)
REFUSE(linear_merge_backward, const lora_adapter *adapter, lora_mat dmerged)
REFUSE(adamw_step, int64_t n_params, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper)
REFUSE(adamw8bit_step, int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state, const lora_adamw_hyper *hyper)
REFUSE(sgd_step, int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper)
REFUSE(lion_step, int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper)
REFUSE(adafactor_step, int64_t n_params, const lora_param *params, const lora_adafactor_state *state, const lora_adafactor_hyper *hyper)
REFUSE(muon_step, int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper)
REFUSE(sum_of_squares, int64_t n_params, const lora_param *params, double *sum)
REFUSE(quantize_4bit, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax, int64_t *first_bad)
REFUSE(double_quantize, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax, float *nested_offset)
REFUSE(dequantize, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype)

#undef REFUSE
#pragma GCC diagnostic pop

#endif
