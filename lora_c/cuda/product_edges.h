/* Products over nothing. */
#ifndef LORA_CUDA_PRODUCT_EDGES_H
#define LORA_CUDA_PRODUCT_EDGES_H

#include "lora_c/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

/** m = beta m, which is not read where beta is 0. */
lora_status lora_cuda_apply_beta(lora_cuda *c, lora_mat m, float beta, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
