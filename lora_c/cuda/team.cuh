/* Threads that have a row to themselves: a warp, or the whole block. */
#ifndef LORA_CUDA_TEAM_CUH
#define LORA_CUDA_TEAM_CUH

#include "lora_c/cuda/launch.cuh"

/* Of a team that is a block, in shared memory: sums alternate between two arrays, because some threads may be at the next sum while
 * others still read this one's. */
struct lora_team_shared {
    float partial[2][LORA_CUDA_WARP];
};

template <bool BLOCK> struct lora_team {
    int rank, size, turn; /* which thread of how many */
    int64_t first, step;  /* its rows are first, first + step, ... */

    __device__ __forceinline__ lora_team() : turn(0) {
        if (BLOCK) {
            rank = threadIdx.x;
            size = blockDim.x;
            first = blockIdx.x;
            step = gridDim.x;
        } else {
            int warps = blockDim.x / LORA_CUDA_WARP;
            rank = threadIdx.x % LORA_CUDA_WARP;
            size = LORA_CUDA_WARP;
            first = (int64_t)blockIdx.x * warps + threadIdx.x / LORA_CUDA_WARP;
            step = (int64_t)gridDim.x * warps;
        }
    }
    /* All threads of the team call; all have the sum. */
    __device__ __forceinline__ float sum(float x) {
        if (!BLOCK) return lora_warp_sum(x);
        turn = 1 - turn;
        return lora_block_sum(x, lora_shared<lora_team_shared>().partial[turn]);
    }
};

#endif
