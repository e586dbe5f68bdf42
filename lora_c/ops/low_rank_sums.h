/* Products of low rank with all the tokens as k: the gradients of A and B. */
#ifndef LORA_OPS_LOW_RANK_SUMS_H
#define LORA_OPS_LOW_RANK_SUMS_H

#include <stdbool.h>

#include "lora_c/linear.h"
#include "lora_c/ops/ctx.h"

/* out += alpha * low^T wide, out (rank, cols); or its transpose, out (cols, rank).   low (M, rank), wide (M, cols) */
typedef struct lora_low_rank_sum {
    const float *low;
    int64_t rank;
    const float *wide;
    int64_t ld, cols;
    float alpha;
    float *out;
    bool transposed;
} lora_low_rank_sum;

enum { LORA_LOW_RANK_SUMS = 2 * LORA_LINEAR_LAYERS };

/** Up to LORA_LOW_RANK_SUMS sums over M tokens at once; neighbours with the same wide share its packing.
 *  Numerics  in the precision of the context: partial sums over fixed groups of tokens, added in order.   Errors  ENOMEM */
lora_status lora_low_rank_sums(lora_ctx *ctx, int64_t M, int n, const lora_low_rank_sum *sums, lora_error *err) LORA_MUST_CHECK;

#endif
