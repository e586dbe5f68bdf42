/* A product on the host as cuBLASLt sees it: column-major, float32 sums of k from 0 up, one rounding each. */
#ifndef SHIM_HOST_PRODUCT_H
#define SHIM_HOST_PRODUCT_H

#include <cmath>
#include <vector>

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

constexpr uint64_t PANEL = 64, COLUMNS = 4; /* of D at a time: their sums stay in registers */

/* sums[j][i] += panel[k][i] * columns[k][j], fused as a GPU does. */
static inline void add_products(uint64_t k, const float *panel, const float *columns, float (*sums)[PANEL]) {
    for (uint64_t l = 0; l < k; l++)
        for (uint64_t j = 0; j < COLUMNS; j++)
            for (uint64_t i = 0; i < PANEL; i++) sums[j][i] = fmaf(panel[l * PANEL + i], columns[l * COLUMNS + j], sums[j][i]);
}

/* A as panels of rows and B as groups of columns, widened with zeros whose sums nobody looks at: each is read once. */
static inline void multiply(product_shape s, float alpha, const operand &a, const operand &b, float beta, const operand &c, void *d,
                            const layout &of_d) {
    uint64_t groups = (s.n + COLUMNS - 1) / COLUMNS;
    std::vector<float> panel(s.k * PANEL), columns(groups * s.k * COLUMNS);
    for (uint64_t j = 0; j < s.n; j++)
        for (uint64_t l = 0; l < s.k; l++) columns[(j / COLUMNS * s.k + l) * COLUMNS + j % COLUMNS] = b.at(l, j);
    for (uint64_t top = 0; top < s.m; top += PANEL) {
        uint64_t rows = s.m - top < PANEL ? s.m - top : PANEL;
        for (uint64_t l = 0; l < s.k; l++)
            for (uint64_t i = 0; i < rows; i++) panel[l * PANEL + i] = a.at(top + i, l);
        for (uint64_t left = 0; left < s.n; left += COLUMNS) {
            float sums[COLUMNS][PANEL] = {};
            add_products(s.k, panel.data(), &columns[left * s.k], sums);
            for (uint64_t j = left; j < s.n && j < left + COLUMNS; j++)
                for (uint64_t i = 0; i < rows; i++) {
                    float value = alpha * sums[j - left][i];
                    if (beta != 0) value += beta * c.at(top + i, j); /* C is not read with a beta of 0 */
                    store(d, of_d.type, (int64_t)(top + i) + (int64_t)j * of_d.ld, value);
                }
        }
    }
}

} // namespace

#endif
