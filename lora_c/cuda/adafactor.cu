/* Adafactor's update: sums of its squares, then the step, a pass over all arrays each. */
#include "lora_c/cuda/adafactor.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = LORA_CUDA_OPTIM_THREADS };

/* Where the elements of a task lie in their matrix. */
struct place {
    int64_t row, col; /* of the first element */
    int64_t cols;     /* 0: no matrix */
};

__device__ __forceinline__ place place_of(const lora_optim_task &t) {
    int64_t cols = t.array->cols, row = cols ? t.first / cols : 0;
    return {row, t.first - row * cols, cols};
}

/* The factors of element i of the task. */
__device__ __forceinline__ void factors(const lora_adafactor_args &s, const lora_cuda_array &a, const place &p, int i, float *row,
                                        float *col) {
    int64_t j = p.col + i, r = 0;
    if (p.cols && j >= p.cols) { /* 32 bits hold both but for rows longer than a task, of which there is one more */
        r = j <= INT32_MAX ? (uint32_t)j / (uint32_t)p.cols : j / p.cols;
        j -= r * p.cols;
    }
    *row = p.cols ? s.row_factor[a.row + p.row + r] : (float)s.grad_scale;
    *col = s.col_factor[a.col + j];
}

__global__ void __launch_bounds__(THREADS) update_squares(lora_adafactor_args s) {
    lora_optim_task t = lora_optim_task_of(s.arrays);
    if (!t.array) return;
    place p = place_of(t);
    const float *g = t.array->grad + t.first;
    double sum = 0;
    for (int i = threadIdx.x; i < t.count; i += THREADS) {
        float row, col;
        factors(s, *t.array, p, i, &row, &col);
        double u = (double)(g[i] * row * col);
        sum += u * u;
    }
    sum = lora_block_sum(sum, lora_shared<lora_block_partial>().of_warp);
    if (threadIdx.x == 0) s.partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS) finish_squares(lora_adafactor_args s) {
    if (blockIdx.x >= s.arrays.n) return;
    double sum = lora_tasks_sum(s.arrays, blockIdx.x, s.partial, threadIdx.x, THREADS);
    sum = lora_block_sum(sum, lora_shared<lora_block_partial>().of_warp);
    int64_t n = s.arrays.list[blockIdx.x].n;
    if (threadIdx.x == 0) s.update_rms[blockIdx.x] = n ? sqrt(sum / (double)n) : 0.0;
}

__device__ __forceinline__ lora_adafactor_constants constants_of(const lora_adafactor_args &s, const lora_cuda_array *a) {
    int64_t index = a - s.arrays.list;
    double rate = s.rate;
    if (s.scale_parameter) rate *= fmax(s.eps2, s.scale[index]);
    rate *= a->lr_ratio;
    lora_adafactor_constants c = {};
    c.lr = (float)(rate / fmax(1.0, s.update_rms[index] / s.clip_threshold));
    c.beta1 = s.beta1;
    c.one_minus_beta1 = s.one_minus_beta1;
    c.decay = a->decays ? (float)(1.0 - s.weight_decay * rate) : 1.0f;
    return c;
}

__global__ void __launch_bounds__(THREADS) update(lora_adafactor_args s) {
    lora_optim_task t = lora_optim_task_of(s.arrays);
    if (!t.array) return;
    place p = place_of(t);
    lora_adafactor_constants c = constants_of(s, t.array);
    float *data = t.array->data + t.first, *m = s.state.m ? s.state.m + t.array->element + t.first : nullptr;
    for (int i = threadIdx.x; i < t.count; i += THREADS) {
        float col;
        factors(s, *t.array, p, i, &c.row, &col);
        lora_formulas::adafactor(1, data + i, t.array->grad + t.first + i, m ? m + i : nullptr, &col, &c);
    }
}

/* Behind each other: numbers of tasks and arrays, then factors of rows and columns. */
lora_status take_scratch(lora_cuda *c, lora_adafactor_args *args, lora_error *err) {
    const lora_cuda_arrays *a = &args->arrays;
    size_t doubles = (size_t)(a->tasks + 2 * a->n) * sizeof(double), floats = (size_t)(a->rows + a->columns) * sizeof(float);
    void *scratch;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_SUMS, doubles + floats + 1, &scratch, err));
    args->partial = (double *)scratch;
    args->scale = args->partial + a->tasks;
    args->update_rms = args->scale + a->n;
    args->row_factor = (float *)(args->update_rms + a->n);
    args->col_factor = args->row_factor + a->rows;
    return LORA_OK;
}

double rate_of(const lora_adafactor_hyper *h) {
    double step = (double)h->step;
    return h->relative_step ? fmin(h->warmup_init ? 1e-6 * step : 1e-2, 1.0 / sqrt(step)) : h->lr;
}

} // namespace

lora_status lora_cuda_adafactor_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adafactor_state *state,
                                     const lora_adafactor_hyper *h, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    lora_adafactor_args args = {};
    lora_cuda_arrays_want want = {LORA_CUDA_OPTIM_ELEMENTS, nullptr, nullptr, nullptr, 0};
    LORA_TRY(lora_cuda_arrays_send(c, n_params, params, &want, &args.arrays, err));
    LORA_TRY(take_scratch(c, &args, err));
    args.state = *state;
    args.rate = rate_of(h);
    args.beta2 = 1.0 - pow((double)h->step, h->decay_rate);
    args.eps1 = h->eps1;
    args.eps2 = h->eps2;
    args.clip_threshold = h->clip_threshold;
    args.weight_decay = h->weight_decay;
    args.grad_scale = h->grad_scale;
    args.beta1 = (float)h->beta1;
    args.one_minus_beta1 = (float)(1.0 - h->beta1);
    args.scale_parameter = h->scale_parameter;
    LORA_TRY(lora_cuda_adafactor_moments(c, &args, err));
    dim3 tasks = lora_cuda_blocks(args.arrays.tasks, 1);
    LORA_TRY(LORA_CUDA_LAUNCH(c, update_squares, tasks, THREADS, sizeof(lora_block_partial), args, err));
    LORA_TRY(LORA_CUDA_LAUNCH(c, finish_squares, lora_cuda_blocks(args.arrays.n, 1), THREADS, sizeof(lora_block_partial), args, err));
    return LORA_CUDA_LAUNCH(c, update, tasks, THREADS, 0, args, err);
}
