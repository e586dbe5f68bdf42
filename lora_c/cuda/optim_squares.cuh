/* Sums over the tasks of arrays. */
#ifndef LORA_CUDA_OPTIM_SQUARES_CUH
#define LORA_CUDA_OPTIM_SQUARES_CUH

#include "lora_c/cuda/optim.cuh"

enum { LORA_CUDA_SQUARES_ELEMENTS = 16384 /* per task */ };

/* Shared memory of lora_block_sum. */
struct lora_block_partial {
    double of_warp[LORA_CUDA_WARP];
};

/* partial (tasks) = the sums of squares of gradients, or of the arrays themselves. */
lora_status lora_cuda_squares_of_tasks(lora_cuda *c, const lora_cuda_arrays *arrays, bool of_data, double *partial,
                                       lora_error *err) LORA_MUST_CHECK;

/* What member of so many threads has of the sum over the tasks of an array. */
__device__ __forceinline__ double lora_tasks_sum(const lora_cuda_arrays &arrays, int64_t index, const double *partial, int member,
                                                 int members) {
    int64_t first = arrays.list[index].task, end = index + 1 < arrays.n ? arrays.list[index + 1].task : arrays.tasks;
    double sum = 0;
    for (int64_t t = first + member; t < end; t += members) sum += partial[t];
    return sum;
}

#endif
