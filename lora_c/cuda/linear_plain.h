/* Linear layers with LoRA's adapter or none, and DoRA's on top of them. */
#ifndef LORA_CUDA_LINEAR_PLAIN_H
#define LORA_CUDA_LINEAR_PLAIN_H

#include "lora_c/cuda/linear_elements.h"
#include "lora_c/linear.h"

static inline lora_cuda_mask lora_cuda_mask_of(const lora_adapter *a, const lora_adapter_pass *pass) {
    return (lora_cuda_mask){.rate = pass->dropout, .seed = a->dropout_seed, .stream = pass->dropout_stream};
}

/** As lora_linear_forward and lora_linear_backward; magnitudes of adapters are not looked at. */
lora_status lora_cuda_plain_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) LORA_MUST_CHECK;
lora_status lora_cuda_plain_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                     bool accumulate_dx, lora_error *err) LORA_MUST_CHECK;
/** The same of one layer whose adapter has a magnitude, with pass.norm. */
lora_status lora_cuda_dora_forward(lora_ctx *ctx, lora_mat x, const lora_linear_layer *layer, lora_error *err) LORA_MUST_CHECK;
lora_status lora_cuda_dora_backward(lora_ctx *ctx, lora_mat x, const lora_linear_gradient *gradient, lora_mat dx, bool accumulate_dx,
                                    lora_error *err) LORA_MUST_CHECK;
/** Of up to LORA_DECODE_BATCH tokens. */
lora_status lora_cuda_few_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) LORA_MUST_CHECK;

#endif
