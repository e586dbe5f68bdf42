/* What an adapter adds to an output of few.h. */
#ifndef LORA_CUDA_FEW_UPDATE_CUH
#define LORA_CUDA_FEW_UPDATE_CUH

#include "lora_c/cuda/few.h"
#include "lora_c/cuda/launch.cuh"

/* A lane's part of row `col` of B times t, added to its sum. */
__device__ __forceinline__ float lora_few_update(const lora_cuda_few_update &u, int64_t col, float sum) {
    for (int64_t r = threadIdx.x % LORA_CUDA_WARP; r < u.rank; r += LORA_CUDA_WARP) sum = fmaf(u.t[r], u.B[col * u.rank + r], sum);
    return sum;
}

#endif
