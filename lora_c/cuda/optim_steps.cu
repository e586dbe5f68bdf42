/* AdamW, SGD and Lion: elementwise, in one launch over all arrays. */
#include "lora_c/cuda/optim.cuh"
#include "lora_c/cuda/table.h"

namespace {

enum { THREADS = LORA_CUDA_OPTIM_THREADS };

/* Four elements of an array, its gradient and its moments. */
struct four {
    float p[4], g[4], m[4], v[4];
};

struct adamw_formula {
    lora_adamw_constants c;
    __device__ __forceinline__ void apply(const lora_cuda_array &a, four &e, bool) const {
        lora_adamw_constants own = c;
        own.decay = a.decay;
        own.step_size = a.rate;
        for (int k = 0; k < 4; k++) lora_adamw_element(&e.p[k], e.g[k], &e.m[k], &e.v[k], own);
    }
};

struct sgd_formula {
    lora_sgd_constants c;
    __device__ __forceinline__ void apply(const lora_cuda_array &a, four &e, bool has_m) const {
        lora_sgd_constants own = c;
        own.weight_decay = a.decay;
        own.lr = a.rate;
        if (has_m) /* not chosen by address: the elements stay in registers */
            lora_formulas::sgd(4, e.p, e.g, e.m, &own);
        else
            lora_formulas::sgd(4, e.p, e.g, nullptr, &own);
    }
};

struct lion_formula {
    lora_lion_constants c;
    __device__ __forceinline__ void apply(const lora_cuda_array &a, four &e, bool) const {
        lora_lion_constants own = c;
        own.decay = a.decay;
        own.lr = a.rate;
        lora_formulas::lion(4, e.p, e.g, e.m, &own);
    }
};

template <class Formula> struct step_args {
    lora_cuda_arrays arrays;
    float *m, *v; /* NULL: the formula has none */
    Formula formula;
};

template <class Formula> __global__ void __launch_bounds__(THREADS) optim_step(step_args<Formula> s) {
    lora_optim_task t = lora_optim_task_of(s.arrays);
    if (!t.array) return;
    float *p = t.array->data + t.first, *m = s.m ? s.m + t.array->element + t.first : nullptr,
          *v = s.v ? s.v + t.array->element + t.first : nullptr;
    const float *g = t.array->grad + t.first;
    bool vector = lora_is_vector(p) && lora_is_vector(g), vector_m = lora_is_vector(m), vector_v = lora_is_vector(v);
    for (int i = 4 * (int)threadIdx.x; i < t.count; i += 4 * THREADS) {
        int n = t.count - i;
        four e;
        lora_load4(p + i, n, vector, e.p);
        lora_load4(g + i, n, vector, e.g);
        if (m) lora_load4(m + i, n, vector_m, e.m);
        if (v) lora_load4(v + i, n, vector_v, e.v);
        s.formula.apply(*t.array, e, m != nullptr);
        lora_store4(p + i, n, vector, e.p);
        if (m) lora_store4(m + i, n, vector_m, e.m);
        if (v) lora_store4(v + i, n, vector_v, e.v);
    }
}

template <class Formula>
lora_status run_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, step_args<Formula> args,
                     void (*fill)(const void *, const lora_param *, lora_cuda_array *), const void *hyper, lora_error *err) {
    lora_cuda *c = lora_cuda_of(ctx);
    lora_cuda_arrays_want want = {LORA_CUDA_OPTIM_ELEMENTS, fill, hyper, nullptr, 0};
    LORA_TRY(lora_cuda_arrays_send(c, n_params, params, &want, &args.arrays, err));
    return LORA_CUDA_LAUNCH(c, optim_step<Formula>, lora_cuda_blocks(args.arrays.tasks, 1), THREADS, 0, args, err);
}

void fill_sgd(const void *hyper, const lora_param *param, lora_cuda_array *array) {
    const lora_sgd_hyper *h = (const lora_sgd_hyper *)hyper;
    array->decay = param->decay ? (float)h->weight_decay : 0.0f;
    array->rate = (float)(h->lr * param->lr_ratio);
}

void fill_lion(const void *hyper, const lora_param *param, lora_cuda_array *array) {
    const lora_lion_hyper *h = (const lora_lion_hyper *)hyper;
    double lr = h->lr * param->lr_ratio;
    array->decay = param->decay ? (float)(1.0 - lr * h->weight_decay) : 1.0f;
    array->rate = (float)lr;
}

} // namespace

lora_status lora_cuda_adamw_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v,
                                 const lora_adamw_hyper *hyper, lora_error *err) {
    step_args<adamw_formula> args = {{}, m, v, {lora_adamw_constants_of(hyper)}};
    return run_step(ctx, n_params, params, args, lora_adamw_fill, hyper, err);
}

lora_status lora_cuda_sgd_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *h,
                               lora_error *err) {
    step_args<sgd_formula> args = {{}, m, nullptr, {}};
    lora_sgd_constants *c = &args.formula.c;
    c->grad_scale = (float)h->grad_scale;
    c->momentum = (float)h->momentum;
    c->one_minus_dampening = (float)(1.0 - h->dampening);
    c->first = h->step == 1;
    c->nesterov = h->nesterov;
    return run_step(ctx, n_params, params, args, fill_sgd, h, err);
}

lora_status lora_cuda_lion_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *h,
                                lora_error *err) {
    step_args<lion_formula> args = {{}, m, nullptr, {}};
    lora_lion_constants *c = &args.formula.c;
    c->grad_scale = (float)h->grad_scale;
    c->beta1 = (float)h->beta1;
    c->one_minus_beta1 = (float)(1.0 - h->beta1);
    c->beta2 = (float)h->beta2;
    c->one_minus_beta2 = (float)(1.0 - h->beta2);
    return run_step(ctx, n_params, params, args, fill_lion, h, err);
}
