/* A table of 16 floats as four byte planes, so that one tbl looks up 16 bytes. */
#ifndef LORA_TMPL_PLANES_NEON_H
#define LORA_TMPL_PLANES_NEON_H

#include <arm_neon.h>

#include "lora_c/base/half.h"

typedef struct lora_planes {
    uint8x16_t plane[4]; /* byte b of the 16 values, lowest first */
} lora_planes;

LORA_INLINE lora_planes lora_load_planes(const float *lut) {
    lora_planes t;
    for (int b = 0; b < 4; b++) {
        uint8_t bytes[16];
        for (int i = 0; i < 16; i++) bytes[i] = (uint8_t)(lora_bits_f32(lut[i]) >> 8 * b);
        t.plane[b] = vld1q_u8(bytes);
    }
    return t;
}

/* 16 codes, a byte each, to four vectors of values in order. */
LORA_INLINE void lora_look_up(const lora_planes *t, uint8x16_t codes, float32x4_t *w) {
    uint8x16_t b0 = vqtbl1q_u8(t->plane[0], codes), b1 = vqtbl1q_u8(t->plane[1], codes);
    uint8x16_t b2 = vqtbl1q_u8(t->plane[2], codes), b3 = vqtbl1q_u8(t->plane[3], codes);
    uint16x8_t low0 = vreinterpretq_u16_u8(vzip1q_u8(b0, b1)), low1 = vreinterpretq_u16_u8(vzip2q_u8(b0, b1));
    uint16x8_t high0 = vreinterpretq_u16_u8(vzip1q_u8(b2, b3)), high1 = vreinterpretq_u16_u8(vzip2q_u8(b2, b3));
    w[0] = vreinterpretq_f32_u16(vzip1q_u16(low0, high0));
    w[1] = vreinterpretq_f32_u16(vzip2q_u16(low0, high0));
    w[2] = vreinterpretq_f32_u16(vzip1q_u16(low1, high1));
    w[3] = vreinterpretq_f32_u16(vzip2q_u16(low1, high1));
}

#endif
