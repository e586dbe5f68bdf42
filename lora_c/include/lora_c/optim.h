/* Optimizers over a list of trained arrays, and the operations that they are made of. */
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
    bool decay;      /* whether weight decay counts for it */
    int64_t cols;    /* of a matrix, whose rows lie behind each other; 0: what it has of one does not count */
    double lr_ratio; /* its learning rate is lr times this: 1 for lr itself, at 0 it stays as it is */
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

enum { LORA_ADAMW8BIT_BLOCK = 256 }; /* elements that share a scale */

/* Moments as codes of the dynamic maps (nf4.h: signed for m, unsigned for v), those of all arrays behind each other, and a scale for
 * each block of an array: its largest magnitude. The last block of an array may be short. All zero at first. */
typedef struct lora_adamw8bit_state {
    uint8_t *m, *v;
    float *m_absmax, *v_absmax;
} lora_adamw8bit_state;

/** lora_adamw_step with moments that are decoded before and encoded after it, block by block; p is changed by them as they are
 *  between the two.
 *  Numerics  codes: the nearest of the map to moment / absmax, distances and scale in float32, of two as near the lower
 *  Source    8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2 */
lora_status lora_adamw8bit_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adamw8bit_state *state,
                                const lora_adamw_hyper *hyper, lora_error *err) LORA_MUST_CHECK;

typedef struct lora_sgd_hyper {
    double lr, momentum, dampening, weight_decay;
    bool nesterov;
    int64_t step; /* 1 for the first step, whose gradient begins m */
    double grad_scale;
} lora_sgd_hyper;

/** g += wd*p (where decay); m = momentum*m + (1-dampening)*g, at first g; p -= lr * (nesterov ? g + momentum*m : m).
 *  Shapes    m as for lora_adamw_step; NULL exactly where momentum is 0: p -= lr*g
 *  Source    Sutskever et al., ICML 2013, section 2, as PyTorch's SGD has it */
lora_status lora_sgd_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_sgd_hyper *hyper,
                          lora_error *err) LORA_MUST_CHECK;

typedef struct lora_lion_hyper {
    double lr, beta1, beta2, weight_decay, grad_scale;
} lora_lion_hyper;

/** p *= 1 - lr*wd (where decay); p -= lr * sign(beta1*m + (1-beta1)*g); m = beta2*m + (1-beta2)*g.
 *  Source    Lion, arXiv:2302.06675, algorithm 2 */
lora_status lora_lion_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_lion_hyper *hyper,
                           lora_error *err) LORA_MUST_CHECK;

typedef struct lora_adafactor_hyper {
    double lr;                         /* not read with relative_step */
    double eps1, eps2;                 /* added to squares; the least scale of an array */
    double clip_threshold, decay_rate; /* beta2 of step t is 1 - t^decay_rate */
    double beta1;                      /* of m; 0: there is none */
    double weight_decay;
    bool scale_parameter, relative_step, warmup_init;
    int64_t step; /* 1 for the first step */
    double grad_scale;
} lora_adafactor_hyper;

/* Of all arrays behind each other: second moments of the rows of matrices; of their columns, and of the elements of other arrays; first
 * moments, or NULL. */
typedef struct lora_adafactor_state {
    float *row, *col, *m;
} lora_adafactor_state;

/** One step of Adafactor. The rate of an array is lr, with relative_step min(1e-2 (warmup_init: 1e-6 t), 1/sqrt(t)), times the root mean
 *  square of the array, at least eps2, with scale_parameter. Weight decay takes rate*wd*p off.
 *  Numerics  sums in float64 in an order of their own; factors, state and update float32
 *  Source    Adafactor, arXiv:1804.04235, algorithms 4 to 6, as transformers' class has it */
lora_status lora_adafactor_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, const lora_adafactor_state *state,
                                const lora_adafactor_hyper *hyper, lora_error *err) LORA_MUST_CHECK;

typedef struct lora_muon_hyper {
    double lr, momentum, weight_decay, eps;
    double a, b, c; /* of the polynomial a x + b x^3 + c x^5 */
    bool nesterov, match_rms_adamw;
    int64_t ns_steps;
    double grad_scale;
} lora_muon_hyper;

/** m = momentum*m + (1-momentum)*g; u = nesterov ? momentum*m + (1-momentum)*g : m; o: u with its singular values brought near 1 by
 *  ns_steps of the polynomial, from u / max(|u|, eps); p *= 1 - lr*wd (where decay); p -= lr*r*o, r = sqrt(max(1, rows/cols)), with
 *  match_rms_adamw 0.2*sqrt(max(rows, cols)).
 *  Shapes    every array is a matrix (cols >= 1)
 *  Numerics  float32 products, whatever the precision of the context
 *  Source    Muon, kellerjordan.github.io/posts/muon (2024); arXiv:2502.16982, section 2 */
lora_status lora_muon_step(lora_ctx *ctx, int64_t n_params, const lora_param *params, float *m, const lora_muon_hyper *hyper,
                           lora_error *err) LORA_MUST_CHECK;

