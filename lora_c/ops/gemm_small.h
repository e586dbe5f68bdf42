/* The product of a few tokens with a weight: decoding. */
#ifndef LORA_OPS_GEMM_SMALL_H
#define LORA_OPS_GEMM_SMALL_H

#include "lora_c/ops/gemm.h"

/** Whether reading every weight row once, for all the tokens, beats packing: a function of the shapes only. */
bool lora_gemm_is_small(const lora_gemm_args *g);

/** As lora_gemm for each of n products that lora_gemm_is_small accepts, with the same a, m and k, in one parallel region.
 *  Numerics  the bits of a token's result depend neither on the other tokens nor on the other products. */
lora_status lora_gemm_small(lora_ctx *ctx, const lora_gemm_args *products, int64_t n, lora_error *err) LORA_MUST_CHECK;

#endif
