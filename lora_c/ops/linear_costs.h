/* What the parts of linear layers cost, for the profile: operands once each, results twice where they are added to. */
#ifndef LORA_OPS_LINEAR_COSTS_H
#define LORA_OPS_LINEAR_COSTS_H

#include "lora_c/linear.h"

/** y of n layers, updates included. */
void lora_count_forward(lora_ctx *ctx, int64_t began, int64_t M, int64_t n, const lora_linear_layer *layers);
/** dx of n layers (or none) and dy B, which it shares with the gradient of A. */
void lora_count_backward(lora_ctx *ctx, int64_t began, int64_t M, int64_t n, const lora_linear_gradient *gradients, bool dx);
/** dA and dB of n layers, x A^T included. */
void lora_count_adapter_gradient(lora_ctx *ctx, int64_t began, int64_t M, int64_t n, const lora_linear_gradient *gradients);
void lora_count_weight_gradient(lora_ctx *ctx, int64_t began, int64_t M, int64_t N, int64_t K);

#endif
