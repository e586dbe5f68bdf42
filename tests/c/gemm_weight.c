#include "tests/c/gemm_weight.h"

#include "lora_c/base/half.h"

void roughen(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] *= i / 64 % 7 == 3 ? 0.0f : i % 101 == 5 ? 100.0f : 1.0f;
}

static void make_nf4(lora_ctx *ctx, weight_case *c, int64_t rows, int64_t cols, int64_t block_size, bool double_quant) {
    int64_t n_blocks = lora_nf4_blocks(rows, cols, block_size);
    lora_error err;
    c->codes = malloc((size_t)lora_nf4_code_bytes(rows, cols) + 64);
    c->absmax = malloc((size_t)n_blocks * sizeof(float));
    OK(lora_nf4_quantize(ctx, c->dense, LORA_F32, rows, cols, block_size, c->codes, c->absmax, ERR));
    c->nf4 =
        (lora_nf4){.rows = rows, .cols = cols, .block_size = block_size, .lut = lora_nf4_lut(), .codes = c->codes, .absmax = c->absmax};
    if (double_quant) {
        c->absmax_codes = malloc((size_t)n_blocks);
        c->nested = malloc((size_t)(n_blocks / LORA_NF4_NESTED_BLOCK + 1) * sizeof(float));
        CHECK(lora_nf4_double_quantize(ctx, c->absmax, n_blocks, c->absmax_codes, c->nested, &c->nf4.nested_offset, &err) == LORA_OK, "%s",
              err.message);
        c->nf4.absmax = NULL;
        c->nf4.absmax_codes = c->absmax_codes;
        c->nf4.nested_absmax = c->nested;
        c->nf4.nested_map = lora_dynamic_map_signed();
        c->nf4.nested_block_size = LORA_NF4_NESTED_BLOCK;
    }
    OK(lora_nf4_dequantize(ctx, &c->nf4, 0, rows * cols, c->dense, LORA_F32, ERR));
    c->w = lora_weight_nf4(&c->nf4);
}

weight_case *make_weight(lora_ctx *ctx, lora_weight_kind kind, int64_t rows, int64_t cols, int variant) {
    weight_case *c = calloc(1, sizeof *c);
    int64_t n = rows * cols;
    c->dense = malloc((size_t)n * sizeof(float));
    check_normal(c->dense, n, (uint64_t)(rows * 131 + cols), 1);
    if (variant & ROUGH) roughen(c->dense, n);
    if (kind == LORA_WEIGHT_F32) {
        c->w = lora_weight_f32(c->dense, rows, cols, cols);
    } else if (kind == LORA_WEIGHT_BF16) {
        uint16_t *h = c->stored = malloc((size_t)n * 2 + 64);
        for (int64_t i = 0; i < n; i++) c->dense[i] = lora_bf16_to_f32(h[i] = lora_f32_to_bf16(c->dense[i]));
        c->w = lora_weight_bf16(h, rows, cols, cols);
    } else {
        make_nf4(ctx, c, rows, cols, variant & SHORT_BLOCKS ? 32 : 64, variant & DOUBLE_QUANT);
    }
    return c;
}

void free_weight(weight_case *c) {
    void *all[] = {c->dense, c->stored, c->codes, c->absmax, c->absmax_codes, c->nested, c};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}
