#include "lora_c/cuda/adapter_rows.h"

#include "lora_c/cuda/launch.cuh"

namespace {

/* Of a block: every element of A is read for all of its rows. */
enum { ROWS = 8, THREADS = 256 };

struct rows_shared {
    double partial[LORA_CUDA_WARP];
};

/* (B A)[first .. first + ROWS - 1, k]: R products, added from r = 0 on. */
__device__ __forceinline__ void low_rank_column(const lora_cuda_adapter_rows &a, int64_t row, int64_t n, int64_t k, float sum[ROWS]) {
    const float *B = a.B + (a.first + row) * a.rank;
#pragma unroll
    for (int j = 0; j < ROWS; j++) sum[j] = 0;
    for (int64_t r = 0; r < a.rank; r++) {
        float value = a.A[r * a.base.cols + k];
#pragma unroll
        for (int j = 0; j < ROWS; j++)
            if (j < n) sum[j] = fmaf(B[j * a.rank + r], value, sum[j]);
    }
}

__device__ __forceinline__ float *base_at(const lora_cuda_adapter_rows &a, int64_t row, int64_t k) {
    return (float *)a.base.data + row * a.base.ld + k;
}

__global__ void __launch_bounds__(THREADS) merge_rows(lora_cuda_adapter_rows a) {
    const int64_t row = (int64_t)blockIdx.x * ROWS, n = lora_min_i64(ROWS, a.base.rows - row);
    float gain[ROWS];
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        gain[j] = 1;
        if (!a.magnitude || j >= n) continue;
        float norm = a.norm[a.first + row + j];
        gain[j] = norm > 0 ? a.magnitude[a.first + row + j] / norm : 0.0f;
    }
    for (int64_t k = threadIdx.x; k < a.base.cols; k += THREADS) {
        float sum[ROWS];
        low_rank_column(a, row, n, k, sum);
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            if (j >= n) continue;
            float *to = base_at(a, row + j, k);
            float merged = *to + a.scale * sum[j];
            *to = a.magnitude ? gain[j] * merged : merged;
        }
    }
}

__global__ void __launch_bounds__(THREADS) norm_rows(lora_cuda_adapter_rows a) {
    rows_shared &s = lora_shared<rows_shared>();
    const int64_t row = (int64_t)blockIdx.x * ROWS, n = lora_min_i64(ROWS, a.base.rows - row);
    double squares[ROWS] = {0};
    for (int64_t k = threadIdx.x; k < a.base.cols; k += THREADS) {
        float sum[ROWS];
        low_rank_column(a, row, n, k, sum);
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            if (j >= n) continue;
            float merged = *base_at(a, row + j, k) + a.scale * sum[j];
            squares[j] += (double)merged * (double)merged;
        }
    }
#pragma unroll
    for (int j = 0; j < ROWS; j++) {
        double all = lora_block_sum(squares[j], s.partial);
        if (threadIdx.x == 0 && j < n) a.norm[a.first + row + j] = (float)sqrt(all);
        __syncthreads();
    }
}

} // namespace

lora_status lora_cuda_merge_rows(lora_cuda *c, const lora_cuda_adapter_rows *rows, lora_error *err) {
    if (rows->base.rows == 0) return LORA_OK;
    return LORA_CUDA_LAUNCH(c, merge_rows, lora_cuda_blocks(rows->base.rows, ROWS), THREADS, 0, *rows, err);
}

lora_status lora_cuda_norm_rows(lora_cuda *c, const lora_cuda_adapter_rows *rows, lora_error *err) {
    if (rows->base.rows == 0) return LORA_OK;
    return LORA_CUDA_LAUNCH(c, norm_rows, lora_cuda_blocks(rows->base.rows, ROWS), THREADS, sizeof(rows_shared), *rows, err);
}
