/* Weights of a device, with random codes. */
#ifndef LORA_BENCHMARKS_DEVICE_WEIGHTS_H
#define LORA_BENCHMARKS_DEVICE_WEIGHTS_H

#include "benchmarks/device_rows.h"

/* Double-quantized, random codes, as large as memory: pool_rows of cols, of which a layer takes some. */
static inline lora_weight random_weight(const device_bench *b, bool nf4, int64_t pool_rows, int64_t cols, void **memory_of) {
    lora_error err;
    int64_t n = pool_rows * cols, blocks = n / 64, nested = (blocks + 255) / 256;
    size_t bytes = (size_t)(nf4 ? n / 2 : 2 * n);
    uint16_t *codes = memory(bytes + 64), *absmax = memory((size_t)blocks + 64);
    float *nested_absmax = memory((size_t)nested * sizeof(float));
    random_bytes(codes, bytes, 3);
    random_bytes(absmax, (size_t)blocks, 7);
    for (int64_t i = 0; i < nested; i++) nested_absmax[i] = 0.01f;
    for (int64_t i = 0; !nf4 && i < n; i++) codes[i] = (uint16_t)((codes[i] & 0x807f) | 0x3c80); /* magnitude 0.016 to 0.03 */
    lora_nf4 quantized = {.rows = pool_rows,
                          .cols = cols,
                          .block_size = 64,
                          .lut = lora_nf4_lut(),
                          .codes = (uint8_t *)codes,
                          .absmax_codes = (uint8_t *)absmax,
                          .nested_absmax = nested_absmax,
                          .nested_map = lora_dynamic_map_signed(),
                          .nested_offset = 0.02f,
                          .nested_block_size = 256};
    lora_weight host = nf4 ? lora_weight_nf4(&quantized) : lora_weight_bf16(codes, pool_rows, cols, cols), placed;
    must(lora_weight_place(b->ctx, &host, &placed, memory_of, &err), &err);
    if (*memory_of) free(codes), free(absmax), free(nested_absmax); /* else they are borrowed, for the rest of the program */
    return placed;
}

static inline double weight_bytes(bool nf4, int64_t N, int64_t K) {
    double n = (double)(N * K);
    return nf4 ? n / 2 + n / 64 + n / (64 * 256) * 4 : 2 * n;
}

#endif
