/* Block formats, the oracle: one weight at a time, straight from the definition. */
#include <math.h>

#include "lora_c/format/ggml_blocks.h"
#include "lora_c/kernels/ggml_kernels.h"

static int nibble(const uint8_t *nibbles, int i) { return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4; }

static int high_bit(const uint8_t *high, int i) { return (high[i / 8] >> i % 8 & 1) << 4; }

static float q8_0(const uint8_t *b, int i) { return (float)(int8_t)b[LORA_Q8_0_CODES + i] * lora_ggml_half(b); }

static float q4_0(const uint8_t *b, int i) { return lora_ggml_half(b) * (float)(nibble(b + LORA_Q4_0_NIBBLES, i) - 8); }

static float q4_1(const uint8_t *b, int i) {
    float product = lora_ggml_half(b) * (float)nibble(b + LORA_Q4_1_NIBBLES, i);
    return product + lora_ggml_half(b + 2);
}

static float q5_0(const uint8_t *b, int i) {
    int q = nibble(b + LORA_Q5_0_NIBBLES, i) | high_bit(b + LORA_Q5_0_HIGH, i);
    return lora_ggml_half(b) * (float)(q - 16);
}

static float q5_1(const uint8_t *b, int i) {
    int q = nibble(b + LORA_Q5_1_NIBBLES, i) | high_bit(b + LORA_Q5_1_HIGH, i);
    float product = lora_ggml_half(b) * (float)q;
    return product + lora_ggml_half(b + 2);
}

/* Groups 2 j and 2 j + 1 are the low and the high nibbles of 32 bytes. */
static int k_nibble(const uint8_t *nibbles, int i) {
    int byte = nibbles[i / 64 * 32 + i % 32];
    return i / 32 % 2 ? byte >> 4 : byte & 15;
}

static float k_value(const uint8_t *b, int group, int q) {
    float scale, minimum;
    lora_k_scale_min(b + LORA_K_SCALES, group, &scale, &minimum);
    float product = lora_ggml_half(b) * scale * (float)q, offset = lora_ggml_half(b + 2) * minimum;
    return product - offset;
}

static float q4_k(const uint8_t *b, int i) { return k_value(b, i / 32, k_nibble(b + LORA_Q4_K_NIBBLES, i)); }

static float q5_k(const uint8_t *b, int i) {
    int high = b[LORA_Q5_K_HIGH + i % 32] >> i / 32 & 1;
    return k_value(b, i / 32, k_nibble(b + LORA_Q5_K_NIBBLES, i) | high << 4);
}

static float q6_k(const uint8_t *b, int i) {
    int half = i / 128, group = i / 32 % 4, low = b[64 * half + group % 2 * 32 + i % 32];
    int high = b[LORA_Q6_K_HIGH + 32 * half + i % 32] >> 2 * group & 3, q = (group < 2 ? low & 15 : low >> 4) | high << 4;
    float scale = lora_ggml_half(b + LORA_Q6_K_D) * (float)(int8_t)b[LORA_Q6_K_SCALES + i / 16];
    return scale * (float)(q - 32);
}

#define DECODE(name, values, bytes)                                                                                                        \
    static void decode_##name(const uint8_t *blocks, int64_t n_blocks, float *dst) {                                                       \
        for (int64_t b = 0; b < n_blocks; b++)                                                                                             \
            for (int i = 0; i < (values); i++) dst[b * (values) + i] = name(blocks + b * (bytes), i);                                      \
    }

DECODE(q8_0, LORA_GGML_SMALL, LORA_Q8_0_BYTES)
DECODE(q4_0, LORA_GGML_SMALL, LORA_Q4_0_BYTES)
DECODE(q4_1, LORA_GGML_SMALL, LORA_Q4_1_BYTES)
DECODE(q5_0, LORA_GGML_SMALL, LORA_Q5_0_BYTES)
DECODE(q5_1, LORA_GGML_SMALL, LORA_Q5_1_BYTES)
DECODE(q4_k, LORA_GGML_SUPER, LORA_Q4_K_BYTES)
DECODE(q5_k, LORA_GGML_SUPER, LORA_Q5_K_BYTES)
DECODE(q6_k, LORA_GGML_SUPER, LORA_Q6_K_BYTES)

static int64_t quantize_q8_0(const float *x, int64_t n_blocks, uint8_t *blocks) {
    for (int64_t b = 0; b < n_blocks; b++, x += LORA_GGML_SMALL, blocks += LORA_Q8_0_BYTES) {
        float top = 0;
        for (int i = 0; i < LORA_GGML_SMALL; i++) {
            if (!isfinite(x[i])) return b;
            top = fmaxf(top, fabsf(x[i]));
        }
        float d = top / 127, inverse = 1 / d;
        uint16_t stored = lora_f32_to_f16(d);
        if (stored == 0x7c00) return b;
        memcpy(blocks, &stored, 2);
        for (int i = 0; i < LORA_GGML_SMALL; i++) /* 1 / d overflows for a d that float16 stores as 0 */
            blocks[LORA_Q8_0_CODES + i] = isfinite(inverse) ? (uint8_t)(int8_t)roundf(x[i] * inverse) : 0;
    }
    return n_blocks;
}

void lora_ggml_fill_ref(lora_ggml_kernels *k) {
    *k = (lora_ggml_kernels){
        .decode = {[LORA_GGML_Q8_0] = decode_q8_0,
                   [LORA_GGML_Q4_0] = decode_q4_0,
                   [LORA_GGML_Q4_1] = decode_q4_1,
                   [LORA_GGML_Q5_0] = decode_q5_0,
                   [LORA_GGML_Q5_1] = decode_q5_1,
                   [LORA_GGML_Q4_K] = decode_q4_k,
                   [LORA_GGML_Q5_K] = decode_q5_k,
                   [LORA_GGML_Q6_K] = decode_q6_k},
        .quantize_q8_0 = quantize_q8_0,
    };
}
