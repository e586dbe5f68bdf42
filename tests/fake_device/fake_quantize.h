/* The operations of quantize.h, for the table in fake_ops.c. */
#ifndef LORA_FAKE_QUANTIZE_H
#define LORA_FAKE_QUANTIZE_H

#include "tests/fake_device/fake.h"

lora_status fake_quantize_4bit(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax,
                               int64_t *first_bad, lora_error *err);
lora_status fake_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                 float *nested_offset, lora_error *err);
lora_status fake_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype, lora_error *err);

#endif
