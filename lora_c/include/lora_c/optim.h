/* AdamW with decoupled weight decay, and the global gradient norm. */
#ifndef LORA_C_OPTIM_H
#define LORA_C_OPTIM_H

#include "lora_c/context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lora_adamw_hyper {
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step;     /* 1 for the first step */
    double grad_scale;/* the gradient is multiplied by this first: clipping and normalisation in the same pass */
} lora_adamw_hyper;

/** One pass over n elements: p *= 1 - lr*wd; m, v moments; p -= lr * mhat / (sqrt(vhat) + eps).
 *  Numerics  bias corrections in float64 once per call, the rest float32; elementwise, so bits never depend on threads.
 *  Source    AdamW, arXiv:1711.05101, algorithm 2; decay before the update, as in PyTorch */
lora_status lora_adamw_step(lora_ctx *ctx, int64_t n, float *p, const float *g, float *m, float *v,
                            const lora_adamw_hyper *hyper, lora_error *err) LORA_MUST_CHECK;

/** sum of g[i]^2 in float64, in chunks of fixed size added in index order. */
lora_status lora_sum_of_squares(lora_ctx *ctx, int64_t n, const float *g, double *sum, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
