/* NF4: 4-bit NormalFloat with optional double quantization, byte-equal to bitsandbytes; and the 4-bit types that it is compared with,
 * which share its layout and differ in the table of their values.
 * Source   QLoRA, arXiv:2305.14314, section 3 (NF4, eq. 4; double quantization); docs/FORMATS.md for every byte. */
#ifndef LORA_C_NF4_H
#define LORA_C_NF4_H

#include <stdint.h>

#include "lora_c/status.h"
#include "lora_c/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lora_ctx;

typedef enum lora_4bit_type {
    LORA_4BIT_NF4,
    LORA_4BIT_FP4,      /* bitsandbytes' own 4-bit float */
    LORA_4BIT_FP4_E2M1, /* 0, 0.5, 1, 1.5, 2, 3, 4, 6 over 6, both signs */
    LORA_4BIT_INT4,     /* -7 to 7 over 7 */
    LORA_4BIT_END
} lora_4bit_type;

const char *lora_4bit_name(lora_4bit_type type); /* "nf4", "fp4", "fp4_e2m1", "int4" */
const float *lora_4bit_lut(lora_4bit_type type); /* the 16 values by code */

const float *lora_nf4_lut(void);              /* the 16 NormalFloat values */
const float *lora_fp4_lut(void);              /* those of bitsandbytes' FP4 */
const float *lora_dynamic_map_signed(void);   /* the 256-value signed 8-bit dynamic map (float32) */
const float *lora_dynamic_map_unsigned(void); /* the unsigned one, of second moments */

int64_t lora_nf4_code_bytes(int64_t rows, int64_t cols);
int64_t lora_nf4_blocks(int64_t rows, int64_t cols, int64_t block_size);

/** Quantizes src (rows, cols), contiguous, float32/float16/bfloat16, into codes and absmax (float32 per block).
 *  Numerics  the nearest value to x * (1/absmax), float32, a tie to the lower one: the code of the interval whose number is the
 *            number of thresholds strictly below. Zero stays zero; all-zero block: absmax 0 (a ragged zero tail block: absmax
 *            1e-38, as the peer stores it). NF4 and FP4 are byte-equal to bitsandbytes. The same bytes for any thread count.
 *  Errors    EINVAL names the first non-finite index and its value; ESHAPE; EDTYPE. Output is undefined after an error. */
lora_status lora_4bit_quantize(struct lora_ctx *ctx, lora_4bit_type type, const void *src, lora_dtype dtype, int64_t rows, int64_t cols,
                               int64_t block_size, uint8_t *codes, float *absmax, lora_error *err) LORA_MUST_CHECK;

/** lora_4bit_quantize to NF4.
 *  Numerics  code = number of thresholds strictly below x * (1/absmax), float32; all-zero block: codes 7 */
lora_status lora_nf4_quantize(struct lora_ctx *ctx, const void *src, lora_dtype dtype, int64_t rows, int64_t cols, int64_t block_size,
                              uint8_t *codes, float *absmax, lora_error *err) LORA_MUST_CHECK;

/** Double quantization of n absmax values: offset = mean, then 8-bit codes of absmax - offset per nested block of 256.
 *  Numerics  true nearest value of the signed dynamic map (ties to the even index), zero stays zero. */
lora_status lora_nf4_double_quantize(struct lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                     float *nested_offset, lora_error *err) LORA_MUST_CHECK;

/** Of any of the types: decodes elements [begin, begin + count) of the flattened matrix into dst (float32, float16 or bfloat16; one
 * rounding). */
lora_status lora_nf4_dequantize(struct lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype,
                                lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
