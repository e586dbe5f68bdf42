/* Rows from one place to another, and from one element type to the other. */
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"

namespace {

/* m: the matrix whose rows are counted, from, to */
template <bool ACCUMULATE> struct copied {
    enum { WIDTH = 4 };
    const int64_t *from_rows, *to_rows;
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> x = lora_get<W>(lora_at(m[1], from_rows ? from_rows[row] : row, col));
        float *to = lora_at(m[2], to_rows ? to_rows[row] : row, col);
        if (ACCUMULATE) {
            lora_floats<W> before = lora_get<W>(to);
            for (int i = 0; i < W; i++) x.v[i] = before.v[i] + x.v[i];
        }
        lora_put<W>(to, x);
    }
};

/* m: from, to */
struct narrowed {
    enum { WIDTH = 8 };
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> x = lora_get<W>(lora_at(m[0], row, col));
        uint16_t *to = (uint16_t *)m[1].data + row * m[1].ld + col;
        if (W == 8) {
            uint32_t pairs[4];
            for (int i = 0; i < 4; i++)
                pairs[i] = (uint32_t)lora_f32_to_bf16(x.v[2 * i % W]) | (uint32_t)lora_f32_to_bf16(x.v[(2 * i + 1) % W]) << 16;
            *(uint4 *)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        } else {
            for (int i = 0; i < W; i++) to[i] = lora_f32_to_bf16(x.v[i]);
        }
    }
};

/* m: from, to */
struct widened {
    enum { WIDTH = 8 };
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> x;
        lora_get_16bit<LORA_BF16>((const uint16_t *)m[0].data + row * m[0].ld + col, x);
        lora_put<W>(lora_at(m[1], row, col), x);
    }
};

} // namespace

lora_status lora_cuda_copy_rows(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows,
                                bool accumulate, lora_error *err) {
    const lora_mat m[3] = {from_rows ? to : from, from, to};
    bool flat = !from_rows && !to_rows;
    if (accumulate) return lora_cuda_each(ctx, "copy_rows", copied<true>{from_rows, to_rows}, m, true, flat, err);
    return lora_cuda_each(ctx, "copy_rows", copied<false>{from_rows, to_rows}, m, true, flat, err);
}

lora_status lora_cuda_convert_rows(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err) {
    const lora_mat m[2] = {from, to};
    if (to.dtype == LORA_BF16) return lora_cuda_each(ctx, "convert_rows", narrowed{}, m, true, true, err);
    return lora_cuda_each(ctx, "convert_rows", widened{}, m, true, true, err);
}
