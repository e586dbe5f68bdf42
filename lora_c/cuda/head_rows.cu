/* The rows of a loss that have weight: their list, their inputs, their gradients, their sum. */
#include "lora_c/cuda/head.h"
#include "lora_c/cuda/launch.cuh"

namespace {

enum { THREADS = 256, ONE_BLOCK = 1024, WARPS = ONE_BLOCK / LORA_CUDA_WARP };

struct warp_counts {
    int of[WARPS];
};

struct select_args {
    int64_t M;
    const float *loss_weight;
    lora_cuda_head_rows rows;
};

/* One block: tiles of rows one after another, the place of a row is the number of those before it. */
__global__ void __launch_bounds__(ONE_BLOCK) list_rows(select_args s) {
    warp_counts &counts = lora_shared<warp_counts>();
    int warp = threadIdx.x / LORA_CUDA_WARP, lane = threadIdx.x % LORA_CUDA_WARP;
    int64_t found = 0;
    for (int64_t begin = 0; begin < s.M; begin += ONE_BLOCK) {
        int64_t m = begin + threadIdx.x;
        bool has = m < s.M && s.loss_weight[m] != 0.0f;
        uint32_t votes = __ballot_sync(0xffffffffu, has);
        if (lane == 0) counts.of[warp] = __popc(votes);
        __syncthreads();
        int before = 0, all = 0;
        for (int w = 0; w < WARPS; w++) {
            before += w < warp ? counts.of[w] : 0;
            all += counts.of[w];
        }
        if (has) s.rows.index[found + before + __popc(votes & ((1u << lane) - 1))] = m;
        found += all;
        __syncthreads();
    }
    if (threadIdx.x == 0) *s.rows.count = found;
}

struct clear_args {
    const float *loss_weight;
    float *token_loss;
    lora_mat dx;
};

/* A block for each row. */
__global__ void __launch_bounds__(THREADS) clear_rows(clear_args s) {
    int64_t m = blockIdx.x;
    if (s.loss_weight[m] != 0.0f) return;
    if (s.token_loss && threadIdx.x == 0) s.token_loss[m] = 0.0f;
    if (!s.dx.data) return;
    float *row = (float *)s.dx.data + m * s.dx.ld;
    for (int64_t i = threadIdx.x; i < s.dx.cols; i += THREADS) row[i] = 0.0f;
}

struct move_args {
    const int64_t *index;     /* of the first row */
    const float *loss_weight; /* NULL: 1 */
    const float *unscale;     /* of the first row; NULL: 1 */
    const int32_t *exponent;  /* of a power of two; NULL: 2^0 */
    lora_mat some, all;       /* (n, H), and the matrix that index has the rows of */
};

__device__ __forceinline__ float factor_of(const move_args &s, int64_t r) {
    return (s.loss_weight ? s.loss_weight[s.index[r]] : 1.0f) * (s.unscale ? s.unscale[r] : 1.0f) *
           (s.exponent ? ldexpf(1.0f, *s.exponent) : 1.0f);
}

__global__ void __launch_bounds__(THREADS) gather(move_args s) {
    int64_t r = blockIdx.x;
    const float *from = (const float *)s.all.data + s.index[r] * s.all.ld;
    float factor = factor_of(s, r);
    for (int64_t i = threadIdx.x; i < s.some.cols; i += THREADS) lora_store(s.some.data, r * s.some.ld + i, s.some.dtype, factor * from[i]);
}

__global__ void __launch_bounds__(THREADS) scatter(move_args s) {
    int64_t r = blockIdx.x;
    const float *from = (const float *)s.some.data + r * s.some.ld;
    float *to = (float *)s.all.data + s.index[r] * s.all.ld, factor = factor_of(s, r);
    for (int64_t i = threadIdx.x; i < s.some.cols; i += THREADS) to[i] = factor * from[i];
}

struct sum_args {
    int64_t n;
    const int64_t *index;
    const double *loss;
    const float *loss_weight;
    double *sum;
};
struct sum_shared {
    double of_warp[LORA_CUDA_WARP];
};

__global__ void __launch_bounds__(ONE_BLOCK) add_losses(sum_args s) {
    double sum = 0;
    for (int64_t r = threadIdx.x; r < s.n; r += ONE_BLOCK) sum += (double)s.loss_weight[s.index[r]] * s.loss[r];
    sum = lora_block_sum(sum, lora_shared<sum_shared>().of_warp);
    if (threadIdx.x == 0) *s.sum = sum;
}

} // namespace

lora_status lora_cuda_head_select(lora_cuda *c, int64_t M, const lora_loss *loss, lora_mat dx, const lora_cuda_head_rows *rows,
                                  lora_error *err) {
    const select_args list = {M, loss->loss_weight, *rows};
    LORA_TRY(LORA_CUDA_LAUNCH(c, list_rows, dim3(1), ONE_BLOCK, sizeof(warp_counts), list, err));
    const clear_args clear = {loss->loss_weight, loss->token_loss, dx};
    if (M == 0 || (!loss->token_loss && !dx.data)) return LORA_OK;
    return LORA_CUDA_LAUNCH(c, clear_rows, dim3((uint32_t)M), THREADS, 0, clear, err);
}

lora_status lora_cuda_head_gather(lora_cuda *c, lora_mat x, const int32_t *exponent, const lora_cuda_head_rows *rows, int64_t first,
                                  lora_mat x_rows, lora_error *err) {
    const move_args args = {rows->index + first, nullptr, nullptr, exponent, x_rows, x};
    return LORA_CUDA_LAUNCH(c, gather, dim3((uint32_t)x_rows.rows), THREADS, 0, args, err);
}

lora_status lora_cuda_head_gather_weighted(lora_cuda *c, lora_mat x, const lora_loss *loss, const lora_cuda_head_rows *rows, int64_t first,
                                           lora_mat x_rows, lora_error *err) {
    const move_args args = {rows->index + first, loss->loss_weight, rows->unscale + first, nullptr, x_rows, x};
    return LORA_CUDA_LAUNCH(c, gather, dim3((uint32_t)x_rows.rows), THREADS, 0, args, err);
}

lora_status lora_cuda_head_scatter(lora_cuda *c, lora_mat result, const lora_loss *loss, const lora_cuda_head_rows *rows, int64_t first,
                                   lora_mat dx, lora_error *err) {
    const move_args args = {rows->index + first, loss->loss_weight, rows->unscale + first, nullptr, result, dx};
    return LORA_CUDA_LAUNCH(c, scatter, dim3((uint32_t)result.rows), THREADS, 0, args, err);
}

lora_status lora_cuda_head_sum(lora_cuda *c, const lora_loss *loss, const lora_cuda_head_rows *rows, int64_t n, lora_error *err) {
    const sum_args args = {n, rows->index, rows->loss, loss->loss_weight, loss->loss_sum};
    return LORA_CUDA_LAUNCH(c, add_losses, dim3(1), ONE_BLOCK, sizeof(sum_shared), args, err);
}
