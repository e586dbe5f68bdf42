/* The blocks of GGUF files: where the fields lie. All fields are little-endian; d and m are float16.
 *
 *   Q8_0   d, 32 int8                          x = q d
 *   Q4_0   d, 16 bytes of nibbles              x = d (q - 8)         low nibbles are weights 0 .. 15, high ones 16 .. 31
 *   Q4_1   d, m, 16 bytes of nibbles           x = d q + m
 *   Q5_0   d, 32 high bits, 16 bytes           x = d (q - 16)        bit i of the high bits belongs to weight i
 *   Q5_1   d, m, 32 high bits, 16 bytes        x = d q + m
 *   Q4_K   d, m, 12 bytes of scales, 128       x = (d s) q - (m t)   eight groups of 32, a 6-bit s and t each
 *   Q5_K   d, m, 12, 32 high bytes, 128        the same              bit g of high byte i belongs to weight i of group g
 *   Q6_K   128 low, 64 high, 16 int8 s, d      x = (d s) (q - 32)    sixteen groups of 16 */
#ifndef LORA_FORMAT_GGML_BLOCKS_H
#define LORA_FORMAT_GGML_BLOCKS_H

#include <stdint.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/ggml.h"

enum {
    LORA_Q8_0_BYTES = 34,
    LORA_Q8_0_CODES = 2,
    LORA_Q4_0_BYTES = 18,
    LORA_Q4_0_NIBBLES = 2,
    LORA_Q4_1_BYTES = 20,
    LORA_Q4_1_NIBBLES = 4,
    LORA_Q5_0_BYTES = 22,
    LORA_Q5_0_HIGH = 2,
    LORA_Q5_0_NIBBLES = 6,
    LORA_Q5_1_BYTES = 24,
    LORA_Q5_1_HIGH = 4,
    LORA_Q5_1_NIBBLES = 8,
    LORA_Q4_K_BYTES = 144,
    LORA_K_SCALES = 4,
    LORA_Q4_K_NIBBLES = 16,
    LORA_Q5_K_BYTES = 176,
    LORA_Q5_K_HIGH = 16,
    LORA_Q5_K_NIBBLES = 48,
    LORA_Q6_K_BYTES = 210,
    LORA_Q6_K_HIGH = 128,
    LORA_Q6_K_SCALES = 192,
    LORA_Q6_K_D = 208,
    LORA_GGML_SMALL = 32,  /* weights in a block of the types without _K */
    LORA_GGML_SUPER = 256, /* in a block of the types with it */
};

LORA_INLINE uint16_t lora_ggml_u16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return h;
}

LORA_INLINE uint32_t lora_ggml_u32(const uint8_t *p) {
    uint32_t u;
    memcpy(&u, p, 4);
    return u;
}

LORA_INLINE float lora_ggml_half(const uint8_t *p) { return lora_f16_to_f32(lora_ggml_u16(p)); }

/** The 6-bit scale and minimum of group g of Q4_K and Q5_K: the first four groups have theirs in the low six bits of bytes
 *  g and g + 4; the others split them into nibbles of byte g + 4 and the two high bits of bytes g - 4 and g. */
LORA_INLINE void lora_k_scale_min(const uint8_t *scales, int g, float *s, float *m) {
    int scale, minimum;
    if (g < 4) {
        scale = scales[g] & 63;
        minimum = scales[g + 4] & 63;
    } else {
        scale = (scales[g + 4] & 15) | (scales[g - 4] >> 6) << 4;
        minimum = scales[g + 4] >> 4 | (scales[g] >> 6) << 4;
    }
    *s = (float)scale;
    *m = (float)minimum;
}

#endif
