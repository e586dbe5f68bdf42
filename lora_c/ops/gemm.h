/* One matrix product for every layer, direction and weight format. */
#ifndef LORA_OPS_GEMM_H
#define LORA_OPS_GEMM_H

#include <stdbool.h>

#include "lora_c/context.h"
#include "lora_c/types.h"

/* C[m,n] (+)= alpha * A[m,k] * op(B)[k,n].  A is float32, one of its strides 1 (row stride 1: A transposed).
 * B is a lora_weight (float32, bfloat16, NF4, GGUF blocks): b_transposed means op(B) = W^T (n = W.rows, k = W.cols: forward),
 * else op(B) = W (k = W.rows, n = W.cols: gradient of the input, or a plain dense product). */
typedef struct lora_gemm_args {
    int64_t m, n, k;
    float alpha;
    const float *a;
    int64_t a_row_stride, a_col_stride;
    const lora_weight *b;
    bool b_transposed;
    float *c;
    int64_t ldc;
    bool accumulate;
    const float *bias; /* (n), added once, or NULL */
    bool exact;        /* whatever the precision of the context: weights that are merged */
} lora_gemm_args;

/** In the precision of the context.
 *  Numerics  the k-sum of every C element runs in blocks of fixed size in index order on one thread, so the bits depend
 *            on (m, n, k, formats, rung, precision) only.   Errors  ENOMEM (scratch). Shapes are the caller's duty. */
lora_status lora_gemm(lora_ctx *ctx, const lora_gemm_args *args, lora_error *err) LORA_MUST_CHECK;

/** Bytes of a packed (m, k) left operand in the precision of the context. */
int64_t lora_gemm_scratch(const lora_ctx *ctx, int64_t m, int64_t k);

#endif
