/* Linear layers with LoRA's adapter or none, by the way that suits the number of tokens. Arguments are checked by the caller. */
#ifndef LORA_OPS_LINEAR_PLAIN_H
#define LORA_OPS_LINEAR_PLAIN_H

#include "lora_c/linear.h"

/** As lora_linear_forward and lora_linear_backward; no adapter has a magnitude. */
lora_status lora_linear_plain_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers,
                                      lora_error *err) LORA_MUST_CHECK;
lora_status lora_linear_plain_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                       bool accumulate_dx, lora_error *err) LORA_MUST_CHECK;

#endif
