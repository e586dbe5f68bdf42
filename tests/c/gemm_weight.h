/* Random weights of every kind for the checks of products, with the values that they stand for. */
#ifndef LORA_TESTS_GEMM_WEIGHT_H
#define LORA_TESTS_GEMM_WEIGHT_H

#include "tests/c/check_ops.h"

/* What a product varies, in bits; the kinds of weights look at SHORT_BLOCKS, DOUBLE_QUANT and ROUGH. */
enum {
    SHORT_BLOCKS = 1, /* NF4 blocks of 32, output misaligned, bias */
    A_TRANSPOSED = 2,
    ACCUMULATE = 4,
    DOUBLE_QUANT = 8,
    ROUGH = 16, /* outliers and blocks of zeros in A and the weight */
    VARIANTS = 32,
};

typedef struct weight_case {
    lora_weight w;
    lora_nf4 nf4;
    float *dense; /* what the stored weight stands for */
    void *stored;
    uint8_t *codes, *absmax_codes;
    float *absmax, *nested;
} weight_case;

weight_case *make_weight(lora_ctx *ctx, lora_weight_kind kind, int64_t rows, int64_t cols, int variant);
void free_weight(weight_case *c);

/* Every 7th run of 64 is zero, one value in 101 is a hundred times as large. */
void roughen(float *x, int64_t n);

#endif
