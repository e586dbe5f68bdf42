/* Columns times a vector, as IA3 has them, with the gradient of that vector; the soft cap and its gradient. */
#include "lora_c/cuda/column_sums.cuh"
#include "lora_c/cuda/table.h"

namespace {

/* --- columns times l --- */

/* m: x, y */
struct times_columns {
    enum { WIDTH = 4 };
    const float *l;
    bool accumulate;
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> a = lora_get<W>(l + col), x = lora_get<W>(lora_at(m[0], row, col));
        for (int i = 0; i < W; i++) x.v[i] = a.v[i] * x.v[i];
        if (accumulate) {
            lora_floats<W> before = lora_get<W>(lora_at(m[1], row, col));
            for (int i = 0; i < W; i++) x.v[i] = before.v[i] + x.v[i];
        }
        lora_put<W>(lora_at(m[1], row, col), x);
    }
};

lora_status multiply(lora_ctx *ctx, const char *name, const float *l, lora_mat x, lora_mat y, bool accumulate, lora_error *err) {
    const lora_mat m[2] = {x, y};
    return lora_cuda_each(ctx, name, times_columns{l, accumulate}, m, lora_aligned(l), false, err);
}

struct products {
    lora_mat a, b;
    __device__ __forceinline__ lora_floats<1> at(int64_t row, int64_t col) const {
        return {{*lora_at(a, row, col) * *lora_at(b, row, col)}};
    }
};

/* --- soft cap --- */

/* m: x */
struct capped {
    enum { WIDTH = 4 };
    float cap;
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        float *p = lora_at(m[0], row, col);
        lora_floats<W> x = lora_get<W>(p);
        for (int i = 0; i < W; i++) x.v[i] = cap * tanhf(x.v[i] / cap);
        lora_put<W>(p, x);
    }
};

/* m: dy, y; the slope of the cap is 1 - tanh^2 */
struct capped_backward {
    enum { WIDTH = 4 };
    float cap;
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        float *p = lora_at(m[0], row, col);
        lora_floats<W> d = lora_get<W>(p), y = lora_get<W>(lora_at(m[1], row, col));
        for (int i = 0; i < W; i++) {
            float t = y.v[i] / cap;
            d.v[i] = d.v[i] * (1.0f - t * t);
        }
        lora_put<W>(p, d);
    }
};

} // namespace

lora_status lora_cuda_scale_columns(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err) {
    return multiply(ctx, "scale_columns", l, x, y, false, err);
}

lora_status lora_cuda_scale_columns_backward(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx,
                                             float *dl, lora_error *err) {
    float *const sums[1] = {dl};
    if (dl) /* before dx, which may be dy */
        LORA_TRY(lora_cuda_add_column_sums(ctx, "scale_columns_backward", products{dy, x}, dy.rows, dy.cols, sums, err));
    return dx.data ? multiply(ctx, "scale_columns_backward", l, dy, dx, accumulate_dx, err) : LORA_OK;
}

lora_status lora_cuda_softcap_rows(lora_ctx *ctx, float softcap, lora_mat x, lora_error *err) {
    const lora_mat m[1] = {x};
    return lora_cuda_each(ctx, "softcap_rows", capped{softcap}, m, true, true, err);
}

lora_status lora_cuda_softcap_backward(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err) {
    const lora_mat m[2] = {dy, y};
    return lora_cuda_each(ctx, "softcap_backward", capped_backward{softcap}, m, true, true, err);
}
