/* Eight neighbours at a time between memory and registers. */
#ifndef LORA_CUDA_EIGHTS_CUH
#define LORA_CUDA_EIGHTS_CUH

#include "lora_c/cuda/launch.cuh"
#include "lora_c/cuda/ptx.cuh"

enum { LORA_CUDA_EIGHT = 8, LORA_CUDA_VECTOR = 16 /* bytes */ };

/* Whether every run of eight elements that begins at a multiple of eight columns lies at 16 bytes. */
static inline bool lora_cuda_is_aligned(const void *data, int64_t ld, lora_dtype dtype) {
    return (uintptr_t)data % LORA_CUDA_VECTOR == 0 && ld * (int64_t)lora_dtype_bytes(dtype) % LORA_CUDA_VECTOR == 0;
}

/* The first n of out, from element i on; the others are 0. vector: all eight are there, and aligned. */
__device__ __forceinline__ void lora_load_eight(const void *data, int64_t i, lora_dtype dtype, bool vector, int64_t n, float out[8]) {
    if (vector && dtype == LORA_F32) {
        const float4 *p = (const float4 *)((const float *)data + i);
        float4 a = p[0], b = p[1];
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    } else if (vector) {
        uint4 v = *(const uint4 *)((const uint16_t *)data + i);
        const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int e = 0; e < 8; e++) {
            uint16_t half = (uint16_t)(pairs[e / 2] >> e % 2 * 16);
            out[e] = dtype == LORA_BF16 ? lora_bf16_to_f32(half) : lora_f16_to_f32(half);
        }
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++) out[e] = e < n ? lora_load(data, i + e, dtype) : 0.0f;
    }
}

/* Both rounded to nearest even; low in bits 0-15. */
__device__ __forceinline__ uint32_t lora_pair_of(float low, float high, lora_dtype dtype) {
    if (dtype == LORA_F16) return lora_ptx_f16x2(low, high);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    return (uint32_t)lora_f32_to_bf16(high) << 16 | lora_f32_to_bf16(low);
#else
    return lora_ptx_bf16x2(low, high);
#endif
}

__device__ __forceinline__ void lora_store_eight(void *data, int64_t i, lora_dtype dtype, bool vector, int64_t n, const float in[8]) {
    if (vector && dtype == LORA_F32) {
        float4 *p = (float4 *)((float *)data + i);
        __stwb(p, make_float4(in[0], in[1], in[2], in[3])); /* an assignment may become four stores */
        __stwb(p + 1, make_float4(in[4], in[5], in[6], in[7]));
    } else if (vector) {
        uint32_t pairs[4];
#pragma unroll
        for (int e = 0; e < 8; e += 2) pairs[e / 2] = lora_pair_of(in[e], in[e + 1], dtype);
        __stwb((uint4 *)((uint16_t *)data + i), make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
    } else {
#pragma unroll
        for (int e = 0; e < 8; e++)
            if (e < n) lora_store(data, i + e, dtype, in[e]);
    }
}

#endif
