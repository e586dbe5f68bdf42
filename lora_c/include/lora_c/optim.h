/* Optimizers over a list of trained arrays, and the two operations that AdamW is made of. */
#ifndef LORA_C_OPTIM_H
#define LORA_C_OPTIM_H

#include "lora_c/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One trained array: n floats of data and gradient, apart from each other and from every other array. */
typedef struct lora_param {
    float *data, *grad;
    int64_t n;
    bool decay; /* whether weight decay counts for it */
} lora_param;

/* --- operations --- */

typedef struct lora_adamw_hyper {
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step;      /* 1 for the first step */
    double grad_scale; /* the gradient is multiplied by this first: clipping and normalisation in the same pass */
} lora_adamw_hyper;

/** One pass over the n elements of every array: p *= 1 - lr*wd (where decay); m, v moments; p -= lr * mhat / (sqrt(vhat) + eps).
 *  Shapes    m and v: the moments of all arrays behind each other, in their order
 *  Numerics  bias corrections in float64 once per call, the rest float32; elementwise, so bits never depend on threads
 *  Source    AdamW, arXiv:1711.05101, algorithm 2; decay before the update, as in PyTorch */
lora_status lora_adamw_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, float *v, const lora_adamw_hyper *hyper,
                            lora_error *err) LORA_MUST_CHECK;

/** sum of grad[i]^2 over all arrays in float64: chunks of fixed size added in index order, then the arrays in their order.
 *  data is not read. */
lora_status lora_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err) LORA_MUST_CHECK;

/* --- optimizers --- */

typedef struct lora_optimizer lora_optimizer;

typedef enum lora_optimizer_kind {
    LORA_ADAMW, /* AdamW, arXiv:1711.05101, algorithm 2 */
    LORA_OPTIMIZER_KINDS,
} lora_optimizer_kind;

typedef struct lora_optimizer_options {
    double beta1, beta2, eps, weight_decay;
} lora_optimizer_options;

typedef struct lora_step_options {
    double lr;
    double grad_scale;    /* the gradients are multiplied by this first */
    double max_grad_norm; /* they are scaled down to this norm over all of them; 0: not */
} lora_step_options;

typedef enum lora_moment { LORA_MOMENT_FIRST, LORA_MOMENT_SECOND } lora_moment;

/** Borrows the arrays until it is destroyed; the list itself is copied. The state starts at zero and counts as LORA_MEM_OPTIM.
 *  Needs no lock.
 *  Errors    LORA_EINVAL a number of options is out of range, an array is NULL or there is none; LORA_ENOMEM */
lora_status lora_optimizer_create(lora_ctx *ctx, lora_optimizer_kind kind, const lora_param *params, int64_t n_params,
                                  const lora_optimizer_options *options, lora_optimizer **out, lora_error *err) LORA_MUST_CHECK;
void lora_optimizer_destroy(lora_optimizer *opt); /* NULL allowed */

/** One step over all arrays. *norm: of the scaled gradients before they are clipped.
 *  Numerics  clipped by max_grad_norm / (norm + 1e-6), as in PyTorch
 *  Errors    LORA_EINVAL the norm is not finite or an option is out of range: arrays, state and number of steps are unchanged */
lora_status lora_optimizer_step(lora_optimizer *opt, const lora_step_options *options, double *norm, lora_error *err) LORA_MUST_CHECK;

/** Sets every gradient to zero.   Errors  EDEVICE */
lora_status lora_optimizer_zero_grad(lora_optimizer *opt, lora_error *err) LORA_MUST_CHECK;

/** Steps done. */
int64_t lora_optimizer_steps(const lora_optimizer *opt);
/** Errors    LORA_EINVAL steps is negative */
lora_status lora_optimizer_set_steps(lora_optimizer *opt, int64_t steps, lora_error *err) LORA_MUST_CHECK;

/** Copies a moment of the array with this index, n floats, out of the state or into it.
 *  Errors    LORA_EINVAL there is no such array or moment, or the pointer is NULL */
lora_status lora_optimizer_get_moment(const lora_optimizer *opt, int64_t index, lora_moment which, float *out,
                                      lora_error *err) LORA_MUST_CHECK;
lora_status lora_optimizer_set_moment(lora_optimizer *opt, int64_t index, lora_moment which, const float *from,
                                      lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
