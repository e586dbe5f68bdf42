/* Linear layers of up to LORA_DECODE_BATCH tokens: rows of W are read once for all of them and decoded in registers. Sums are float32
 * in an order that depends on K, R, the weight and the precision only: the result of a token has the bits that it gets alone. Operands are
 * float32, of 4-bit weights in precision fast bfloat16 where tensor cores take it (few_mma.cu). */
#ifndef LORA_CUDA_FEW_H
#define LORA_CUDA_FEW_H

#include "lora_c/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LORA_CUDA_FEW_LOWS = LORA_LINEAR_LAYERS * LORA_DECODE_BATCH };

/* t[rows, rank] = scale x[rows, K] A[rank, K]^T of some rows; t is contiguous. */
typedef struct lora_cuda_few_low {
    const float *x, *A;
    float *t;
    int64_t ldx, rank;
    float scale;
    int32_t rows;
} lora_cuda_few_low;

/** n <= LORA_CUDA_FEW_LOWS of them in one launch. */
lora_status lora_cuda_few_lows(lora_cuda *c, int64_t K, int n, const lora_cuda_few_low *lows, lora_error *err) LORA_MUST_CHECK;

/* What a token's adapter adds to it: t[rank] B[N, rank]^T; rank 0: nothing. */
typedef struct lora_cuda_few_update {
    const float *t, *B;
    int64_t rank;
} lora_cuda_few_update;

typedef struct lora_cuda_few_layer {
    lora_mat x, y;
    lora_weight w;
    const float *bias; /* or NULL */
    bool accumulate;
    lora_dtype operands;                             /* what x and the values of W may be rounded to */
    lora_cuda_few_update updates[LORA_DECODE_BATCH]; /* by token */
} lora_cuda_few_layer;

/** y (+)= x W^T + bias + updates. */
lora_status lora_cuda_few_output(lora_cuda *c, const lora_cuda_few_layer *layer, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
