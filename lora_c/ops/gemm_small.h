/* The product of a few tokens with a weight: decoding. */
#ifndef LORA_OPS_GEMM_SMALL_H
#define LORA_OPS_GEMM_SMALL_H

#include "lora_c/linear.h"
#include "lora_c/ops/gemm.h"

/** Whether reading every weight row once, for all the tokens, beats packing: a function of the shapes only. */
bool lora_gemm_is_small(const lora_gemm_args *g);

/* Of a call: those of layers, and a leading one for each adapter that a token can have in each. */
enum { LORA_SMALL_UPDATES = LORA_LINEAR_LAYERS * LORA_DECODE_BATCH, LORA_SMALL_PRODUCTS = LORA_LINEAR_LAYERS + LORA_SMALL_UPDATES };

typedef struct lora_small_product {
    lora_gemm_args args;
    bool base; /* with the weight of a linear layer: what LORA_PRECISION_INT8 is for */
    /* (n_updates): products into rows of the same c, float32 weights; their a may be what the leading products write */
    const lora_gemm_args *updates;
    int64_t n_updates;
} lora_small_product;

/** As lora_gemm for each of n <= LORA_SMALL_PRODUCTS products that lora_gemm_is_small accepts, with the same a, m and k, in one
 *  parallel region. Updates follow their product, after the first n_leading < n products (which have none, and float32 weights: their
 *  a and m may be some rows of the others') are complete.
 *  Numerics  the bits of a token's result depend neither on the other tokens nor on the other products. */
lora_status lora_gemm_small(lora_ctx *ctx, const lora_small_product *products, int64_t n, int64_t n_leading,
                            lora_error *err) LORA_MUST_CHECK;

#endif
