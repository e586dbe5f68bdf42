/* What operations refuse before any backend sees it: shapes, element types, NULL, overlaps. Never contents of arrays, which may lie
 * where the host cannot read. Arguments are those of the operation of the same name. */
#ifndef LORA_BACKEND_CHECK_H
#define LORA_BACKEND_CHECK_H

#include "lora_c/linear.h"
#include "lora_c/nn.h"
#include "lora_c/optim.h"
#include "lora_c/quantize.h"

/* check_rows.c */
lora_status lora_check_norm_forward(const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_norm_backward(const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx, bool accumulate_dx,
                                     float *dweight, float *dbias, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_scale_rows(float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_add_noise(const lora_noise *noise, const lora_segments *segments, lora_mat x, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_scale_columns(const float *l, lora_mat x, lora_mat y, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_scale_columns_backward(const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx, float *dl,
                                              lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_softcap_rows(float softcap, lora_mat x, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_softcap_backward(float softcap, lora_mat y, lora_mat dy, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_copy_rows(lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate,
                                 lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_convert_rows(lora_mat from, lora_mat to, lora_error *err) LORA_MUST_CHECK;

/* check_attention.c */
lora_status lora_check_rope_table(int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq, double scale,
                                  float *cos, float *sin, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_rope(const lora_rotations *rotations, int64_t n_heads, int64_t head_dim, const int32_t *positions, lora_mat x,
                            bool backward, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_attention_forward(const lora_attention_shape *shape, const lora_segments *segments, lora_mat q, const lora_kv *kv,
                                         lora_mat o, float *lse, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_attention_backward(const lora_attention_shape *shape, const lora_segments *segments,
                                          const lora_attention_gradient *gradient, lora_error *err) LORA_MUST_CHECK;

/* check_mlp.c, check_head.c */
lora_status lora_check_mlp_forward(lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_mlp_backward(lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate, lora_mat dup,
                                    lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_embedding_forward(const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_embedding_backward(const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_linear_cross_entropy(lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                            lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_values_loss(lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) LORA_MUST_CHECK;

/* check_linear.c */
lora_status lora_check_linear_forward(lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_linear_backward(lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx, bool accumulate_dx,
                                       lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_dora_norm(const lora_weight *w, const lora_adapter *adapter, float *norm, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_linear_merge(const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign, float *merged,
                                    lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_linear_merge_backward(const lora_adapter *adapter, lora_mat dmerged, lora_error *err) LORA_MUST_CHECK;

/* check_optim.c */
lora_status lora_check_adamw_step(int64_t n_params, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper,
                                  lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_adamw8bit_step(int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state,
                                      const lora_adamw_hyper *hyper, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_sgd_step(int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper,
                                lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_lion_step(int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper,
                                 lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_adafactor_step(int64_t n_params, const lora_param *params, const lora_adafactor_state *state,
                                      const lora_adafactor_hyper *hyper, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_muon_step(int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper,
                                 lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_sum_of_squares(int64_t n_params, const lora_param *params, double *sum, lora_error *err) LORA_MUST_CHECK;

/* check_quantize.c */
lora_status lora_check_quantize_4bit(lora_4bit_type type, lora_mat src, int64_t block_size, const uint8_t *codes, const float *absmax,
                                     const int64_t *first_bad, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_double_quantize(const float *absmax, int64_t n, const uint8_t *absmax_codes, const float *nested_absmax,
                                       const float *nested_offset, lora_error *err) LORA_MUST_CHECK;
lora_status lora_check_dequantize(const lora_nf4 *w, int64_t begin, int64_t count, const void *dst, lora_dtype dtype,
                                  lora_error *err) LORA_MUST_CHECK;

#endif
