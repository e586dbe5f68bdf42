/* The operations of the plug-in, by the name of their entry in backend.h. Contracts are those of nn.h, linear.h and optim.h. */
#ifndef LORA_CUDA_TABLE_H
#define LORA_CUDA_TABLE_H

#include "lora_c/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

lora_status lora_cuda_norm_forward(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err);
lora_status lora_cuda_norm_backward(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx,
                                    bool accumulate_dx, float *dweight, float *dbias, lora_error *err);
lora_status lora_cuda_scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err);
lora_status lora_cuda_add_noise(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err);
lora_status lora_cuda_scale_columns(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err);
lora_status lora_cuda_scale_columns_backward(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx,
                                             float *dl, lora_error *err);
lora_status lora_cuda_softcap_rows(lora_ctx *ctx, float softcap, lora_mat x, lora_error *err);
lora_status lora_cuda_softcap_backward(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err);
lora_status lora_cuda_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                                 double scale, float *cos, float *sin, lora_error *err);
lora_status lora_cuda_rope(lora_ctx *ctx, const lora_rotations *table, int64_t n_heads, int64_t head_dim, const int32_t *positions,
                           lora_mat x, bool backward, lora_error *err);
lora_status lora_cuda_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                        const lora_kv *kv, lora_mat o, float *lse, lora_error *err);
lora_status lora_cuda_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                         const lora_attention_gradient *gradient, lora_error *err);
lora_status lora_cuda_mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err);
lora_status lora_cuda_mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate,
                                   lora_mat dup, lora_error *err);
lora_status lora_cuda_embedding_forward(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err);
lora_status lora_cuda_embedding_backward(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err);
lora_status lora_cuda_linear_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                           lora_error *err);
lora_status lora_cuda_values_loss(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err);
lora_status lora_cuda_copy_rows(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows,
                                bool accumulate, lora_error *err);
lora_status lora_cuda_convert_rows(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err);
lora_status lora_cuda_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err);
lora_status lora_cuda_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                      bool accumulate_dx, lora_error *err);
bool lora_cuda_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter);
lora_dtype lora_cuda_linear_operand(const lora_ctx *ctx, int64_t M);
lora_status lora_cuda_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm, lora_error *err);
lora_status lora_cuda_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign,
                                   float *merged, lora_error *err);
lora_status lora_cuda_linear_merge_backward(lora_ctx *ctx, const lora_adapter *adapter, lora_mat dmerged, lora_error *err);
lora_status lora_cuda_adamw_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v,
                                 const lora_adamw_hyper *hyper, lora_error *err);
lora_status lora_cuda_adamw8bit_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state,
                                     const lora_adamw_hyper *hyper, lora_error *err);
lora_status lora_cuda_sgd_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper,
                               lora_error *err);
lora_status lora_cuda_lion_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper,
                                lora_error *err);
lora_status lora_cuda_adafactor_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adafactor_state *state,
                                     const lora_adafactor_hyper *hyper, lora_error *err);
lora_status lora_cuda_muon_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper,
                                lora_error *err);
lora_status lora_cuda_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err);
lora_status lora_cuda_quantize_4bit(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax,
                                    int64_t *first_bad, lora_error *err);
lora_status lora_cuda_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                      float *nested_offset, lora_error *err);
lora_status lora_cuda_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                                 lora_error *err);
int64_t lora_cuda_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape);

extern const lora_backend_memory lora_cuda_memory_table; /* memory.c */

#ifdef __cplusplus
}
#endif
#endif
