/* A product on the host as cuBLASLt sees it: column-major. In which order a GPU's library adds is not ours to know, so that sums are those
 * that tell our own kernels' errors best: of float32 numbers in float64, rounded once; of 16-bit ones in float32, fused, k from 0 up. */
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

constexpr uint64_t COLUMNS = 4; /* of D at a time, beside PANEL rows: their sums stay in registers */

static inline float plus_product(float sum, float a, float b) { return fmaf(a, b, sum); }
static inline double plus_product(double sum, double a, double b) { return sum + a * b; }

/* sums[j][i] += panel[k][i] * columns[k][j]. */
template <class Sum, uint64_t PANEL> static inline void add_products(uint64_t k, const Sum *panel, const Sum *columns, Sum (*sums)[PANEL]) {
    for (uint64_t l = 0; l < k; l++)
        for (uint64_t j = 0; j < COLUMNS; j++)
            for (uint64_t i = 0; i < PANEL; i++) sums[j][i] = plus_product(sums[j][i], panel[l * PANEL + i], columns[l * COLUMNS + j]);
}

/* A as panels of rows and B as groups of columns, widened with zeros whose sums nobody looks at: each is read once. */
template <class Sum>
static inline void multiply_in(product_shape s, float alpha, const operand &a, const operand &b, float beta, const operand &c, void *d,
                               const layout &of_d) {
    constexpr uint64_t PANEL = 256 / sizeof(Sum);
    uint64_t groups = (s.n + COLUMNS - 1) / COLUMNS;
    std::vector<Sum> panel(s.k * PANEL), columns(groups * s.k * COLUMNS);
    for (uint64_t j = 0; j < s.n; j++)
        for (uint64_t l = 0; l < s.k; l++) columns[(j / COLUMNS * s.k + l) * COLUMNS + j % COLUMNS] = (Sum)b.at(l, j);
    for (uint64_t top = 0; top < s.m; top += PANEL) {
        uint64_t rows = s.m - top < PANEL ? s.m - top : PANEL;
        for (uint64_t l = 0; l < s.k; l++)
            for (uint64_t i = 0; i < rows; i++) panel[l * PANEL + i] = (Sum)a.at(top + i, l);
        for (uint64_t left = 0; left < s.n; left += COLUMNS) {
            Sum sums[COLUMNS][PANEL] = {};
            add_products<Sum, PANEL>(s.k, panel.data(), &columns[left * s.k], sums);
            for (uint64_t j = left; j < s.n && j < left + COLUMNS; j++)
                for (uint64_t i = 0; i < rows; i++) {
                    float value = alpha * (float)sums[j - left][i];
                    if (beta != 0) value += beta * c.at(top + i, j); /* C is not read with a beta of 0 */
                    store(d, of_d.type, (int64_t)(top + i) + (int64_t)j * of_d.ld, value);
                }
        }
    }
}

static inline void multiply(product_shape s, float alpha, const operand &a, const operand &b, float beta, const operand &c, void *d,
                            const layout &of_d) {
    const bool wide = a.of.type == LORA_CUDA_R_32F && b.of.type == LORA_CUDA_R_32F;
    (wide ? multiply_in<double> : multiply_in<float>)(s, alpha, a, b, beta, c, d, of_d);
}

} // namespace

#endif
