/* The product of a few tokens with a weight: decoding. */
#ifndef LORA_OPS_GEMM_SMALL_H
#define LORA_OPS_GEMM_SMALL_H

#include "lora_c/ops/gemm.h"

/** Whether reading every weight row once, for all the tokens, beats packing: a function of the shapes only. */
bool lora_gemm_is_small(const lora_gemm_args *g);

enum { LORA_SMALL_PRODUCTS = 8 };

typedef struct lora_small_product {
    lora_gemm_args args;
    bool has_update;
    lora_gemm_args update; /* a second product into the same c, float32 weight; its a may be what the leading products write */
} lora_small_product;

/** As lora_gemm for each of n <= LORA_SMALL_PRODUCTS products that lora_gemm_is_small accepts, with the same a, m and k, in one
 *  parallel region. An update follows its product, after the first n_leading products (which have none) are complete.
 *  Numerics  the bits of a token's result depend neither on the other tokens nor on the other products. */
lora_status lora_gemm_small(lora_ctx *ctx, const lora_small_product *products, int64_t n, int64_t n_leading,
                            lora_error *err) LORA_MUST_CHECK;

#endif
