/* The scales of a 4-bit matrix by shifts where block sizes are powers of two: a division of 64 bits takes longer than all the rest of eight
 * elements. */
#ifndef LORA_CUDA_NF4_SCALES_CUH
#define LORA_CUDA_NF4_SCALES_CUH

#include "lora_c/cuda/launch.cuh"
#include "lora_c/format/nf4_layout.h"

struct lora_nf4_size {
    int64_t size;
    int shift; /* -1: no power of two */
    __device__ __forceinline__ int64_t block_of(int64_t i) const { return shift >= 0 ? i >> shift : i / size; }
};

static inline lora_nf4_size lora_nf4_size_of(int64_t size) {
    return {size, (size & (size - 1)) == 0 ? __builtin_ctzll((uint64_t)size) : -1};
}

struct lora_nf4_scales {
    const float *absmax, *nested_absmax, *nested_map;
    const uint8_t *codes;
    float offset;
    lora_nf4_size size, nested_size;

    /* Of element i of the flattened matrix; the bits are those of lora_nf4_absmax. */
    __device__ __forceinline__ float at(int64_t i) const {
        int64_t block = size.block_of(i);
        if (absmax) return absmax[block];
        float product = nested_map[codes[block]] * nested_absmax[nested_size.block_of(block)];
        return product + offset;
    }

    __host__ bool can_shift() const { return size.shift >= 0 && nested_size.shift >= 0; }

    /* The same where can_shift. */
    __device__ __forceinline__ float at_shifted(int64_t i) const {
        int64_t block = i >> size.shift;
        if (absmax) return absmax[block];
        float product = nested_map[codes[block]] * nested_absmax[block >> nested_size.shift];
        return product + offset;
    }
};

static inline lora_nf4_scales lora_nf4_scales_of(const lora_nf4 &w) {
    lora_nf4_scales s = {w.absmax, w.nested_absmax, w.nested_map, w.absmax_codes, w.nested_offset, lora_nf4_size_of(w.block_size), {1, 0}};
    if (!w.absmax) s.nested_size = lora_nf4_size_of(w.nested_block_size);
    return s;
}

#endif
