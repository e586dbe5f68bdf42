/* The squared norm of gradients: sums of tasks, of arrays, of all arrays, each in an order fixed by the sizes. */
#include "lora_c/cuda/optim_squares.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = LORA_CUDA_OPTIM_THREADS, SUM_THREADS = 1024 };

struct squares_args {
    lora_cuda_arrays arrays;
    bool of_data;
    double *partial;
};

/* The sum of x[i]^2 over the elements of a thread: fours at a time, whatever their alignment. */
__device__ __forceinline__ double squares_of_thread(const float *x, int count) {
    bool vector = lora_is_vector(x);
    double sum = 0;
    for (int i = 4 * (int)threadIdx.x; i < count; i += 4 * THREADS) {
        float e[4];
        lora_load4(x + i, count - i, vector, e);
        for (int k = 0; k < 4; k++) sum += (double)e[k] * (double)e[k];
    }
    return sum;
}

__global__ void __launch_bounds__(THREADS) sum_tasks(squares_args s) {
    lora_optim_task t = lora_optim_task_of(s.arrays);
    if (!t.array) return;
    const float *x = s.of_data ? t.array->data : t.array->grad;
    double sum = lora_block_sum(squares_of_thread(x + t.first, t.count), lora_shared<lora_block_partial>().of_warp);
    if (threadIdx.x == 0) s.partial[blockIdx.x] = sum;
}

struct total_args {
    lora_cuda_arrays arrays;
    const double *partial;
    double *of_array, *sum;
};

/* One block: a warp for each array, then one thread for the arrays in their order. */
__global__ void __launch_bounds__(SUM_THREADS) sum_arrays(total_args s) {
    int warp = threadIdx.x / LORA_CUDA_WARP, lane = threadIdx.x % LORA_CUDA_WARP;
    for (int64_t a = warp; a < s.arrays.n; a += SUM_THREADS / LORA_CUDA_WARP) {
        double sum = lora_warp_sum(lora_tasks_sum(s.arrays, a, s.partial, lane, LORA_CUDA_WARP));
        if (lane == 0) s.of_array[a] = sum;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    double total = 0;
    for (int64_t a = 0; a < s.arrays.n; a++) total += s.of_array[a];
    *s.sum = total;
}

} // namespace

lora_status lora_cuda_squares_of_tasks(lora_cuda *c, const lora_cuda_arrays *arrays, bool of_data, double *partial, lora_error *err) {
    const squares_args args = {*arrays, of_data, partial};
    return LORA_CUDA_LAUNCH(c, sum_tasks, lora_cuda_blocks(arrays->tasks, 1), THREADS, sizeof(lora_block_partial), args, err);
}

lora_status lora_cuda_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    total_args args = {{}, nullptr, nullptr, sum};
    lora_cuda_arrays_want want = {LORA_CUDA_SQUARES_ELEMENTS, nullptr, nullptr, nullptr, 0};
    LORA_TRY(lora_cuda_arrays_send(c, n_params, params, &want, &args.arrays, err));
    void *scratch;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, (size_t)(args.arrays.tasks + n_params + 1) * sizeof(double), &scratch, err));
    double *partial = (double *)scratch;
    args.partial = partial;
    args.of_array = partial + args.arrays.tasks;
    LORA_TRY(lora_cuda_squares_of_tasks(c, &args.arrays, false, partial, err));
    return LORA_CUDA_LAUNCH(c, sum_arrays, dim3(1), SUM_THREADS, 0, args, err);
}
