/* DoRA's passes, reached through lora_linear_* when the adapter has a magnitude. */
#ifndef LORA_OPS_DORA_H
#define LORA_OPS_DORA_H

#include "lora_c/linear.h"

/** As lora_linear_forward and lora_linear_backward of one layer, which have checked the arguments; adapter->magnitude and
 *  pass.norm are set. */
lora_status lora_dora_forward(lora_ctx *ctx, lora_mat x, const lora_linear_layer *layer, lora_error *err) LORA_MUST_CHECK;
lora_status lora_dora_backward(lora_ctx *ctx, lora_mat x, const lora_linear_gradient *gradient, lora_mat dx, bool accumulate_dx,
                               lora_error *err) LORA_MUST_CHECK;

/** Row n of rows (N, K) times magnitude[n] / norm[n]. */
void lora_dora_scale_rows(lora_ctx *ctx, const lora_adapter *a, const float *norm, lora_mat rows);

#endif
