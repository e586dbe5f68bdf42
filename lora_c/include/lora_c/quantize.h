/* Quantizing and decoding 4-bit matrices on the context's device: arrays lie at its addresses, and the bytes are those of nf4.h, whose
 * functions do the same in memory of the host. */
#ifndef LORA_C_QUANTIZE_H
#define LORA_C_QUANTIZE_H

#include "lora_c/context.h"
#include "lora_c/nf4.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Codes and absmax (float32 per block of block_size elements, counted through the rows) of src (rows, cols >= 1), without anything
 *  between its rows; float32, float16 or bfloat16.
 *  *first_bad   the index of the first value that is not finite, -1 where all are. It is a result as codes and absmax are, and they are
 *               undefined where it is not -1: who downloads them looks at it after the sync, and refuses.
 *  Numerics  lora_4bit_quantize: the same bytes on every device
 *  Errors    ESHAPE, EDTYPE, EINVAL */
lora_status lora_quantize_4bit(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax,
                               int64_t *first_bad, lora_error *err) LORA_MUST_CHECK;

/** Double quantization of n >= 1 absmax values: absmax_codes (n), nested_absmax (one per 256 of them), and one float *nested_offset, the
 *  mean, which a lora_nf4 has by value: it is downloaded with the rest. It is not finite where an absmax is not, and the other results
 *  are undefined then.
 *  Numerics  lora_nf4_double_quantize: the same bytes on every device
 *  Errors    ESHAPE, EINVAL */
lora_status lora_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                 float *nested_offset, lora_error *err) LORA_MUST_CHECK;

/** dst = elements [begin, begin + count) of the flattened matrix, in dtype: float32, float16 or bfloat16. w is read during the call, its
 *  arrays lie on the device; codes are readable for 64 bytes past their end.
 *  Numerics  lut[code] * absmax, rounded once to float32 and once to dtype: the same bytes on every device
 *  Errors    ESHAPE, EDTYPE, EINVAL */
lora_status lora_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                            lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
