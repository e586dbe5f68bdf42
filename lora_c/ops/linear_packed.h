/* Linear layers that share an input, as sums of packed products. Arguments are checked by the caller; no DoRA. */
#ifndef LORA_OPS_LINEAR_PACKED_H
#define LORA_OPS_LINEAR_PACKED_H

#include "lora_c/linear.h"

/** y_i = x W_i^T + bias_i + s_i (drop_i(x) A_i^T) B_i^T: x is packed once, the update is k + 1 … k + r of the same sum. */
lora_status lora_linear_packed_forward(lora_ctx *ctx, lora_mat x, int n, const lora_linear_layer *layers, lora_error *err) LORA_MUST_CHECK;

/** dx = sum of dy_i W_i + s_i drop'_i((dy_i B_i) A_i), one sum where nothing is dropped, and all dA_i, dB_i, dW_i. */
lora_status lora_linear_packed_backward(lora_ctx *ctx, lora_mat x, int n, const lora_linear_gradient *gradients, lora_mat dx,
                                        bool accumulate_dx, lora_error *err) LORA_MUST_CHECK;

#endif
