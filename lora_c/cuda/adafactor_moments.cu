/* Adafactor's second moments: means of squares along rows and down columns, and the factors that they make. An array that is no matrix is
 * one row: its second moments are those of its columns. */
#include "lora_c/cuda/adafactor.cuh"

namespace {

enum {
    THREADS = LORA_CUDA_OPTIM_THREADS,
    WARPS = THREADS / LORA_CUDA_WARP,
    WIDE = 1024, /* columns from which a whole block adds a row */
    GROUPS = 32, /* of rows, in a band of columns */
    BAND_THREADS = GROUPS * LORA_CUDA_BAND,
};

__device__ __forceinline__ float blend(float old, double beta2, double mean) { return (float)(beta2 * old + (1.0 - beta2) * mean); }

__device__ __forceinline__ double row_sum(const lora_adafactor_args &s, const float *g, int64_t cols, int member, int members) {
    double sum = 0;
    for (int64_t i = member; i < cols; i += members) lora_formulas::add_shifted_squares(1, g + i, (float)s.grad_scale, s.eps1, &sum);
    return sum;
}

__global__ void __launch_bounds__(THREADS) add_rows(lora_adafactor_args s) {
    if (blockIdx.x >= s.arrays.row_tasks) return;
    const lora_cuda_array *a = lora_array_of<&lora_cuda_array::row_task>(s.arrays, blockIdx.x);
    int64_t per_task = lora_cuda_rows_per_task(s.arrays.per_task, a->cols), first = (blockIdx.x - a->row_task) * per_task;
    int64_t end = lora_min_i64(first + per_task, a->n / a->cols);
    bool wide = a->cols >= WIDE;
    int warp = threadIdx.x / LORA_CUDA_WARP, lane = threadIdx.x % LORA_CUDA_WARP;
    for (int64_t r = wide ? first : first + warp; r < end; r += wide ? 1 : WARPS) {
        const float *g = a->grad + r * a->cols;
        double sum;
        if (wide) {
            sum = lora_block_sum(row_sum(s, g, a->cols, threadIdx.x, THREADS), lora_shared<lora_block_partial>().of_warp);
            __syncthreads();
        } else {
            sum = lora_warp_sum(row_sum(s, g, a->cols, lane, LORA_CUDA_WARP));
        }
        float *row = s.state.row + a->row + r;
        if (wide ? threadIdx.x == 0 : lane == 0) *row = blend(*row, s.beta2, sum / (double)a->cols);
    }
}

struct band_sums {
    double of[GROUPS][LORA_CUDA_BAND];
};

/* A thread adds every GROUPS-th row of a column, then one of them the groups in their order. */
__global__ void __launch_bounds__(BAND_THREADS) add_columns(lora_adafactor_args s) {
    if (blockIdx.x >= s.arrays.bands) return;
    const lora_cuda_array *a = lora_array_of<&lora_cuda_array::band>(s.arrays, blockIdx.x);
    band_sums &sums = lora_shared<band_sums>();
    int column = threadIdx.x % LORA_CUDA_BAND, group = threadIdx.x / LORA_CUDA_BAND;
    int64_t width = a->cols ? a->cols : a->n, rows = a->n / width, j = (blockIdx.x - a->band) * LORA_CUDA_BAND + column;
    double sum = 0;
    for (int64_t r = group; r < rows && j < width; r += GROUPS)
        lora_formulas::add_shifted_squares(1, a->grad + r * width + j, (float)s.grad_scale, s.eps1, &sum);
    sums.of[group][column] = sum;
    __syncthreads();
    if (group > 0 || j >= width) return;
    double total = 0;
    for (int k = 0; k < GROUPS; k++) total += sums.of[k][column];
    int64_t at = a->col + j;
    float col = blend(s.state.col[at], s.beta2, total / (double)rows);
    s.state.col[at] = col;
    s.col_factor[at] = (float)(1.0 / sqrt((double)col));
}

/* A block for each array: its root mean square, and the factors of its rows by their mean. */
__global__ void __launch_bounds__(THREADS) finish_rows(lora_adafactor_args s) {
    if (blockIdx.x >= s.arrays.n) return;
    const lora_cuda_array *a = &s.arrays.list[blockIdx.x];
    double *shared = lora_shared<lora_block_partial>().of_warp;
    if (s.scale_parameter) {
        double sum = lora_block_sum(lora_tasks_sum(s.arrays, blockIdx.x, s.partial, threadIdx.x, THREADS), shared);
        if (threadIdx.x == 0) s.scale[blockIdx.x] = a->n ? sqrt(sum / (double)a->n) : 0.0;
        __syncthreads();
    }
    int64_t rows = a->cols ? a->n / a->cols : 0;
    const float *row = s.state.row + a->row;
    double sum = 0;
    for (int64_t r = threadIdx.x; r < rows; r += THREADS) sum += (double)row[r];
    double mean = lora_block_sum(sum, shared) / (double)lora_max_i64(1, rows);
    for (int64_t r = threadIdx.x; r < rows; r += THREADS) s.row_factor[a->row + r] = (float)(s.grad_scale / sqrt((double)row[r] / mean));
}

} // namespace

lora_status lora_cuda_adafactor_moments(lora_cuda *c, const lora_adafactor_args *args, lora_error *err) {
    const lora_cuda_arrays *arrays = &args->arrays;
    if (args->scale_parameter) LORA_TRY(lora_cuda_squares_of_tasks(c, arrays, true, args->partial, err));
    LORA_TRY(LORA_CUDA_LAUNCH(c, add_rows, lora_cuda_blocks(arrays->row_tasks, 1), THREADS, sizeof(lora_block_partial), *args, err));
    LORA_TRY(LORA_CUDA_LAUNCH(c, add_columns, lora_cuda_blocks(arrays->bands, 1), BAND_THREADS, sizeof(band_sums), *args, err));
    return LORA_CUDA_LAUNCH(c, finish_rows, lora_cuda_blocks(arrays->n, 1), THREADS, sizeof(lora_block_partial), *args, err);
}
