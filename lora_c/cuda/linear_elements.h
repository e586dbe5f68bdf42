/* What linear layers do besides products. */
#ifndef LORA_CUDA_LINEAR_ELEMENTS_H
#define LORA_CUDA_LINEAR_ELEMENTS_H

#include "lora_c/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Element (m, k) of K columns is kept or not as a function of (seed, stream, m * K + k), as on the CPU. */
typedef struct lora_cuda_mask {
    float rate;
    uint64_t seed, stream;
} lora_cuda_mask;

/* What a column is scaled by, magnitude / norm or 1, and what is then added to it; each may be NULL. */
typedef struct lora_cuda_columns {
    const float *magnitude, *norm, *bias;
} lora_cuda_columns;

/* What is read of x and dy, in and dy here, is of any type; all else float32 where nothing is said. */

/** out (any type) (+)= in * mask / (1 - rate); in may be out. */
lora_status lora_cuda_drop(lora_ctx *ctx, lora_cuda_mask mask, lora_mat in, lora_mat out, bool accumulate, lora_error *err) LORA_MUST_CHECK;
/** out (+)= gain in + bias, by columns; in may be out. */
lora_status lora_cuda_affine(lora_ctx *ctx, lora_cuda_columns columns, lora_mat in, lora_mat out, bool accumulate,
                             lora_error *err) LORA_MUST_CHECK;
/** out (+)= in - minus, which may be absent; in may be out. */
lora_status lora_cuda_difference(lora_ctx *ctx, lora_mat in, lora_mat minus, lora_mat out, bool accumulate,
                                 lora_error *err) LORA_MUST_CHECK;
/** sum (cols) += the rows of dy. */
lora_status lora_cuda_add_rows(lora_ctx *ctx, lora_mat dy, float *sum, lora_error *err) LORA_MUST_CHECK;
/** dmagnitude (cols) += sum over the rows of dy * z / norm, where norm is not 0. */
lora_status lora_cuda_add_magnitudes(lora_ctx *ctx, lora_mat dy, lora_mat z, const float *norm, float *dmagnitude,
                                     lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
