/* Attention of segments with few rows, in float32. */
#ifndef LORA_CUDA_ATTENTION_FEW_H
#define LORA_CUDA_ATTENTION_FEW_H

#include "lora_c/cuda/attention.cuh"

/** Leaves segments with more than ATTENTION_FEW rows alone. rows: the most that another one has. */
lora_status lora_cuda_attention_few(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                    const lora_kv *kv, lora_mat o, float *lse, int64_t rows, lora_error *err) LORA_MUST_CHECK;
/** The most bytes of SUMS that it works in, with so many segments. */
size_t lora_cuda_attention_few_bytes(int64_t n_segments, int64_t n_kv_heads, int64_t head_dim);

#endif
