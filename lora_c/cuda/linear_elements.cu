/* What linear layers do to every element: dropout, bias, the scales of DoRA; and sums over the tokens. */
#include "lora_c/cuda/linear_elements.h"

#include "lora_c/base/philox.h"
#include "lora_c/cuda/column_sums.cuh"

namespace {

/* --- dropout --- */

/* m = {out, in}. Element index is word index % 4 of counter index / 4. */
struct drop_elements {
    enum { WIDTH = 4 };
    lora_cuda_mask mask;
    int64_t cols;
    float keep_scale;
    bool accumulate;

    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        uint64_t index = (uint64_t)(row * cols + col);
        uint32_t words[4];
        lora_philox4x32(mask.seed, mask.stream, index / 4, words);
        lora_floats<W> value = lora_get_at<W>(m[1], row, col), before = {};
        if (accumulate) before = lora_get_at<W>(m[0], row, col);
        for (int i = 0; i < W; i++) {
            uint32_t word = words[i];
            if (W == 1) word = index % 4 == 0 ? words[0] : index % 4 == 1 ? words[1] : index % 4 == 2 ? words[2] : words[3];
            float scale = lora_philox_to_uniform(word) < mask.rate ? 0.0f : keep_scale;
            value.v[i] = value.v[i] * scale;
            if (accumulate) value.v[i] = before.v[i] + value.v[i];
        }
        lora_put_at<W>(m[0], row, col, value);
    }
};

/* --- columns: out (+)= gain in + bias --- */

struct affine_elements {
    enum { WIDTH = 4 };
    lora_cuda_columns columns;
    bool accumulate;

    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> in = lora_get_at<W>(m[1], row, col), out = {};
        if (accumulate) out = lora_get<W>(lora_at(m[0], row, col));
        for (int i = 0; i < W; i++) {
            float value = in.v[i];
            if (columns.magnitude) { /* a row of zeros of W + s B A has no direction to scale: it stays zero */
                float norm = columns.norm[col + i];
                value = (norm > 0 ? columns.magnitude[col + i] / norm : 0.0f) * value;
            }
            if (columns.bias) value = value + columns.bias[col + i];
            out.v[i] = accumulate ? out.v[i] + value : value;
        }
        lora_put<W>(lora_at(m[0], row, col), out);
    }
};

/* --- out (+)= in - minus --- */

struct difference_elements {
    enum { WIDTH = 4 };
    bool accumulate;

    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> value = lora_get_at<W>(m[1], row, col);
        if (m[2].data) {
            lora_floats<W> minus = lora_get<W>(lora_at(m[2], row, col));
            for (int i = 0; i < W; i++) value.v[i] = value.v[i] - minus.v[i];
        }
        if (accumulate) {
            lora_floats<W> before = lora_get<W>(lora_at(m[0], row, col));
            for (int i = 0; i < W; i++) value.v[i] = before.v[i] + value.v[i];
        }
        lora_put<W>(lora_at(m[0], row, col), value);
    }
};

/* --- sums over the tokens --- */

struct bias_terms {
    lora_mat dy;
    __device__ __forceinline__ lora_floats<1> at(int64_t row, int64_t col) const { return lora_get_at<1>(dy, row, col); }
};

enum { SUM_COLUMNS = 32, SUM_LANES = 8, SUM_THREADS = SUM_COLUMNS * SUM_LANES };

struct magnitude_args {
    lora_mat dy, z;
    const float *norm;
    float *dmagnitude;
};
struct magnitude_shared {
    double lane[SUM_LANES][SUM_COLUMNS];
};

/* In float64: dy z of one column often cancel. */
__global__ void __launch_bounds__(SUM_THREADS) sum_magnitudes(magnitude_args a) {
    magnitude_shared &s = lora_shared<magnitude_shared>();
    int column = threadIdx.x % SUM_COLUMNS, lane = threadIdx.x / SUM_COLUMNS;
    int64_t col = (int64_t)blockIdx.x * SUM_COLUMNS + column;
    double sum = 0;
    if (col < a.dy.cols)
        for (int64_t row = lane; row < a.dy.rows; row += SUM_LANES)
            sum += (double)lora_load(a.dy.data, row * a.dy.ld + col, a.dy.dtype) * (double)*lora_at(a.z, row, col);
    s.lane[lane][column] = sum;
    __syncthreads();
    if (lane > 0 || col >= a.dy.cols || !(a.norm[col] > 0)) return;
    for (int i = 1; i < SUM_LANES; i++) sum += s.lane[i][column];
    a.dmagnitude[col] = a.dmagnitude[col] + (float)(sum / (double)a.norm[col]);
}

} // namespace

lora_status lora_cuda_drop(lora_ctx *ctx, lora_cuda_mask mask, lora_mat in, lora_mat out, bool accumulate, lora_error *err) {
    const drop_elements f = {mask, in.cols, 1.0f / (1.0f - mask.rate), accumulate};
    const lora_mat m[] = {out, in};
    return lora_cuda_each(ctx, "lora_cuda_drop", f, m, in.cols % 4 == 0, false, err);
}

lora_status lora_cuda_affine(lora_ctx *ctx, lora_cuda_columns columns, lora_mat in, lora_mat out, bool accumulate, lora_error *err) {
    const affine_elements f = {columns, accumulate};
    const lora_mat m[] = {out, in};
    return lora_cuda_each(ctx, "lora_cuda_affine", f, m, true, false, err);
}

lora_status lora_cuda_difference(lora_ctx *ctx, lora_mat in, lora_mat minus, lora_mat out, bool accumulate, lora_error *err) {
    const difference_elements f = {accumulate};
    const lora_mat m[] = {out, in, minus};
    return lora_cuda_each(ctx, "lora_cuda_difference", f, m, true, true, err);
}

lora_status lora_cuda_add_rows(lora_ctx *ctx, lora_mat dy, float *sum, lora_error *err) {
    const bias_terms f = {dy};
    float *const out[1] = {sum};
    return lora_cuda_add_column_sums<bias_terms, 1>(ctx, "lora_cuda_add_rows", f, dy.rows, dy.cols, out, err);
}

lora_status lora_cuda_add_magnitudes(lora_ctx *ctx, lora_mat dy, lora_mat z, const float *norm, float *dmagnitude, lora_error *err) {
    const magnitude_args a = {dy, z, norm, dmagnitude};
    return LORA_CUDA_LAUNCH(lora_cuda_of(ctx), sum_magnitudes, lora_cuda_blocks(dy.cols, SUM_COLUMNS), SUM_THREADS,
                            sizeof(magnitude_shared), a, err);
}
