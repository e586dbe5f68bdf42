/* bfloat16 and float16 to and from float32: round to nearest even, NaN stays (quiet) NaN. */
#ifndef LORA_BASE_HALF_H
#define LORA_BASE_HALF_H

#include <stdint.h>
#include <string.h>

#include "lora_c/base/util.h"

LORA_INLINE uint32_t lora_bits_f32(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

LORA_INLINE float lora_f32_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

LORA_INLINE float lora_bf16_to_f32(uint16_t h) { return lora_f32_bits((uint32_t)h << 16); }

LORA_INLINE uint16_t lora_f32_to_bf16(float x) {
    uint32_t u = lora_bits_f32(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

LORA_INLINE float lora_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
    if (exponent == 31) return lora_f32_bits(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0));
    if (exponent) return lora_f32_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float magnitude = (float)mantissa * 0x1p-24f; /* subnormal or zero: exact */
    return lora_f32_bits(sign | lora_bits_f32(magnitude));
}

LORA_INLINE uint16_t lora_f32_to_f16(float x) {
    uint32_t u = lora_bits_f32(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* rounds to infinity */
    if (magnitude < 0x38800000u) {                                  /* subnormal: let the adder round */
        float shifted = lora_f32_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (lora_bits_f32(shifted) - lora_bits_f32(0.5f)));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

#endif
