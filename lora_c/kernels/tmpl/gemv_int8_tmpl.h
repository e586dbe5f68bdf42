/* What the rungs of the int8 products of few tokens share that multiply a block at a time (gemv_kernels.h); AVX-512 takes two. */
#ifndef LORA_GEMV_INT8_TMPL_H
#define LORA_GEMV_INT8_TMPL_H

#include "lora_c/kernels/gemv_kernels.h"
#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"

/* A block of a token: columns 2 i and 2 i + 1, as the nibbles of a row have them, and -128 times the sum of all. */
typedef struct lora_int8_token {
    int8_t even[LORA_GEMM_SCALE_BLOCK / 2], odd[LORA_GEMM_SCALE_BLOCK / 2];
    float scale;
    int32_t correction, fill[6];
} lora_int8_token;

_Static_assert(sizeof(lora_int8_token) == 96, "vectors of 32 bytes");

LORA_INLINE const lora_int8_token *lora_int8_token_at(const void *x, int64_t stride, int64_t i) {
    return (const lora_int8_token *)(const void *)((const char *)x + i * stride);
}

#endif
