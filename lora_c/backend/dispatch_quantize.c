/* The operations of quantize.h. */
#include "lora_c/backend/dispatch.h"

lora_status lora_quantize_4bit(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax,
                               int64_t *first_bad, lora_error *err) {
    LORA_TRY(lora_check_quantize_4bit(type, src, block_size, codes, absmax, first_bad, err));
    return lora_ops_of(ctx)->quantize_4bit(ctx, type, src, block_size, codes, absmax, first_bad, err);
}

lora_status lora_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                 float *nested_offset, lora_error *err) {
    LORA_TRY(lora_check_double_quantize(absmax, n, absmax_codes, nested_absmax, nested_offset, err));
    return lora_ops_of(ctx)->double_quantize(ctx, absmax, n, absmax_codes, nested_absmax, nested_offset, err);
}

lora_status lora_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype, lora_error *err) {
    LORA_TRY(lora_check_dequantize(w, begin, count, dst, dtype, err));
    return count == 0 ? LORA_OK : lora_ops_of(ctx)->dequantize(ctx, w, begin, count, dst, dtype, err);
}
