/* A product on the host as cuBLASLt sees it: column-major, float32 sums of k from 0 up, one rounding each. */
#ifndef SHIM_HOST_PRODUCT_H
#define SHIM_HOST_PRODUCT_H

#include "lora_c/base/half.h"
#include "lora_c/cuda/cublaslt.h"

namespace {

struct layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
};
struct product_shape {
    uint64_t m, n, k;
};

static inline float load(const void *data, int type, int64_t i) {
    if (type == LORA_CUDA_R_32F) return static_cast<const float *>(data)[i];
    uint16_t half = static_cast<const uint16_t *>(data)[i];
    return type == LORA_CUDA_R_16BF ? lora_bf16_to_f32(half) : lora_f16_to_f32(half);
}
static inline void store(void *data, int type, int64_t i, float x) {
    if (type == LORA_CUDA_R_32F)
        static_cast<float *>(data)[i] = x;
    else
        static_cast<uint16_t *>(data)[i] = type == LORA_CUDA_R_16BF ? lora_f32_to_bf16(x) : lora_f32_to_f16(x);
}

struct operand {
    const void *data;
    layout of;
    bool transposed;
    float at(uint64_t row, uint64_t col) const {
        return load(data, of.type, (int64_t)(transposed ? col : row) + (int64_t)(transposed ? row : col) * of.ld);
    }
};

static inline void multiply(product_shape s, float alpha, const operand &a, const operand &b, float beta, const operand &c, void *d,
                            const layout &of_d) {
    for (uint64_t j = 0; j < s.n; j++)
        for (uint64_t i = 0; i < s.m; i++) {
            float sum = 0;
            for (uint64_t k = 0; k < s.k; k++) sum += a.at(i, k) * b.at(k, j);
            float value = alpha * sum;
            if (beta != 0) value += beta * c.at(i, j); /* C is not read with a beta of 0 */
            store(d, of_d.type, (int64_t)i + (int64_t)j * of_d.ld, value);
        }
}

} // namespace

#endif
