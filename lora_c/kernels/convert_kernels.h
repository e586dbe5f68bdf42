/* Conversion of rows to and from 16 and 8 bits. No slot needs more alignment than the element type; each reads and writes its n
 * elements, and their scales, only. Every rung gives the same bits. */
#ifndef LORA_CONVERT_KERNELS_H
#define LORA_CONVERT_KERNELS_H

#include <stdint.h>

#include "lora_c/isa.h"

typedef struct lora_convert_kernels {
    /* Widening is exact; narrowing rounds once, to nearest even. NaN stays quiet NaN. dst may not overlap src. */
    void (*bf16_to_f32)(int64_t n, const uint16_t *src, float *dst);
    void (*f16_to_f32)(int64_t n, const uint16_t *src, float *dst);
    void (*f32_to_bf16)(int64_t n, const float *src, uint16_t *dst);
    void (*f32_to_f16)(int64_t n, const float *src, uint16_t *dst);

    /* Blocks of 64 (the last one may be shorter) with a scale each, by int8_rounding_tmpl.h: scale = largest magnitude / 127, rounded to
     * nearest; dst = src * scale the other way. A block below 1e-36 is zero; one with a value that is not finite has zeros and the scale
     * NaN. Buffers may not overlap. */
    void (*f32_to_int8)(int64_t n, const float *src, int8_t *dst, float *scales);
    void (*int8_to_f32)(int64_t n, const int8_t *src, const float *scales, float *dst);
} lora_convert_kernels;

/** Fills every slot for the rung. */
void lora_convert_kernels_init(lora_convert_kernels *k, lora_isa isa);

/* Each rung fills what it has; implemented in ref/, x86/ and arm/. The loops of the reference are plain C that a compiler vectorises
 * on any machine. */
void lora_convert_fill_ref(lora_convert_kernels *k);
void lora_convert_fill_avx2(lora_convert_kernels *k);
void lora_convert_fill_neon(lora_convert_kernels *k);

#endif
