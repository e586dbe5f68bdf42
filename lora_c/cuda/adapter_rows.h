/* Rows of W + s B A, formed in float32 in every precision. */
#ifndef LORA_CUDA_ADAPTER_ROWS_H
#define LORA_CUDA_ADAPTER_ROWS_H

#include "lora_c/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

/* base (rows, K) is rows first, ... of W. */
typedef struct lora_cuda_adapter_rows {
    lora_mat base;
    int64_t first, rank;
    const float *A, *B;
    float scale;
    const float *magnitude; /* with norm: rows are multiplied by magnitude / norm; NULL: they are not */
    float *norm;            /* by row of W: read with magnitude, else written where it is not NULL */
} lora_cuda_adapter_rows;

/** base = (magnitude / norm) (base + scale B A), in place. */
lora_status lora_cuda_merge_rows(lora_cuda *c, const lora_cuda_adapter_rows *rows, lora_error *err) LORA_MUST_CHECK;
/** norm[n] = the length of row n of base + scale B A, its squares summed in float64; base stays. */
lora_status lora_cuda_norm_rows(lora_cuda *c, const lora_cuda_adapter_rows *rows, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
