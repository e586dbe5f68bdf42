/* The kernel of few.h, for every format of W. A warp makes COLS outputs of all tokens: lane l takes elements 8 l .. 8 l + 7 of every 256 of
 * a row of W, one fused multiply-add each in the order of k; then the lanes are added up. */
#ifndef LORA_CUDA_FEW_CUH
#define LORA_CUDA_FEW_CUH

#include "lora_c/cuda/decode.cuh"
#include "lora_c/cuda/eights.cuh"
#include "lora_c/cuda/few_update.cuh"
#include "lora_c/cuda/nf4_scales.cuh"

enum {
    LORA_FEW_WARPS = 4,
    LORA_FEW_THREADS = LORA_FEW_WARPS * LORA_CUDA_WARP,
    LORA_FEW_STEP = 8 * LORA_CUDA_WARP, /* of k */
};

/* How many outputs a warp makes beside each other: each x that it reads is used for all of them. Of many tokens one, for the registers. */
template <int TOKENS> struct lora_few_shape {
    enum { COLS = TOKENS > 4 ? 1 : 2, PER_BLOCK = COLS * LORA_FEW_WARPS };
};

/* --- formats: eight() gives elements (row, k) .. (row, k + 7), of which n are there; UNROLL of them are under way together --- */

template <int DTYPE> struct lora_few_dense {
    enum { UNROLL = 4 };
    const void *data;
    int64_t ld;
    bool vector;
    __device__ __forceinline__ void prepare() const {}
    __device__ __forceinline__ void eight(int64_t row, int64_t k, int64_t n, float out[8]) const {
        lora_load_eight(data, row * ld + k, (lora_dtype)DTYPE, vector && n >= 8, n, out);
    }
};

struct lora_few_nf4 {
    enum { UNROLL = 4 };
    const uint8_t *codes;
    const float *values;
    lora_nf4_scales scales;
    int64_t cols;
    bool words; /* eight elements are four bytes, at four bytes */
    struct shared {
        float lut[16];
    };
    __device__ __forceinline__ void prepare() const {
        if (threadIdx.x < 16) lora_shared<shared>().lut[threadIdx.x] = values[threadIdx.x];
        __syncthreads();
    }
    __device__ __forceinline__ void eight(int64_t row, int64_t k, int64_t n, float out[8]) const {
        const float *lut = lora_shared<shared>().lut;
        int64_t i = row * cols + k;
        if (words) {
            lora_decode_nf4_word(*(const uint32_t *)(codes + i / 2), lut, scales.at(i), out);
            return;
        }
#pragma unroll
        for (int e = 0; e < 8; e++) out[e] = e < n ? lut[lora_nf4_code(codes, i + e)] * scales.at(i + e) : 0.0f;
    }
};

template <int TYPE> struct lora_few_ggml {
    enum { UNROLL = 1 }; /* decoding is long */
    lora_ggml w;
    __device__ __forceinline__ void prepare() const {}
    __device__ __forceinline__ void eight(int64_t row, int64_t k, int64_t, float out[8]) const { lora_decode_ggml<TYPE>(w, row, k, out); }
};

/* --- sums of one lane --- */

/* x of some tokens, K floats each. */
struct lora_few_input {
    const float *x;
    int64_t ld, K;
    bool vector;
    int tokens;
};

template <int TOKENS, int COLS, class W>
__device__ __forceinline__ void lora_few_sums(const W &w, const lora_few_input &in, int64_t col, int64_t cols, float sum[COLS][TOKENS]) {
    const int lane = threadIdx.x % LORA_CUDA_WARP;
#pragma unroll(TOKENS > 4 ? 1 : W::UNROLL)
    for (int64_t k = lane * 8; k < in.K; k += LORA_FEW_STEP) {
        float a[COLS][8];
#pragma unroll
        for (int c = 0; c < COLS; c++) w.eight(lora_min_i64(col + c, cols - 1), k, in.K - k, a[c]);
#pragma unroll
        for (int m = 0; m < TOKENS; m++) {
            if (m >= in.tokens) continue;
            float x[8];
            lora_load_eight(in.x, m * in.ld + k, LORA_F32, in.vector && in.K - k >= 8, in.K - k, x);
#pragma unroll
            for (int c = 0; c < COLS; c++)
#pragma unroll
                for (int e = 0; e < 8; e++) sum[c][m] = fmaf(x[e], a[c][e], sum[c][m]);
        }
    }
}

/* --- y --- */

template <class W> struct lora_few_args {
    W w;
    lora_few_input in;
    lora_mat y;
    const float *bias;
    bool accumulate;
    lora_cuda_few_update updates[LORA_DECODE_BATCH];
};

template <class W, int TOKENS> __global__ void __launch_bounds__(LORA_FEW_THREADS, 1) lora_few_output(lora_few_args<W> a) {
    enum { COLS = lora_few_shape<TOKENS>::COLS };
    a.w.prepare();
    const int lane = threadIdx.x % LORA_CUDA_WARP, warp = threadIdx.x / LORA_CUDA_WARP;
    const int64_t col = ((int64_t)blockIdx.x * LORA_FEW_WARPS + warp) * COLS;
    if (col >= a.y.cols) return;
    float sum[COLS][TOKENS] = {};
    lora_few_sums<TOKENS, COLS>(a.w, a.in, col, a.y.cols, sum);
#pragma unroll
    for (int c = 0; c < COLS; c++) {
        if (col + c >= a.y.cols) continue;
#pragma unroll
        for (int m = 0; m < TOKENS; m++) {
            if (m >= a.in.tokens) continue;
            float all = lora_warp_sum(lora_few_update(a.updates[m], col + c, sum[c][m]));
            if (lane > 0) continue;
            if (a.bias) all = all + a.bias[col + c];
            float *y = (float *)a.y.data + m * a.y.ld + col + c;
            *y = a.accumulate ? *y + all : all;
        }
    }
}

/* --- how it is started --- */

static inline lora_few_input lora_few_input_of(lora_mat x) {
    return {(const float *)x.data, x.ld, x.cols, lora_cuda_is_aligned(x.data, x.ld, LORA_F32), (int)x.rows};
}

template <class W, int TOKENS> static lora_status lora_few_launch(lora_cuda *c, const lora_few_args<W> &a, size_t shared, lora_error *err) {
    dim3 grid = lora_cuda_blocks(a.y.cols, lora_few_shape<TOKENS>::PER_BLOCK);
    return lora_cuda_launch_kernel(c, "lora_few_output", lora_few_output<W, TOKENS>, grid, LORA_FEW_THREADS, shared, a, err);
}

template <class W> static lora_status lora_few_run(lora_cuda *c, const lora_cuda_few_layer *l, const W &w, size_t shared, lora_error *err) {
    lora_few_args<W> a = {w, lora_few_input_of(l->x), l->y, l->bias, l->accumulate, {}};
    for (int m = 0; m < a.in.tokens; m++) a.updates[m] = l->updates[m];
    if (a.in.tokens <= 1) return lora_few_launch<W, 1>(c, a, shared, err);
    if (a.in.tokens <= 4) return lora_few_launch<W, 4>(c, a, shared, err);
    return lora_few_launch<W, LORA_DECODE_BATCH>(c, a, shared, err);
}

/* few_ggml.cu: blocks with more than one weight. */
lora_status lora_few_blocks(lora_cuda *c, const lora_cuda_few_layer *layer, lora_error *err) LORA_MUST_CHECK;

#endif
