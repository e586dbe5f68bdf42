/* NF4 kernels, the oracle: one element at a time, straight from the definition. */
#include "lora_c/base/half.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/nf4_kernels.h"

static unsigned nearest_code(const lora_codebook *book, float y) {
    unsigned interval = 0;
    for (int j = 0; j < 15; j++) interval += y > book->threshold[j];
    return book->code[interval];
}

static float element(const void *src, lora_dtype dtype, int64_t i) {
    if (dtype == LORA_F32) return ((const float *)src)[i];
    uint16_t h = ((const uint16_t *)src)[i];
    return dtype == LORA_BF16 ? lora_bf16_to_f32(h) : lora_f16_to_f32(h);
}

static int64_t quantize(const lora_codebook *book, const void *src, lora_dtype dtype, int64_t n_blocks, int64_t block_size, uint8_t *codes,
                        float *absmax) {
    for (int64_t b = 0, first = 0; b < n_blocks; b++, first += block_size, codes += block_size / 2) {
        uint32_t top = 0; /* bit patterns of magnitudes order like the magnitudes, with NaN above infinity */
        for (int64_t i = 0; i < block_size; i++) {
            uint32_t magnitude = lora_bits_f32(element(src, dtype, first + i)) & 0x7fffffffu;
            if (magnitude > top) top = magnitude;
        }
        if (top >= 0x7f800000u) return b;
        absmax[b] = lora_f32_bits(top);
        float inverse = 1.0f / (absmax[b] > LORA_NF4_MIN_ABSMAX ? absmax[b] : LORA_NF4_MIN_ABSMAX);
        for (int64_t i = 0; i < block_size; i += 2) {
            float high = element(src, dtype, first + i) * inverse, low = element(src, dtype, first + i + 1) * inverse;
            codes[i / 2] = (uint8_t)(nearest_code(book, high) << 4 | nearest_code(book, low));
        }
    }
    return n_blocks;
}

static void dequantize(const lora_nf4 *w, int64_t begin, int64_t count, float *dst) {
    for (int64_t i = 0; i < count; i++)
        dst[i] = w->lut[lora_nf4_code(w->codes, begin + i)] * lora_nf4_absmax(w, (begin + i) / w->block_size);
}

static void decode_absmax(const lora_nf4 *w, int64_t first_block, int64_t n, float *dst) {
    for (int64_t i = 0; i < n; i++) dst[i] = lora_nf4_absmax(w, first_block + i);
}

void lora_nf4_fill_ref(lora_nf4_kernels *k) {
    *k = (lora_nf4_kernels){.quantize = quantize, .dequantize = dequantize, .decode_absmax = decode_absmax};
}
