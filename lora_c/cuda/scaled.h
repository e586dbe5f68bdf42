/* Float16 operands of products, for GPUs whose tensor cores take nothing else. Float16 has numbers from 6e-8 to 65,504 only: gradients
 * would vanish in it and large activations become infinite. So a matrix is multiplied by a power of two when it is rounded, which changes
 * no digit, and the product is divided by it. Its exponent is found and stays on the device.
 *
 * Numerics   an operand, divided by its power of two: |err| <= 2^-11 |x| + 2^-39 max|x|, of finite numbers whose max|x| is 2e-26 or more */
#ifndef LORA_CUDA_SCALED_H
#define LORA_CUDA_SCALED_H

#include "lora_c/cuda/products.h"

#ifdef __cplusplus
extern "C" {
#endif

/** *exponent: of the device, until the next call for the slot, of the power of two that brings the largest finite magnitude of m to
 * [2^14, 2^15); between -113 and 100; 0 where all is 0.   Errors  ENOMEM, EDEVICE */
lora_status lora_cuda_find_exponent(lora_cuda *c, lora_mat m, int slot, const int32_t **exponent, lora_error *err) LORA_MUST_CHECK;
/** A matrix of any type as lora_cuda_operand gives it; as float16 times its power of two. What is not finite stays what it is. */
lora_status lora_cuda_factor_of(lora_cuda *c, lora_mat m, lora_dtype dtype, int slot, lora_cuda_factor *out,
                                lora_error *err) LORA_MUST_CHECK;
/** The same of rows of w, as lora_cuda_weight gives them: 4-bit types and blocks of GGUF files are decoded to float16 as they are. */
lora_status lora_cuda_weight_factor(lora_cuda *c, const lora_weight *w, int64_t first, int64_t rows, lora_dtype dtype, int slot,
                                    lora_cuda_factor *out, lora_error *err) LORA_MUST_CHECK;
/** alpha divided by both powers of two, and beta, on the device until the next call. */
lora_status lora_cuda_scalars(lora_cuda *c, const lora_cuda_product *product, const float **alpha, const float **beta,
                              lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
