/* Tiles with bfloat16 operands for 4 warps: a warp has 16 rows of a tile, a thread the rows g and g + 8 of them and of every 8 columns the
 * elements 2 t and 2 t + 1, with g = lane / 4 and t = lane % 4 (PTX ISA, mma.m16n8k16). D is the width of the operands, that of a head
 * or more, in which case zeros fill it.
 * Rows in shared memory are D + 8 elements apart, an odd multiple of 16 bytes: the 8 rows that ldmatrix reads at a time use all banks. */
#ifndef LORA_CUDA_ATTENTION_MMA_CUH
#define LORA_CUDA_ATTENTION_MMA_CUH

#include "lora_c/cuda/attention.cuh"
#include "lora_c/cuda/ptx.cuh"

namespace {

enum { MMA_THREADS = 128, MMA_WARP_ROWS = 16, MMA_ROWS = 64, MMA_STAGE = 32 };

static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

/* A matrix in bfloat16: (n_kv_heads, tokens * group, D), so that the rows of a tile lie behind each other. */
struct packed_matrix {
    const uint16_t *data;
};

/* The first row of a segment in one. group: 1 of keys. */
template <int D>
__device__ __forceinline__ const uint16_t *packed_rows(const packed_matrix &m, const attention_place &at, int64_t first, int64_t tokens,
                                                       int64_t group) {
    return m.data + (at.kv_head * tokens + at.first - first) * group * D;
}

__device__ __forceinline__ int mma_lane() { return threadIdx.x % LORA_CUDA_WARP; }
__device__ __forceinline__ int mma_first_row() { return threadIdx.x / LORA_CUDA_WARP * MMA_WARP_ROWS; }

/* Begins to copy rows, zeros from row n on. */
template <int D, int ROWS> __device__ __forceinline__ void mma_copy(uint16_t *to, const uint16_t *from, int64_t n) {
    LORA_UNROLL
    for (int i = 0; i < ROWS * D / 8 / MMA_THREADS; i++) {
        int at = i * MMA_THREADS + threadIdx.x, r = at / (D / 8), c = at % (D / 8) * 8;
        lora_ptx_copy16(to + r * (D + 8) + c, from + (r < n ? r * D + c : 0), r < n);
    }
}

/* The same from float32. */
template <int D, int ROWS> __device__ __forceinline__ void mma_convert(uint16_t *to, const attention_rows &v, int64_t n_cols) {
    LORA_UNROLL_BY(4)
    for (int i = 0; i < ROWS * D / 4 / MMA_THREADS; i++) {
        int at = i * MMA_THREADS + threadIdx.x, r = at / (D / 4), c = at % (D / 4) * 4;
        float4 x = attention_load4(v, r, c, n_cols);
        *(uint2 *)(to + r * (D + 8) + c) = make_uint2(lora_ptx_bf16x2(x.x, x.y), lora_ptx_bf16x2(x.z, x.w));
    }
}

template <int N> __device__ __forceinline__ void mma_clear(float (&s)[N][4]) {
    LORA_UNROLL
    for (int i = 0; i < N; i++)
        for (int e = 0; e < 4; e++) s[i][e] = 0;
}

/* s = a · b^T: a the warp's 16 rows, b 8 N rows. */
template <int D, int N> __device__ __forceinline__ void mma_products(float (&s)[N][4], const uint16_t *a, const uint16_t *b) {
    int lane = mma_lane();
    mma_clear(s);
    a += lane % 16 * (D + 8) + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * (D + 8) + lane / 8 % 2 * 8;
    LORA_UNROLL
    for (int k = 0; k < D; k += 16) {
        uint32_t left[4];
        lora_ptx_load_matrices(left, a + k);
        LORA_UNROLL
        for (int j = 0; j < N; j += 2) {
            uint32_t right[4];
            lora_ptx_load_matrices(right, b + j * 8 * (D + 8) + k);
            lora_ptx_mma_bf16(s[j], left, right[0], right[1]);
            lora_ptx_mma_bf16(s[j + 1], left, right[2], right[3]);
        }
    }
}

/* out += p · v: p (16, 8 N), which is rounded, and 8 COLS columns of 8 N rows of v. */
template <int D, int N, int COLS>
__device__ __forceinline__ void mma_add_products(float (&out)[COLS][4], const float (&p)[N][4], const uint16_t *v) {
    int lane = mma_lane();
    v += lane % 16 * (D + 8) + lane / 16 * 8;
    LORA_UNROLL
    for (int k = 0; k < N; k += 2) { /* fragments of sums are those of operands, two by two */
        const uint32_t left[4] = {lora_ptx_bf16x2(p[k][0], p[k][1]), lora_ptx_bf16x2(p[k][2], p[k][3]),
                                  lora_ptx_bf16x2(p[k + 1][0], p[k + 1][1]), lora_ptx_bf16x2(p[k + 1][2], p[k + 1][3])};
        LORA_UNROLL
        for (int c = 0; c < COLS; c += 2) {
            uint32_t right[4];
            lora_ptx_load_matrices_transposed(right, v + k * 8 * (D + 8) + c * 8);
            lora_ptx_mma_bf16(out[c], left, right[0], right[1]);
            lora_ptx_mma_bf16(out[c + 1], left, right[2], right[3]);
        }
    }
}

/* The score in units of ln 2 from a product of q and k; *slope: the derivative of the score by scale * product. */
__device__ __forceinline__ float mma_score(const attention_problem &p, float product, float *slope) {
    *slope = 1;
    if (p.softcap == 0) return product * (p.scale * LOG2_E);
    return attention_score(p, product, slope) * LOG2_E;
}

__device__ __forceinline__ bool mma_sees(const attention_problem &p, int query, int key) {
    return key <= query && (p.window == 0 || query - key < p.window);
}

/* Over the 4 lanes that share a row. */
__device__ __forceinline__ float mma_row_max(float v) { return lora_butterfly<1, 2>(v, lora_fmaxf_of()); }
__device__ __forceinline__ float mma_row_sum(float v) { return lora_butterfly<1, 2>(v, lora_sum_of()); }

/* A thread's elements of the warp's row `half` of its two, of columns col on, times a factor. */
template <int COLS>
__device__ __forceinline__ void mma_store(const attention_rows &v, const float (&out)[COLS][4], int half, int64_t col, int64_t n_cols,
                                          float factor) {
    int r = mma_first_row() + mma_lane() / 4 + 8 * half;
    if (r >= v.n) return;
    float *row = (float *)v.data + attention_row_at(v, r);
    LORA_UNROLL
    for (int c = 0; c < COLS; c++) {
        int64_t at = col + 8 * c + 2 * (mma_lane() % 4);
        float x = factor * out[c][2 * half], y = factor * out[c][2 * half + 1];
        if (v.aligned && at < n_cols) {
            *(float2 *)(row + at) = make_float2(x, y);
            continue;
        }
        if (at < n_cols) row[at] = x;
        if (at + 1 < n_cols) row[at + 1] = y;
    }
}

} // namespace

#endif
