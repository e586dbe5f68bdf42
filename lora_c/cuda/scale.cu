/* Rows multiplied by a number. */
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"

namespace {

/* m: x, y */
struct scaled {
    enum { WIDTH = 4 };
    float a;
    bool accumulate;
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> x = lora_get<W>(lora_at(m[0], row, col)), before = {};
        if (accumulate) before = lora_get<W>(lora_at(m[1], row, col));
        for (int i = 0; i < W; i++) x.v[i] = accumulate ? before.v[i] + a * x.v[i] : a * x.v[i];
        lora_put<W>(lora_at(m[1], row, col), x);
    }
};

} // namespace

lora_status lora_cuda_scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    const lora_mat m[2] = {x, y};
    return lora_cuda_each(ctx, "scale_rows", scaled{a, accumulate}, m, true, true, err);
}
