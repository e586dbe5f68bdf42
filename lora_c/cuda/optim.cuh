/* What the kernels of optimizers share: tasks of a list of arrays, four elements at a time, and the CPU's formulas from their own source.
 */
#ifndef LORA_CUDA_OPTIM_CUH
#define LORA_CUDA_OPTIM_CUH

#include <float.h>
#include <math.h>

#include "lora_c/cuda/launch.cuh"
#include "lora_c/cuda/optim_arrays.h"
#include "lora_c/kernels/optim_kernels.h"
#include "lora_c/kernels/rowwise_kernels.h"

namespace lora_formulas {
#define RUNG __device__ __forceinline__ __attribute__((unused))
#include "lora_c/kernels/tmpl/optim_tmpl.h"
#undef RUNG
} // namespace lora_formulas

enum { LORA_CUDA_OPTIM_THREADS = 256, LORA_CUDA_OPTIM_ELEMENTS = 4096 /* per task, about */ };

/* The array that a task belongs to, by where arrays begin: the last one that begins at it or before; empty arrays have no tasks. */
template <int64_t lora_cuda_array::*START>
__device__ __forceinline__ const lora_cuda_array *lora_array_of(const lora_cuda_arrays &arrays, int64_t task) {
    int64_t low = 0, high = arrays.n;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (arrays.list[middle].*START <= task)
            low = middle;
        else
            high = middle;
    }
    return &arrays.list[low];
}

/* Elements first .. first + count - 1 of an array; array NULL: the block has nothing to do. */
struct lora_optim_task {
    const lora_cuda_array *array;
    int64_t first;
    int32_t count;
};

__device__ __forceinline__ lora_optim_task lora_optim_task_of(const lora_cuda_arrays &arrays) {
    lora_optim_task t = {nullptr, 0, 0};
    int64_t task = blockIdx.x;
    if (task >= arrays.tasks) return t;
    t.array = lora_array_of<&lora_cuda_array::task>(arrays, task);
    t.first = (task - t.array->task) * arrays.per_task;
    t.count = (int32_t)lora_min_i64(arrays.per_task, t.array->n - t.first);
    return t;
}

__device__ __forceinline__ bool lora_is_vector(const void *p) { return (uintptr_t)p % sizeof(float4) == 0; }

/* Up to n of four elements; the others are 0 and stay as they are. vector: p is aligned to four. */
__device__ __forceinline__ void lora_load4(const float *p, int n, bool vector, float *to) {
    if (vector && n >= 4) {
        float4 v = *(const float4 *)p;
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
        return;
    }
    for (int k = 0; k < 4; k++) to[k] = k < n ? p[k] : 0.0f;
}
__device__ __forceinline__ void lora_store4(float *p, int n, bool vector, const float *from) {
    if (vector && n >= 4) {
        *(float4 *)p = make_float4(from[0], from[1], from[2], from[3]);
        return;
    }
    for (int k = 0; k < 4; k++)
        if (k < n) p[k] = from[k];
}

/* One step of AdamW, with the roundings of the CPU's (rowwise_tmpl.h). */
__device__ __forceinline__ void lora_adamw_element(float *p, float g, float *m, float *v, const lora_adamw_constants &c) {
    float grad = g * c.grad_scale;
    float m1 = *m * c.beta1 + grad * c.one_minus_beta1, v1 = *v * c.beta2 + grad * grad * c.one_minus_beta2;
    float step = c.step_size * m1 / (sqrtf(v1) / c.sqrt_bias2 + c.eps);
    *p = *p * c.decay - step;
    *m = m1;
    *v = v1;
}

/* The constants of a call, but decay and step_size, which lora_adamw_fill gives each array. */
static inline lora_adamw_constants lora_adamw_constants_of(const lora_adamw_hyper *h) {
    lora_adamw_constants c = {};
    c.grad_scale = (float)h->grad_scale;
    c.beta1 = (float)h->beta1;
    c.one_minus_beta1 = (float)(1.0 - h->beta1);
    c.beta2 = (float)h->beta2;
    c.one_minus_beta2 = (float)(1.0 - h->beta2);
    c.sqrt_bias2 = (float)sqrt(1.0 - pow(h->beta2, (double)h->step));
    c.eps = (float)h->eps;
    return c;
}
static inline void lora_adamw_fill(const void *hyper, const lora_param *param, lora_cuda_array *array) {
    const lora_adamw_hyper *h = (const lora_adamw_hyper *)hyper;
    double lr = h->lr * param->lr_ratio;
    array->decay = param->decay ? (float)(1.0 - lr * h->weight_decay) : 1.0f;
    array->rate = (float)(lr / (1.0 - pow(h->beta1, (double)h->step)));
}

#endif
