/* Matrices in the block formats of GGUF files, read where they lie.
 * Source   the GGUF specification and the block structures of ggml; docs/FORMATS.md for every byte. */
#ifndef LORA_C_GGML_H
#define LORA_C_GGML_H

#include <stdint.h>

#include "lora_c/status.h"
#include "lora_c/types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lora_ctx;

int64_t lora_ggml_block_values(lora_ggml_type type); /* weights per block (1 for F16 and BF16); 0 for a type that is not read */
int64_t lora_ggml_block_bytes(lora_ggml_type type);
const char *lora_ggml_type_name(lora_ggml_type type); /* "Q8_0", …; "?" for a type that is not read */

/** Decodes n_rows rows from first_row on into dst (n_rows, cols), float32, float16 or bfloat16.
 *  Numerics  float32 in the order of the format's definition, no fused multiply-add: bit-equal to the gguf package;
 *            then one rounding to dtype.   Errors  ESHAPE, EDTYPE, EINVAL */
lora_status lora_ggml_dequantize(struct lora_ctx *ctx, const lora_ggml *w, int64_t first_row, int64_t n_rows, void *dst, lora_dtype dtype,
                                 lora_error *err) LORA_MUST_CHECK;

/** Checks that every weight is finite: the scales of the blocks (whose products then are) or the values themselves.
 *  Errors    ESHAPE: cols is no multiple of the block's values; EINVAL names the first row with a NaN or an infinity. */
lora_status lora_ggml_check(struct lora_ctx *ctx, const lora_ggml *w, lora_error *err) LORA_MUST_CHECK;

/** Quantizes src (rows, cols), contiguous float32, float16 or bfloat16, to Q8_0: rows * cols / 32 blocks of 34 bytes.
 *  Numerics  d = max |x| / 127, code = x * (1 / d) rounded half away from zero, d stored as float16. Byte-equal to the
 *            gguf package for any thread count.
 *  Errors    EINVAL names the first row with a non-finite value, or with one above 127 * 65504; ESHAPE; EDTYPE */
lora_status lora_ggml_quantize_q8_0(struct lora_ctx *ctx, const void *src, lora_dtype dtype, int64_t rows, int64_t cols, uint8_t *blocks,
                                    lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
