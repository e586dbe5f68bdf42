/* Arguments of plain products, for checks that vary one of them. */
#ifndef LORA_TESTS_PRODUCTS_H
#define LORA_TESTS_PRODUCTS_H

#include "lora_c/ops/gemm.h"

/* c[m,n] = a[m,k] op(b), a and c contiguous. */
static inline lora_gemm_args product_of(int64_t m, const float *a, const lora_weight *b, bool b_transposed, float *c) {
    int64_t n = b_transposed ? b->rows : b->cols, k = b_transposed ? b->cols : b->rows;
    return (lora_gemm_args){.m = m,
                            .n = n,
                            .k = k,
                            .alpha = 1,
                            .a = a,
                            .a_row_stride = k,
                            .a_col_stride = 1,
                            .b = b,
                            .b_transposed = b_transposed,
                            .c = c,
                            .ldc = n};
}

#endif
