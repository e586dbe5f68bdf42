/* DoRA's passes, reached through lora_linear_* when the adapter has a magnitude. */
#ifndef LORA_OPS_DORA_H
#define LORA_OPS_DORA_H

#include <stdbool.h>

#include "lora_c/context.h"
#include "lora_c/types.h"

/** As lora_linear_forward and lora_linear_backward, which have checked the arguments; adapter->magnitude and norm are set. */
lora_status lora_dora_forward(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, const lora_weight *w, const float *bias,
                              const lora_adapter *a, float *y, int64_t ldy, bool accumulate, lora_error *err) LORA_MUST_CHECK;
lora_status lora_dora_backward(lora_ctx *ctx, int64_t M, const float *dy, int64_t lddy, const float *x, int64_t ldx,
                               const lora_weight *w, const lora_adapter *a, float *dx, int64_t lddx, bool accumulate_dx,
                               float *dW, float *dbias, lora_error *err) LORA_MUST_CHECK;

/** Row n of rows (N, K) times magnitude[n] / norm[n]. */
void lora_dora_scale_rows(lora_ctx *ctx, int64_t N, int64_t K, const lora_adapter *a, float *rows);

#endif
