/* Attention with bfloat16 operands, for segments without past keys. */
#ifndef LORA_CUDA_ATTENTION_FAST_H
#define LORA_CUDA_ATTENTION_FAST_H

#include "lora_c/cuda/state.h"
#include "lora_c/nn.h"

/** Whether a context's precision, its device and heads of D elements allow for it. */
bool lora_cuda_attention_is_fast(const lora_ctx *ctx, int64_t D);

/** Leaves segments with past keys alone. */
lora_status lora_cuda_attention_forward_fast(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                             const lora_kv *kv, lora_mat o, float *lse, lora_error *err) LORA_MUST_CHECK;
/** delta (M, n_heads): the sums of dout * o over each head. */
lora_status lora_cuda_attention_backward_fast(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                              const lora_attention_gradient *gradient, const float *delta, lora_error *err) LORA_MUST_CHECK;

#endif
