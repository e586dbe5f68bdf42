/* The operations whose arguments are lists or on the host, for the table in fake_ops.c. */
#ifndef LORA_FAKE_LISTS_H
#define LORA_FAKE_LISTS_H

#include "tests/fake_device/fake.h"

lora_status fake_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                            double scale, float *cos, float *sin, lora_error *err);
lora_status fake_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err);
lora_status fake_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                 bool accumulate_dx, lora_error *err);
bool fake_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter);
int64_t fake_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape);
lora_status fake_adamw_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper,
                            lora_error *err);
lora_status fake_adamw8bit_step(lora_ctx *ctx, int64_t n, const lora_param *params, const lora_adamw8bit_state *state,
                                const lora_adamw_hyper *hyper, lora_error *err);
lora_status fake_sgd_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, const lora_sgd_hyper *hyper, lora_error *err);
lora_status fake_lion_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, const lora_lion_hyper *hyper, lora_error *err);
lora_status fake_adafactor_step(lora_ctx *ctx, int64_t n, const lora_param *params, const lora_adafactor_state *state,
                                const lora_adafactor_hyper *hyper, lora_error *err);
lora_status fake_muon_step(lora_ctx *ctx, int64_t n, const lora_param *params, float *m, const lora_muon_hyper *hyper, lora_error *err);
lora_status fake_sum_of_squares(lora_ctx *ctx, int64_t n, const lora_param *params, double *sum, lora_error *err);

#endif
