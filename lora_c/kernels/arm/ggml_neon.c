/* Block formats, NEON. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "lora_c/format/ggml_blocks.h"
#include "lora_c/kernels/ggml_kernels.h"

typedef struct group {
    uint8x16_t q[2];
} group;

LORA_INLINE float half(const uint8_t *p) {
    __fp16 h;
    memcpy(&h, p, sizeof h);
    return (float)h;
}

LORA_INLINE group load_codes(const uint8_t *p) { return (group){{vld1q_u8(p), vld1q_u8(p + 16)}}; }

LORA_INLINE group low(group g) {
    const uint8x16_t nibble = vdupq_n_u8(15);
    return (group){{vandq_u8(g.q[0], nibble), vandq_u8(g.q[1], nibble)}};
}

LORA_INLINE group high(group g) { return (group){{vshrq_n_u8(g.q[0], 4), vshrq_n_u8(g.q[1], 4)}}; }

LORA_INLINE group low_high(const uint8_t *p) {
    uint8x16_t bytes = vld1q_u8(p);
    return (group){{vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8(bytes, 4)}};
}

/* Byte i gets the byte of bits that holds bit i; then the one bit is tested. */
LORA_INLINE group with_bits(group g, uint32_t bits) {
    const uint8x16_t one = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull)), sixteen = vdupq_n_u8(16);
    for (int i = 0; i < 2; i++) {
        uint8x16_t all = vcombine_u8(vdup_n_u8((uint8_t)(bits >> 16 * i)), vdup_n_u8((uint8_t)(bits >> (16 * i + 8))));
        g.q[i] = vorrq_u8(g.q[i], vandq_u8(vtstq_u8(all, one), sixteen));
    }
    return g;
}

/* The bits of mask of h, shifted right by shift and then left by 4. */
LORA_INLINE group with_moved(group g, group h, int shift, uint8_t mask) {
    for (int i = 0; i < 2; i++) {
        uint8x16_t moved = vshlq_n_u8(vshlq_u8(h.q[i], vdupq_n_s8((int8_t)-shift)), 4);
        g.q[i] = vorrq_u8(g.q[i], vandq_u8(moved, vdupq_n_u8(mask)));
    }
    return g;
}

LORA_INLINE group with_bit(group g, group h, int shift) { return with_moved(g, h, shift, 16); }
LORA_INLINE group with_two_bits(group g, group h, int shift) { return with_moved(g, h, shift, 48); }

LORA_INLINE group minus(group g, int n) {
    const uint8x16_t by = vdupq_n_u8((uint8_t)n);
    return (group){{vsubq_u8(g.q[0], by), vsubq_u8(g.q[1], by)}};
}

/* 16 signed bytes as floats. */
LORA_INLINE void widen(uint8x16_t q, float32x4_t out[4]) {
    int8x16_t s = vreinterpretq_s8_u8(q);
    int16x8_t first = vmovl_s8(vget_low_s8(s)), second = vmovl_high_s8(s);
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(first)));
    out[1] = vcvtq_f32_s32(vmovl_high_s16(first));
    out[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(second)));
    out[3] = vcvtq_f32_s32(vmovl_high_s16(second));
}

LORA_INLINE void put(group g, float d0, float d1, float *dst) {
    for (int i = 0; i < 2; i++) {
        float32x4_t q[4], d = vdupq_n_f32(i ? d1 : d0);
        widen(g.q[i], q);
        for (int j = 0; j < 4; j++) vst1q_f32(dst + 16 * i + 4 * j, vmulq_f32(d, q[j]));
    }
}

LORA_INLINE void put_sum(group g, float d, float m, float *dst) {
    for (int i = 0; i < 2; i++) {
        float32x4_t q[4];
        widen(g.q[i], q);
        for (int j = 0; j < 4; j++) vst1q_f32(dst + 16 * i + 4 * j, vaddq_f32(vmulq_f32(vdupq_n_f32(d), q[j]), vdupq_n_f32(m)));
    }
}

#include "lora_c/kernels/tmpl/ggml_tmpl.h"

void lora_ggml_fill_neon(lora_ggml_kernels *k) { lora_ggml_fill_decoders(k); }
#endif
