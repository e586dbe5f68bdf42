/* Conversions, one element at a time. */
#include "lora_c/base/half.h"
#include "lora_c/kernels/convert_kernels.h"

static void bf16_to_f32(int64_t n, const uint16_t *src, float *dst) {
    for (int64_t i = 0; i < n; i++) dst[i] = lora_bf16_to_f32(src[i]);
}

static void f16_to_f32(int64_t n, const uint16_t *src, float *dst) {
    for (int64_t i = 0; i < n; i++) dst[i] = lora_f16_to_f32(src[i]);
}

static void f32_to_bf16(int64_t n, const float *src, uint16_t *dst) {
    for (int64_t i = 0; i < n; i++) dst[i] = lora_f32_to_bf16(src[i]);
}

static void f32_to_f16(int64_t n, const float *src, uint16_t *dst) {
    for (int64_t i = 0; i < n; i++) dst[i] = lora_f32_to_f16(src[i]);
}

void lora_convert_fill_ref(lora_convert_kernels *k) {
    *k = (lora_convert_kernels){.bf16_to_f32 = bf16_to_f32, .f16_to_f32 = f16_to_f32, .f32_to_bf16 = f32_to_bf16, .f32_to_f16 = f32_to_f16};
}
