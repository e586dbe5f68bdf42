/* Sums over the rows of something that is formed at every element, in an order fixed by the shape: each block sums some rows of 32
 * columns, and a second kernel adds what the blocks have, in the order of the rows.
 * With M rows a number is in at most 35 + M / 32 additions. */
#ifndef LORA_CUDA_COLUMN_SUMS_CUH
#define LORA_CUDA_COLUMN_SUMS_CUH

#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/weights.h"

enum {
    LORA_SUM_COLUMNS = 32, /* of a block: one warp reads them side by side */
    LORA_SUM_LANES = 8,    /* warps of a block, which take the rows in turn */
    LORA_SUM_ROWS = LORA_GPU_SUM_ROWS,
    LORA_SUM_CHUNKS = LORA_GPU_SUM_CHUNKS,
    LORA_SUM_THREADS = LORA_SUM_COLUMNS * LORA_SUM_LANES,
};

/* F has at(row, col), N numbers to be summed. */
template <class F, int N> struct lora_column_sums {
    F f;
    int64_t rows, cols, rows_per_chunk, chunks, column_blocks;
    float *partial; /* (chunks, N, cols) */
};

template <int N> struct lora_sum_shared {
    float lane[N][LORA_SUM_LANES][LORA_SUM_COLUMNS];
};

template <class F, int N> __global__ void __launch_bounds__(LORA_SUM_THREADS) lora_sum_chunks(lora_column_sums<F, N> s) {
    lora_sum_shared<N> &shared = lora_shared<lora_sum_shared<N>>();
    const int column = threadIdx.x % LORA_SUM_COLUMNS, lane = threadIdx.x / LORA_SUM_COLUMNS;
    const int64_t chunk = blockIdx.x / s.column_blocks, col = (blockIdx.x - chunk * s.column_blocks) * LORA_SUM_COLUMNS + column;
    const int64_t end = lora_min_i64(s.rows, (chunk + 1) * s.rows_per_chunk);
    lora_floats<N> sum = {};
    if (col < s.cols)
        for (int64_t row = chunk * s.rows_per_chunk + lane; row < end; row += LORA_SUM_LANES) {
            lora_floats<N> x = s.f.at(row, col);
            for (int n = 0; n < N; n++) sum.v[n] = sum.v[n] + x.v[n];
        }
    for (int n = 0; n < N; n++) shared.lane[n][lane][column] = sum.v[n];
    __syncthreads();
    if (lane > 0 || col >= s.cols) return;
    for (int n = 0; n < N; n++) {
        for (int i = 1; i < LORA_SUM_LANES; i++) sum.v[n] = sum.v[n] + shared.lane[n][i][column];
        s.partial[(chunk * N + n) * s.cols + col] = sum.v[n];
    }
}

struct lora_chunk_sums {
    const float *partial;
    int64_t cols, chunks, stride; /* stride: between chunks */
    float *out;                   /* added to */
};

namespace { /* one of each file that asks for it */
__global__ void __launch_bounds__(LORA_SUM_THREADS) lora_add_chunks(lora_chunk_sums s) {
    int64_t col = (int64_t)blockIdx.x * LORA_SUM_THREADS + threadIdx.x;
    if (col >= s.cols) return;
    float sum = 0;
    for (int64_t c = 0; c < s.chunks; c++) sum = sum + s.partial[c * s.stride + col];
    s.out[col] = s.out[col] + sum;
}
} // namespace

/* out[n] (cols) += the sums of number n, where it is not NULL. */
template <class F, int N>
static lora_status lora_cuda_add_column_sums(lora_ctx *ctx, const char *name, const F &f, int64_t rows, int64_t cols,
                                             float *const (&out)[N], lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    if (rows == 0 || cols == 0) return LORA_OK;
    const int64_t of_chunk = lora_max_i64(LORA_SUM_ROWS, lora_div_up(rows, LORA_SUM_CHUNKS));
    lora_column_sums<F, N> s = {.f = f,
                                .rows = rows,
                                .cols = cols,
                                .rows_per_chunk = of_chunk,
                                .chunks = lora_div_up(rows, of_chunk),
                                .column_blocks = lora_div_up(cols, LORA_SUM_COLUMNS),
                                .partial = NULL};
    void *partial;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, (size_t)(s.chunks * N * cols) * sizeof(float), &partial, err));
    s.partial = (float *)partial;
    LORA_TRY(lora_cuda_launch_kernel(c, name, lora_sum_chunks<F, N>, dim3((uint32_t)(s.chunks * s.column_blocks)), LORA_SUM_THREADS,
                                     sizeof(lora_sum_shared<N>), s, err));
    for (int n = 0; n < N; n++) {
        if (!out[n]) continue;
        const lora_chunk_sums sums = {.partial = s.partial + n * cols, .cols = cols, .chunks = s.chunks, .stride = N * cols, .out = out[n]};
        LORA_TRY(
            lora_cuda_launch_kernel(c, name, lora_add_chunks, lora_cuda_blocks(cols, LORA_SUM_THREADS), LORA_SUM_THREADS, 0, sums, err));
    }
    return LORA_OK;
}

#endif
