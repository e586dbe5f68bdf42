/* Conversions, one element at a time. */
#include "lora_c/base/half.h"
#include "lora_c/kernels/convert_kernels.h"
#include "lora_c/kernels/tmpl/int8_rounding_tmpl.h"
#include "lora_c/types.h"

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

static void f32_to_int8(int64_t n, const float *src, int8_t *dst, float *scales) {
    for (int64_t begin = 0; begin < n; begin += LORA_INT8_BLOCK) {
        int64_t here = lora_min_i64(LORA_INT8_BLOCK, n - begin);
        lora_int8_scale q = lora_int8_scale_for(lora_int8_largest(src + begin, 1, here));
        for (int64_t i = begin; i < begin + here; i++) dst[i] = (int8_t)lora_to_int8(src[i] * q.inverse);
        *scales++ = q.scale;
    }
}

static void int8_to_f32(int64_t n, const int8_t *src, const float *scales, float *dst) {
    for (int64_t i = 0; i < n; i++) dst[i] = (float)src[i] * scales[i / LORA_INT8_BLOCK];
}

void lora_convert_fill_ref(lora_convert_kernels *k) {
    *k = (lora_convert_kernels){.bf16_to_f32 = bf16_to_f32,
                                .f16_to_f32 = f16_to_f32,
                                .f32_to_bf16 = f32_to_bf16,
                                .f32_to_f16 = f32_to_f16,
                                .f32_to_int8 = f32_to_int8,
                                .int8_to_f32 = int8_to_f32};
}
