/* Matrix products of the device, by cuBLASLt. */
#ifndef LORA_CUDA_PRODUCTS_H
#define LORA_CUDA_PRODUCTS_H

#include <stdbool.h>

#include "lora_c/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A matrix as an operand. */
typedef struct lora_cuda_factor {
    lora_mat mat;
    const int32_t *exponent; /* of the device: mat is the matrix times 2^exponent; NULL: 2^0 */
} lora_cuda_factor;

/* c = alpha op(a) op(b) + beta c, all row-major, at addresses of the device. */
typedef struct lora_cuda_product {
    lora_mat a, b; /* of one dtype: float32 (whose products are float32, not TF32), bfloat16 or float16; sums are float32 */
    bool transpose_a, transpose_b;
    lora_mat c; /* float32, or the dtype of a and b */
    float alpha, beta;
    const int32_t *a_exponent, *b_exponent; /* as a factor has them */
} lora_cuda_product;

/** What is summed over has one element or more. The same shapes, strides and types give the same bits each time.
 *  Errors  ENOMEM, EDEVICE */
lora_status lora_cuda_multiply(lora_cuda *c, const lora_cuda_product *product, lora_error *err) LORA_MUST_CHECK;

struct lora_mem;
lora_status lora_cuda_products_create(lora_cuda *c, struct lora_mem *host, lora_error *err) LORA_MUST_CHECK;
void lora_cuda_products_destroy(lora_cuda *c, struct lora_mem *host);

#ifdef __cplusplus
}
#endif
#endif
