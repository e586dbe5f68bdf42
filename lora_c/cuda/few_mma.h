/* The layers of few.h on tensor cores: 4-bit weights, operands bfloat16, sums float32. */
#ifndef LORA_CUDA_FEW_MMA_H
#define LORA_CUDA_FEW_MMA_H

#include "lora_c/cuda/few.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Whether a layer may be asked for: by its weight and its precision, never by its tokens. */
bool lora_cuda_few_mma_can(const lora_cuda *c, const lora_cuda_few_layer *layer);
lora_status lora_cuda_few_mma(lora_cuda *c, const lora_cuda_few_layer *layer, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
