/* Token embedding: rows of W, decoded on the way out. */
#include "lora_c/cuda/decode.cuh"
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/nf4_scales.cuh"
#include "lora_c/cuda/table.h"

namespace {

/* --- dense weights --- */

/* m: y, W */
template <int DTYPE> struct dense_row {
    enum { WIDTH = DTYPE == LORA_F32 ? 4 : 8 };
    const int32_t *ids;
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        int64_t from = ids[row] * m[1].ld + col;
        lora_floats<W> x;
        if (DTYPE == LORA_F32)
            x = lora_get<W>((const float *)m[1].data + from);
        else
            lora_get_16bit<DTYPE>((const uint16_t *)m[1].data + from, x);
        lora_put<W>(lora_at(m[0], row, col), x);
    }
};

template <int DTYPE>
lora_status dense(lora_ctx *ctx, const int32_t *ids, const void *data, const lora_weight *w, int64_t ld, lora_mat y, lora_error *err) {
    const lora_mat m[2] = {y, {(void *)data, w->rows, w->cols, ld, (lora_dtype)DTYPE}};
    return lora_cuda_each(ctx, "embedding_forward", dense_row<DTYPE>{ids}, m, true, false, err);
}

/* --- quantized weights: eight neighbours per thread --- */

enum { THREADS = 128, EIGHT = 8 };

struct nf4_source {
    const uint8_t *codes;
    const float *lut;
    lora_nf4_scales scales;
    int64_t cols, end; /* of a row; of all elements */
    /* Elements past the row's are those of other rows. */
    __device__ __forceinline__ int64_t before(int64_t row) const { return row * cols & (EIGHT - 1); }
    __device__ __forceinline__ void eight(int64_t row, int64_t k, float out[EIGHT]) const {
        int64_t i = row * cols + k;
        lora_decode_nf4_word(lora_nf4_word(codes, i, end), lut, scales.at(i), out);
    }
};
template <int TYPE> struct ggml_source {
    lora_ggml w;
    __device__ __forceinline__ int64_t before(int64_t) const { return 0; }
    __device__ __forceinline__ void eight(int64_t row, int64_t k, float out[EIGHT]) const { lora_decode_ggml<TYPE>(w, row, k, out); }
};

template <class Source> struct embedding_args {
    Source source;
    const int32_t *ids;
    lora_mat y;
    bool wide;
};

/* A block for each tile of a row. Groups begin at multiples of eight of the flattened weight, so that the first one of a row may begin
 * before it. */
template <class Source> __global__ void __launch_bounds__(THREADS) embedding_rows(embedding_args<Source> a) {
    const int64_t H = a.y.cols;
    for (int64_t m = blockIdx.y; m < a.y.rows; m += gridDim.y) {
        int64_t id = a.ids[m], k = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EIGHT - a.source.before(id);
        if (k >= H) continue;
        lora_floats<EIGHT> x;
        a.source.eight(id, k, x.v);
        float *y = lora_at(a.y, m, k);
        if (a.wide && k >= 0 && k + EIGHT <= H && k % EIGHT == 0)
            lora_put<EIGHT>(y, x);
        else
            for (int i = 0; i < EIGHT; i++)
                if (k + i >= 0 && k + i < H) y[i] = x.v[i];
    }
}

template <class Source> lora_status quantized(lora_ctx *ctx, const int32_t *ids, const Source &source, lora_mat y, lora_error *err) {
    if (y.rows == 0 || y.cols == 0) return LORA_OK;
    const embedding_args<Source> args = {.source = source, .ids = ids, .y = y, .wide = lora_wide(y)};
    dim3 grid((uint32_t)lora_div_up(y.cols + EIGHT - 1, THREADS * EIGHT), (uint32_t)lora_min_i64(y.rows, LORA_CUDA_MOST_Y));
    return lora_cuda_launch_kernel(lora_cuda_of(ctx), "embedding_forward", embedding_rows<Source>, grid, THREADS, 0, args, err);
}

lora_status ggml(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) {
#define QUANTIZED(TYPE)                                                                                                                    \
    case TYPE: return quantized(ctx, ids, ggml_source<TYPE>{w->ggml}, y, err);
    switch (w->ggml.type) {
    case LORA_GGML_F16: return dense<LORA_F16>(ctx, ids, w->ggml.blocks, w, w->cols, y, err);
    case LORA_GGML_BF16: return dense<LORA_BF16>(ctx, ids, w->ggml.blocks, w, w->cols, y, err); LORA_GGML_BLOCK_TYPES(QUANTIZED)
    default: return lora_fail(err, LORA_EINVAL, "weight: expected a known type of blocks, got %d", (int)w->ggml.type);
    }
#undef QUANTIZED
}

} // namespace

lora_status lora_cuda_embedding_forward(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) {
    switch (w->kind) {
    case LORA_WEIGHT_F32: return dense<LORA_F32>(ctx, ids, w->dense.data, w, w->dense.ld, y, err);
    case LORA_WEIGHT_BF16: return dense<LORA_BF16>(ctx, ids, w->dense.data, w, w->dense.ld, y, err);
    case LORA_WEIGHT_NF4: {
        const lora_nf4 &q = w->nf4;
        return quantized(ctx, ids, nf4_source{q.codes, q.lut, lora_nf4_scales_of(q), q.cols, q.rows * q.cols}, y, err);
    }
    case LORA_WEIGHT_GGML: return ggml(ctx, ids, w, y, err);
    }
    return lora_fail(err, LORA_EINVAL, "weight: expected a known kind, got %d", (int)w->kind);
}
