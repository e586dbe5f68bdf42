#include "tests/fake_device/fake_quantize.h"

#include "lora_c/ops/cpu_ops.h"
#include "tests/fake_device/fake_addresses.h"

typedef struct quantize_4bit_args {
    lora_4bit_type type;
    lora_mat src;
    int64_t block_size;
    uint8_t *codes;
    float *absmax;
    int64_t *first_bad;
} quantize_4bit_args;

static lora_status run_quantize_4bit(fake_device *f, void *args, lora_error *err) {
    quantize_4bit_args *a = args;
    const void *bad = NULL;
    at_mat(f, &a->src, &bad);
    a->codes = fake_at(f, a->codes, &bad);
    a->absmax = fake_at(f, a->absmax, &bad);
    a->first_bad = fake_at(f, a->first_bad, &bad);
    return bad ? host_address("quantize_4bit", err)
               : lora_cpu_quantize_4bit(f->cpu, a->type, a->src, a->block_size, a->codes, a->absmax, a->first_bad, err);
}

lora_status fake_quantize_4bit(lora_ctx *ctx, lora_4bit_type type, lora_mat src, int64_t block_size, uint8_t *codes, float *absmax,
                               int64_t *first_bad, lora_error *err) {
    quantize_4bit_args args = {
        .type = type, .src = src, .block_size = block_size, .codes = codes, .absmax = absmax, .first_bad = first_bad};
    return queue(ctx, run_quantize_4bit, &args, sizeof args, err);
}

typedef struct double_quantize_args {
    const float *absmax;
    int64_t n;
    uint8_t *absmax_codes;
    float *nested_absmax, *nested_offset;
} double_quantize_args;

static lora_status run_double_quantize(fake_device *f, void *args, lora_error *err) {
    double_quantize_args *a = args;
    const void *bad = NULL;
    a->absmax = fake_at(f, a->absmax, &bad);
    a->absmax_codes = fake_at(f, a->absmax_codes, &bad);
    a->nested_absmax = fake_at(f, a->nested_absmax, &bad);
    a->nested_offset = fake_at(f, a->nested_offset, &bad);
    return bad ? host_address("double_quantize", err)
               : lora_cpu_double_quantize(f->cpu, a->absmax, a->n, a->absmax_codes, a->nested_absmax, a->nested_offset, err);
}

lora_status fake_double_quantize(lora_ctx *ctx, const float *absmax, int64_t n, uint8_t *absmax_codes, float *nested_absmax,
                                 float *nested_offset, lora_error *err) {
    double_quantize_args args = {
        .absmax = absmax, .n = n, .absmax_codes = absmax_codes, .nested_absmax = nested_absmax, .nested_offset = nested_offset};
    return queue(ctx, run_double_quantize, &args, sizeof args, err);
}

typedef struct dequantize_args {
    lora_weight w;
    int64_t begin, count;
    void *dst;
    lora_dtype dtype;
} dequantize_args;

static lora_status run_dequantize(fake_device *f, void *args, lora_error *err) {
    dequantize_args *a = args;
    const void *bad = NULL;
    at_weight(f, &a->w, &bad);
    a->dst = fake_at(f, a->dst, &bad);
    return bad ? host_address("dequantize", err) : lora_cpu_dequantize(f->cpu, &a->w.nf4, a->begin, a->count, a->dst, a->dtype, err);
}

lora_status fake_dequantize(lora_ctx *ctx, const lora_nf4 *w, int64_t begin, int64_t count, void *dst, lora_dtype dtype, lora_error *err) {
    dequantize_args args = {.w = lora_weight_nf4(w), .begin = begin, .count = count, .dst = dst, .dtype = dtype};
    return queue(ctx, run_dequantize, &args, sizeof args, err);
}
