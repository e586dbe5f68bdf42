/* The gradient of the embedding: dW[ids[m]] += dy[m] in the order of m, without atomics. A block belongs to a row of dy; the one whose
 * row is the first with its id adds all rows of that id, one after another. */
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = 256, WARPS = THREADS / LORA_CUDA_WARP };

struct gradient_args {
    const int32_t *ids;
    lora_mat dy, dW;
};

/* Which of the THREADS rows from first on (below end) have this id: a bit each, in shared memory. All threads call. */
__device__ __forceinline__ const uint32_t *rows_with(const gradient_args &a, int32_t id, int64_t first, int64_t end) {
    uint32_t *found = lora_shared<uint32_t[WARPS]>();
    int64_t m = first + threadIdx.x;
    uint32_t bits = __ballot_sync(0xffffffffu, m < end && a.ids[m] == id);
    __syncthreads(); /* what was found before has been read */
    if (threadIdx.x % LORA_CUDA_WARP == 0) found[threadIdx.x / LORA_CUDA_WARP] = bits;
    __syncthreads();
    return found;
}

__device__ __forceinline__ bool is_first(const gradient_args &a, int32_t id, int64_t row) {
    for (int64_t m = 0; m < row; m += THREADS) {
        const uint32_t *found = rows_with(a, id, m, row);
        for (int w = 0; w < WARPS; w++)
            if (found[w]) return false;
    }
    return true;
}

/* Columns stay with their thread, so that it reads what it wrote for the row before. */
template <int W> __device__ __forceinline__ void add_row(const lora_mat &dy, int64_t m, const lora_mat &dW, int64_t id) {
    for (int64_t col = threadIdx.x * W; col < dy.cols; col += THREADS * W) {
        float *to = lora_at(dW, id, col);
        lora_floats<W> d = lora_get<W>(lora_at(dy, m, col)), sum = lora_get<W>(to);
        for (int i = 0; i < W; i++) sum.v[i] = sum.v[i] + d.v[i];
        lora_put<W>(to, sum);
    }
}

template <int W> __global__ void __launch_bounds__(THREADS, 1) embedding_gradient(gradient_args a) {
    for (int64_t row = blockIdx.x; row < a.dy.rows; row += gridDim.x) {
        int32_t id = a.ids[row];
        if (!is_first(a, id, row)) continue;
        for (int64_t m = row; m < a.dy.rows; m += THREADS) {
            const uint32_t *found = rows_with(a, id, m, a.dy.rows);
            for (int w = 0; w < WARPS; w++)
                for (uint32_t bits = found[w]; bits; bits &= bits - 1)
                    add_row<W>(a.dy, m + w * LORA_CUDA_WARP + __ffs((int)bits) - 1, a.dW, id);
        }
    }
}

} // namespace

lora_status lora_cuda_embedding_backward(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err) {
    const gradient_args args = {.ids = ids, .dy = dy, .dW = dW};
    const bool wide = lora_wide(dy) && lora_wide(dW) && dy.cols % 4 == 0;
    if (dy.rows == 0 || dy.cols == 0) return LORA_OK;
    return lora_cuda_launch_kernel(lora_cuda_of(ctx), "embedding_backward", wide ? embedding_gradient<4> : embedding_gradient<1>,
                                   lora_cuda_grid(dy.rows), THREADS, WARPS * sizeof(uint32_t), args, err);
}