/** sum of grad[i]^2 over all arrays in float64: chunks of fixed size added in index order, then the arrays in their order.
 *  data is not read. */
lora_status lora_sum_of_squares(lora_ctx *ctx, int64_t n_params, const lora_param *params, double *sum, lora_error *err) LORA_MUST_CHECK;

/* --- optimizers --- */

typedef struct lora_optimizer lora_optimizer;

typedef enum lora_optimizer_kind {
    LORA_ADAMW,     /* AdamW, arXiv:1711.05101, algorithm 2 */
    LORA_ADAMW8BIT, /* its moments in 8 bits, of arrays from min_8bit_size elements on, arXiv:2110.02861 */
    LORA_SGD,       /* with momentum */
    LORA_LION,      /* arXiv:2302.06675 */
    LORA_ADAFACTOR, /* arXiv:1804.04235 */
    LORA_MUON,      /* of matrices; other arrays get AdamW with betas and eps */
    LORA_OPTIMIZER_KINDS,
} lora_optimizer_kind;

/* Each kind reads its own. */
typedef struct lora_optimizer_options {
    double beta1, beta2, eps; /* AdamW, in 8 bits too, Lion (betas), Muon (other arrays) */
    double weight_decay;
    int64_t min_8bit_size;          /* smaller arrays keep moments of 32 bits */
    double momentum, dampening;     /* SGD, Muon */
    bool nesterov;                  /* SGD, Muon */
    lora_adafactor_hyper adafactor; /* but lr, weight_decay, step and grad_scale */
    double ns_eps, ns_coefficients[3];
    int64_t ns_steps;
    bool match_rms_adamw;
    const char *paged_folder; /* AdamW, in 8 bits too: the state lies in a file there; NULL: in memory. Not read after the call */
} lora_optimizer_options;

typedef struct lora_step_options {
    double lr;
    double grad_scale;     /* the gradients are multiplied by this first */
    double max_grad_norm;  /* they are scaled down to this norm over all of them; 0: not */
    double skip_grad_norm; /* above this norm over all of them nothing changes; 0: never */
} lora_step_options;

/* Parts of the state. An array has those that its kind gives it. */
typedef enum lora_moment {
    LORA_MOMENT_FIRST,
    LORA_MOMENT_SECOND,
    LORA_MOMENT_FIRST_CODES, /* LORA_ADAMW8BIT: one byte for each element ... */
    LORA_MOMENT_SECOND_CODES,
    LORA_MOMENT_FIRST_ABSMAX, /* ... and a scale for each block of LORA_ADAMW8BIT_BLOCK */
    LORA_MOMENT_SECOND_ABSMAX,
    LORA_MOMENT_ROW, /* LORA_ADAFACTOR */
    LORA_MOMENT_COL,
    LORA_MOMENTS,
} lora_moment;

/** Borrows the arrays until it is destroyed; the list itself is copied. The state starts at zero and counts as LORA_MEM_OPTIM.
 *  Needs no lock.
 *  Errors    LORA_EINVAL a number of options is out of range, an array is NULL or there is none; LORA_ENOMEM */
lora_status lora_optimizer_create(lora_ctx *ctx, lora_optimizer_kind kind, const lora_param *params, int64_t n_params,
                                  const lora_optimizer_options *options, lora_optimizer **out, lora_error *err) LORA_MUST_CHECK;
void lora_optimizer_destroy(lora_optimizer *opt); /* NULL allowed */

/** One step over all arrays. *norm: of the scaled gradients before they are clipped; above skip_grad_norm there was no step.
 *  Numerics  clipped by max_grad_norm / (norm + 1e-6), as in PyTorch
 *  Errors    LORA_EINVAL the norm is not finite or an option is out of range: arrays, state and number of steps are unchanged */
lora_status lora_optimizer_step(lora_optimizer *opt, const lora_step_options *options, double *norm, lora_error *err) LORA_MUST_CHECK;

/** Sets every gradient to zero.   Errors  EDEVICE */
lora_status lora_optimizer_zero_grad(lora_optimizer *opt, lora_error *err) LORA_MUST_CHECK;

/** Steps done. */
int64_t lora_optimizer_steps(const lora_optimizer *opt);
/** Errors    LORA_EINVAL steps is negative */
lora_status lora_optimizer_set_steps(lora_optimizer *opt, int64_t steps, lora_error *err) LORA_MUST_CHECK;

/** Elements of a moment of the array with this index, 0 where it has none; float, or uint8_t for codes. */
int64_t lora_optimizer_moment_size(const lora_optimizer *opt, int64_t index, lora_moment which);
/** Copies a moment of the array with this index out of the state or into it.
 *  Errors    LORA_EINVAL there is no such array or moment, or the pointer is NULL */
lora_status lora_optimizer_get_moment(const lora_optimizer *opt, int64_t index, lora_moment which, void *out,
                                      lora_error *err) LORA_MUST_CHECK;
lora_status lora_optimizer_set_moment(lora_optimizer *opt, int64_t index, lora_moment which, const void *from,
                                      lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
