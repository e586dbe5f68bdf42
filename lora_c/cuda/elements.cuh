/* Operations that make every element of a matrix from the elements at its place in others: the walk over them, 16 bytes of every
 * matrix at a time where all of them are aligned for that. */
#ifndef LORA_CUDA_ELEMENTS_CUH
#define LORA_CUDA_ELEMENTS_CUH

#include "lora_c/cuda/launch.cuh"

enum { LORA_ELEMENT_THREADS = 256, LORA_MOST_BLOCKS = 0x7fffffff };

/* Blocks for n pieces of work that blocks take in turn (i = blockIdx.x; i < n; i += gridDim.x). */
static inline dim3 lora_cuda_grid(int64_t n) { return dim3((uint32_t)lora_max_i64(1, lora_min_i64(n, LORA_MOST_BLOCKS))); }

/* --- a few neighbours --- */

template <int W> struct lora_floats {
    float v[W];
};

/* W numbers from p on; of W a multiple of 4, p is 16-byte aligned. */
template <int W> __device__ __forceinline__ lora_floats<W> lora_get(const float *p) {
    lora_floats<W> x;
    if (W % 4) {
        for (int i = 0; i < W; i++) x.v[i] = p[i];
    } else {
        for (int i = 0; i + 3 < W; i += 4) {
            float4 four = *(const float4 *)(p + i);
            x.v[i] = four.x;
            x.v[i + 1] = four.y;
            x.v[i + 2] = four.z;
            x.v[i + 3] = four.w;
        }
    }
    return x;
}
template <int W> __device__ __forceinline__ void lora_put(float *p, const lora_floats<W> &x) {
    if (W % 4) {
        for (int i = 0; i < W; i++) p[i] = x.v[i];
    } else {
        for (int i = 0; i + 3 < W; i += 4) *(float4 *)(p + i) = make_float4(x.v[i], x.v[i + 1], x.v[i + 2], x.v[i + 3]);
    }
}
/* W numbers from element i of an array of any type on, and back, rounded; of W = 4 that element is at 16 bytes, of 16 bits at 8. */
template <int W> __device__ __forceinline__ lora_floats<W> lora_get_at(const void *data, int64_t i, lora_dtype dtype) {
    if (dtype == LORA_F32) return lora_get<W>((const float *)data + i);
    lora_floats<W> x;
    if (W == 4 && dtype == LORA_BF16) {
        uint2 words = *(const uint2 *)((const uint16_t *)data + i);
        const uint32_t pairs[2] = {words.x, words.y};
        for (int k = 0; k < W; k++) x.v[k] = lora_bf16_to_f32((uint16_t)(pairs[k / 2 % 2] >> k % 2 * 16));
    } else {
        for (int k = 0; k < W; k++) x.v[k] = lora_load(data, i + k, dtype);
    }
    return x;
}
template <int W> __device__ __forceinline__ void lora_put_at(void *data, int64_t i, lora_dtype dtype, const lora_floats<W> &x) {
    if (dtype == LORA_F32) {
        lora_put<W>((float *)data + i, x);
    } else if (W == 4 && dtype == LORA_BF16) {
        uint32_t pairs[2];
        for (int k = 0; k < 2; k++)
            pairs[k] = (uint32_t)lora_f32_to_bf16(x.v[2 * k % W]) | (uint32_t)lora_f32_to_bf16(x.v[(2 * k + 1) % W]) << 16;
        *(uint2 *)((uint16_t *)data + i) = make_uint2(pairs[0], pairs[1]);
    } else {
        for (int k = 0; k < W; k++) lora_store(data, i + k, dtype, x.v[k]);
    }
}
/* W numbers of bfloat16 or float16 from p on; where they are eight, p is 16-byte aligned. */
template <int DTYPE, int W> __device__ __forceinline__ void lora_get_16bit(const uint16_t *p, lora_floats<W> &x) {
    if (W == 8) {
        uint4 words = *(const uint4 *)p;
        const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
        for (int i = 0; i < W; i++) {
            uint16_t h = (uint16_t)(pairs[i / 2] >> i % 2 * 16);
            x.v[i] = DTYPE == LORA_BF16 ? lora_bf16_to_f32(h) : lora_f16_to_f32(h);
        }
    } else {
        for (int i = 0; i < W; i++) x.v[i] = lora_load(p, i, (lora_dtype)DTYPE);
    }
}

