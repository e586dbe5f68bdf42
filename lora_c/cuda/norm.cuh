/* What the norms and their gradients share: which kernel of a family runs, and on how many threads. */
#ifndef LORA_CUDA_NORM_CUH
#define LORA_CUDA_NORM_CUH

#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/team.cuh"

enum { LORA_NORM_MOST_THREADS = 512, LORA_NORM_OF_WARP = 1024 /* columns up to which a warp has a row */ };

/* 16 bytes at a time from the weights and from every group of every row. */
static inline bool lora_norm_wide(const lora_norm *norm, lora_mat m) {
    return lora_wide(m) && norm->H % 4 == 0 && lora_aligned(norm->weight) && (norm->kind == LORA_NORM_RMS || lora_aligned(norm->bias));
}

/* The kernels of kernel<KIND, W, BLOCK> by [KIND][W is 4][BLOCK]. */
#define LORA_NORM_KERNELS(kernel)                                                                                                          \
    {                                                                                                                                      \
        {{kernel<LORA_NORM_RMS, 1, false>, kernel<LORA_NORM_RMS, 1, true>},                                                                \
         {kernel<LORA_NORM_RMS, 4, false>, kernel<LORA_NORM_RMS, 4, true>}},                                                               \
        {{kernel<LORA_NORM_LAYER, 1, false>, kernel<LORA_NORM_LAYER, 1, true>},                                                            \
         {kernel<LORA_NORM_LAYER, 4, false>, kernel<LORA_NORM_LAYER, 4, true>}},                                                           \
    }

template <class Args>
static lora_status lora_norm_launch(lora_cuda *c, const char *name, void (*const (&kernels)[2][2][2])(Args), const lora_norm *norm,
                                    bool wide, int64_t rows, const Args &args, lora_error *err) {
    const bool block = norm->H > LORA_NORM_OF_WARP;
    const uint32_t threads = block && norm->H > 8192 ? 512 : 256;
    const int64_t vectors = rows * norm->groups, blocks = block ? vectors : lora_div_up(vectors, threads / LORA_CUDA_WARP);
    return lora_cuda_launch_kernel(c, name, kernels[norm->kind == LORA_NORM_LAYER][wide][block], lora_cuda_grid(blocks), threads,
                                   block ? sizeof(lora_team_shared) : 0, args, err);
}

#endif
