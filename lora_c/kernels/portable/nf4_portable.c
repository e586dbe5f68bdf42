/* NF4 kernels in plain C: loops over 32 elements that a compiler vectorises on any machine. */
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/nf4_kernels.h"

enum { GROUP = 32 };

static int32_t top_magnitude(const float *x, int64_t n) {
    int32_t top[8] = {0};
    for (int64_t i = 0; i < n; i += 8) {
        int32_t bits[8];
        memcpy(bits, x + i, sizeof bits);
        for (int j = 0; j < 8; j++) {
            int32_t magnitude = bits[j] & 0x7fffffff;
            top[j] = magnitude > top[j] ? magnitude : top[j];
        }
    }
    for (int j = 1; j < 8; j++) top[0] = top[j] > top[0] ? top[j] : top[0];
    return top[0];
}

static int64_t quantize_floats(const lora_codebook *book, const float *x, int64_t n_blocks, int64_t block_size, uint8_t *codes,
                               float *absmax) {
    for (int64_t b = 0; b < n_blocks; b++) {
        int32_t top = top_magnitude(x, block_size);
        if (top >= 0x7f800000) return b;
        memcpy(absmax + b, &top, 4);
        float inverse = 1.0f / (absmax[b] > LORA_NF4_MIN_ABSMAX ? absmax[b] : LORA_NF4_MIN_ABSMAX);
        for (int64_t i = 0; i < block_size; i += GROUP, x += GROUP, codes += GROUP / 2) {
            float y[GROUP];
            int32_t interval[GROUP] = {0};
            for (int j = 0; j < GROUP; j++) y[j] = x[j] * inverse;
            for (int t = 0; t < 15; t++)
                for (int j = 0; j < GROUP; j++) interval[j] += y[j] > book->threshold[t];
            for (int j = 0; j < GROUP / 2; j++) codes[j] = (uint8_t)(book->code[interval[2 * j]] << 4 | book->code[interval[2 * j + 1]]);
        }
    }
    return n_blocks;
}

/* 16-bit blocks are widened one at a time. */
static int64_t quantize(const lora_codebook *book, const void *src, lora_dtype dtype, int64_t n_blocks, int64_t block_size, uint8_t *codes,
                        float *absmax) {
    if (dtype == LORA_F32) return quantize_floats(book, src, n_blocks, block_size, codes, absmax);
    const uint16_t *h = src;
    float x[LORA_NF4_MAX_BLOCK];
    for (int64_t b = 0; b < n_blocks; b++, h += block_size, codes += block_size / 2) {
        for (int64_t i = 0; i < block_size; i++) x[i] = dtype == LORA_BF16 ? lora_bf16_to_f32(h[i]) : lora_f16_to_f32(h[i]);
        if (quantize_floats(book, x, 1, block_size, codes, absmax + b) == 0) return b;
    }
    return n_blocks;
}

static void dequantize(const lora_nf4 *w, int64_t begin, int64_t count, float *dst) {
    int64_t end = begin + count;
    for (int64_t i = begin; i < end;) {
        int64_t block = i / w->block_size, stop = lora_min_i64((block + 1) * w->block_size, end);
        float scale = lora_nf4_absmax(w, block), value[16];
        for (int j = 0; j < 16; j++) value[j] = w->lut[j] * scale;
        if (i & 1) {
            *dst++ = value[w->codes[i >> 1] & 15];
            i++;
        }
        for (; i + 1 < stop; i += 2, dst += 2) {
            uint8_t byte = w->codes[i >> 1];
            dst[0] = value[byte >> 4];
            dst[1] = value[byte & 15];
        }
        if (i < stop) {
            *dst++ = value[w->codes[i >> 1] >> 4];
            i++;
        }
    }
}

void lora_nf4_fill_portable(lora_nf4_kernels *k) {
    k->quantize = quantize;
    k->dequantize = dequantize;
}