/* Of float32. */
__device__ __forceinline__ float *lora_at(const lora_mat &m, int64_t row, int64_t col) { return (float *)m.data + row * m.ld + col; }
template <int W> __device__ __forceinline__ lora_floats<W> lora_get_at(const lora_mat &m, int64_t row, int64_t col) {
    return lora_get_at<W>(m.data, row * m.ld + col, m.dtype);
}
template <int W> __device__ __forceinline__ void lora_put_at(const lora_mat &m, int64_t row, int64_t col, const lora_floats<W> &x) {
    lora_put_at<W>(m.data, row * m.ld + col, m.dtype, x);
}
/* True where 16 bytes at a time can be read from any column that is a multiple of them. */
static inline bool lora_aligned(const void *data) { return (uintptr_t)data % 16 == 0; }
static inline bool lora_wide(lora_mat m) {
    return !m.data || (lora_aligned(m.data) && (m.rows <= 1 || m.ld * (int64_t)lora_dtype_bytes(m.dtype) % 16 == 0));
}

/* --- the walk --- */

/* F has what the operation needs besides its N matrices, the number WIDTH of elements that it makes at a time and
 * at<W>(matrices, row, col) for W = WIDTH and W = 1. */
template <class F, int N> struct lora_elements {
    F f;
    lora_mat m[N];
    int64_t rows, cols, tiles_per_row; /* a tile: what a block does at once of one row */
    bool wide;
};

/* tile / tiles_per_row; most are small, and divided so at a fifth of the cost. */
__device__ __forceinline__ int64_t lora_row_of(int64_t tile, int64_t tiles_per_row) {
    if ((tile | tiles_per_row) >> 31 == 0) return (uint32_t)tile / (uint32_t)tiles_per_row;
    return tile / tiles_per_row;
}

template <class F, int N> __global__ void __launch_bounds__(LORA_ELEMENT_THREADS, 1) lora_elementwise(lora_elements<F, N> e) {
    const int64_t W = F::WIDTH, tiles = e.rows * e.tiles_per_row;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int64_t row = lora_row_of(tile, e.tiles_per_row);
        int64_t col = ((tile - row * e.tiles_per_row) * LORA_ELEMENT_THREADS + threadIdx.x) * W;
        if (e.wide && col + W <= e.cols)
            e.f.template at<(int)W>(e.m, row, col);
        else
#pragma unroll 1
            for (int64_t k = col; k < lora_min_i64(col + W, e.cols); k++) e.f.template at<1>(e.m, row, k);
    }
}

/* The shape is that of m[0]. wide: what f reads besides is aligned, too. flat: columns mean nothing, so that rows may be taken
 * together where nothing lies between them. */
template <class F, int N>
static lora_status lora_cuda_each(lora_ctx *ctx, const char *name, const F &f, const lora_mat (&m)[N], bool wide, bool flat,
                                  lora_error *err) {
    lora_elements<F, N> e = {.f = f, .m = {}, .rows = m[0].rows, .cols = m[0].cols, .tiles_per_row = 0, .wide = wide};
    if (e.rows == 0 || e.cols == 0) return LORA_OK;
    for (int i = 0; i < N; i++) {
        e.m[i] = m[i];
        e.wide = e.wide && lora_wide(m[i]);
        flat = flat && (!m[i].data || m[i].ld == e.cols);
    }
    if (flat) {
        e.cols *= e.rows;
        e.rows = 1;
    }
    e.tiles_per_row = lora_div_up(e.cols, (int64_t)LORA_ELEMENT_THREADS * F::WIDTH);
    return lora_cuda_launch_kernel(lora_cuda_of(ctx), name, lora_elementwise<F, N>, lora_cuda_grid(e.rows * e.tiles_per_row),
                                   LORA_ELEMENT_THREADS, 0, e, err);
}

#endif
