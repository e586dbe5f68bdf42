/* The product of a few tokens with a weight: decoding. */
#ifndef LORA_OPS_GEMM_SMALL_H
#define LORA_OPS_GEMM_SMALL_H

#include "lora_c/ops/gemm.h"

/** Whether a dot product per weight row beats packing: a function of the shapes only. */
bool lora_gemm_is_small(const lora_gemm_args *g);

/** As lora_gemm, for the arguments that lora_gemm_is_small accepts. */
lora_status lora_gemm_small(lora_ctx *ctx, const lora_gemm_args *g, lora_error *err) LORA_MUST_CHECK;

#endif
