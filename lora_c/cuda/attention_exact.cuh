/* Tiles in float32 for 256 threads, 16 by 16: thread (y, x) has rows y + 16 i, and columns x + 16 j of scores or 4 x + 64 j + 0..3 of
 * outputs. Rows of the staging memory are 36 floats apart, so 8 lanes that read 16 bytes each of 8 rows use all 32 banks. */
#ifndef LORA_CUDA_ATTENTION_EXACT_CUH
#define LORA_CUDA_ATTENTION_EXACT_CUH

#include "lora_c/cuda/attention.cuh"

namespace {

enum {
    EXACT_THREADS = 256,
    EXACT_SIDE = 16,
    EXACT_KEYS = 64, /* columns of a tile of scores */
    EXACT_DEEP = 32, /* elements of a product at a time */
    EXACT_PITCH = EXACT_DEEP + 4,
    EXACT_P_PITCH = EXACT_KEYS + 4,
    EXACT_COLS = 64, /* columns of outputs for one float4 of a thread */
};

/* RA: rows of a thread. */
template <int RA> struct exact_shared {
    float stage[2 * EXACT_KEYS * EXACT_PITCH]; /* operands: (16 RA, 36) and (64, 36), or (32, 128) */
    float p[EXACT_SIDE * RA * EXACT_P_PITCH];
};

template <int ROWS, int COLS>
__device__ __forceinline__ void exact_load(float *to, int pitch, const attention_rows &v, int row, int64_t col, int64_t n_cols) {
    for (int i = threadIdx.x; i < ROWS * COLS / 4; i += EXACT_THREADS) {
        int r = i / (COLS / 4), c = i % (COLS / 4) * 4;
        *(float4 *)(to + r * pitch + c) = attention_load4(v, row + r, col + c, n_cols);
    }
}

__device__ __forceinline__ float exact_fma4(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* s = a · b^T over D elements, of 16 RA rows and 64 columns. */
template <int RA>
__device__ inline void exact_products(float (&s)[RA][4], float *stage, const attention_rows &a, const attention_rows &b, int64_t D) {
    int y = threadIdx.x / EXACT_SIDE, x = threadIdx.x % EXACT_SIDE;
    float *sa = stage, *sb = stage + EXACT_SIDE * RA * EXACT_PITCH;
    for (int i = 0; i < RA; i++)
        for (int j = 0; j < 4; j++) s[i][j] = 0;
    for (int64_t d = 0; d < D; d += EXACT_DEEP) {
        __syncthreads(); /* who still reads the stage */
        exact_load<EXACT_SIDE * RA, EXACT_DEEP>(sa, EXACT_PITCH, a, 0, d, D);
        exact_load<EXACT_KEYS, EXACT_DEEP>(sb, EXACT_PITCH, b, 0, d, D);
        __syncthreads();
        LORA_UNROLL_BY(2)
        for (int e = 0; e < EXACT_DEEP; e += 4) {
            float4 left[RA], right[4];
            LORA_UNROLL
            for (int i = 0; i < RA; i++) left[i] = *(const float4 *)(sa + (y + EXACT_SIDE * i) * EXACT_PITCH + e);
            LORA_UNROLL
            for (int j = 0; j < 4; j++) right[j] = *(const float4 *)(sb + (x + EXACT_SIDE * j) * EXACT_PITCH + e);
            LORA_UNROLL
            for (int i = 0; i < RA; i++) LORA_UNROLL
            for (int j = 0; j < 4; j++) s[i][j] = exact_fma4(left[i], right[j], s[i][j]);
        }
    }
}

/* out += p · v: p (16 RA, 64) in shared memory, v 64 rows of which columns col .. col + 64 CC - 1 count. p is written before, by all. */
template <int RA, int CC>
__device__ inline void exact_add_products(float (&out)[RA][4 * CC], const float *p, float *stage, const attention_rows &v, int64_t col,
                                          int64_t n_cols) {
    int y = threadIdx.x / EXACT_SIDE, x = threadIdx.x % EXACT_SIDE;
    const int width = EXACT_COLS * CC;
    for (int k = 0; k < EXACT_KEYS; k += EXACT_DEEP) {
        __syncthreads();
        exact_load<EXACT_DEEP, EXACT_COLS * CC>(stage, width, v, k, col, n_cols);
        __syncthreads();
        LORA_UNROLL_BY(2)
        for (int e = 0; e < EXACT_DEEP; e += 4) {
            float4 weights[RA];
            LORA_UNROLL
            for (int i = 0; i < RA; i++) weights[i] = *(const float4 *)(p + (y + EXACT_SIDE * i) * EXACT_P_PITCH + k + e);
            LORA_UNROLL
            for (int c = 0; c < CC; c++) {
                LORA_UNROLL
                for (int f = 0; f < 4; f++) {
                    float4 value = *(const float4 *)(stage + (e + f) * width + 4 * x + EXACT_COLS * c);
                    LORA_UNROLL
                    for (int i = 0; i < RA; i++) {
                        float w = f == 0 ? weights[i].x : f == 1 ? weights[i].y : f == 2 ? weights[i].z : weights[i].w;
                        float *to = &out[i][4 * c];
                        to[0] = fmaf(w, value.x, to[0]);
                        to[1] = fmaf(w, value.y, to[1]);
                        to[2] = fmaf(w, value.z, to[2]);
                        to[3] = fmaf(w, value.w, to[3]);
                    }
                }
            }
        }
    }
}

/* Over the 16 lanes that share the rows of a thread. */
template <int N> __device__ __forceinline__ void exact_row_sums(float (&v)[N]) { lora_butterflies<8, 4, 2, 1>(v, lora_sum_of()); }
template <int N> __device__ __forceinline__ void exact_row_maxima(float (&v)[N]) { lora_butterflies<8, 4, 2, 1>(v, lora_fmaxf_of()); }

/* A thread's columns of one row of outputs, from col on: of an array whose element at is the row's first. */
template <int CC>
__device__ inline void exact_store_at(const attention_output &o, int64_t first, const float (&out)[4 * CC], int64_t col, int64_t n_cols,
                                      float factor) {
    int x = threadIdx.x % EXACT_SIDE;
    for (int c = 0; c < 4 * CC; c++) {
        int64_t at = col + 4 * x + EXACT_COLS * (c / 4) + c % 4;
        if (at < n_cols) lora_store(o.data, first + at, o.dtype, factor * out[c]);
    }
}
template <int CC> __device__ inline void exact_store(float *row, const float (&out)[4 * CC], int64_t col, int64_t n_cols, float factor) {
    int x = threadIdx.x % EXACT_SIDE;
    for (int c = 0; c < 4 * CC; c++) {
        int64_t at = col + 4 * x + EXACT_COLS * (c / 4) + c % 4;
        if (at < n_cols) row[at] = factor * out[c];
    }
}

} // namespace

#endif
