/* Kernels of the optimizers beside AdamW (rowwise_kernels.h). Every slot works on one flat range of any length n >= 0, needs no
 * alignment and touches nothing outside its n elements. Elementwise without fused multiply-add, so that all rungs but the oracle give
 * the same bits; u = 2^-24. */
#ifndef LORA_OPTIM_KERNELS_H
#define LORA_OPTIM_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "lora_c/base/util.h"
#include "lora_c/isa.h"

/* A bucket is the sign, the exponent and the top five mantissa bits of a value, magnitudes below 2^-21 together; it holds at most
 * three of the 255 boundaries between codes. */
enum {
    LORA_DYNAMIC_LOW_KEY = (127 - 21) << 5,
    LORA_DYNAMIC_BUCKETS = (127 << 5) - LORA_DYNAMIC_LOW_KEY + 1,
    LORA_DYNAMIC_PER_BUCKET = 3,
};

/* The search for the nearest of the 256 ascending values of a map in [-1, 1]. */
typedef struct lora_dynamic_search {
    const float *map;
    float first[257];                       /* first[i]: the smallest float32 whose nearest index is i; infinity at the end */
    int32_t base[2 * LORA_DYNAMIC_BUCKETS]; /* index of the smallest value of a bucket; behind them those of negative values */
} lora_dynamic_search;

typedef struct lora_sgd_constants {
    float grad_scale, weight_decay, momentum, one_minus_dampening, lr;
    bool first, nesterov;
} lora_sgd_constants;

typedef struct lora_lion_constants {
    float grad_scale, decay; /* 1 - lr * weight_decay */
    float beta1, one_minus_beta1, beta2, one_minus_beta2, lr;
} lora_lion_constants;

typedef struct lora_adafactor_constants {
    float row, lr; /* u = (g * row) * col;  lr: with the clipping by the root mean square */
    float beta1, one_minus_beta1, decay;
} lora_adafactor_constants;

typedef struct lora_muon_constants {
    float grad_scale, momentum, one_minus_momentum;
    bool nesterov;
} lora_muon_constants;

typedef struct lora_optim_kernels {
    /** x[i] = map[codes[i]] * absmax, one rounding. */
    void (*dynamic_decode)(int64_t n, const uint8_t *codes, const float *map, float absmax, float *x);

    /** codes[i]: the nearest of the map to x[i] * (1 / absmax), of two as near (in float32) the lower; absmax = max |x| is
     *  returned, FLT_MAX where it is infinite. All zero: the code of 0. A NaN gets some code. */
    float (*dynamic_encode)(int64_t n, const float *x, const lora_dynamic_search *search, uint8_t *codes);

    /** g *= grad_scale;  g += weight_decay p;  m = first ? g : momentum m + (1 - dampening) g;  p -= lr (nesterov ? g + momentum m : m).
     *  m NULL: p -= lr g.
     *  Numerics  |err m| <= 6 u (|m| momentum + |g| + weight_decay |p|); |err p| <= 2 u |p| + 9 u lr (the same, twice) */
    void (*sgd)(int64_t n, float *p, const float *g, float *m, const lora_sgd_constants *c);

    /** g *= grad_scale;  p = p decay - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g.
     *  Numerics  |err m| <= 4 u (|m| + |g|); |err p| <= 3 u (|p| + lr) where the sign is that of the exact sum */
    void (*lion)(int64_t n, float *p, const float *g, float *m, const lora_lion_constants *c);

    /** The sum of (g[i] scale)^2 + add in float64: 16 lanes (lane = i mod 16), then lanes l += l+8, l+4, l+2, l+1. */
    double (*shifted_squares)(int64_t n, const float *g, float scale, double add);

    /** sums[i] += (g[i] scale)^2 + add. */
    void (*add_shifted_squares)(int64_t n, const float *g, float scale, double add, double *sums);

    /** The sum of ((g[i] row) col[i])^2 in float64, lanes as above; the factors are rounded to float32. */
    double (*adafactor_squares)(int64_t n, const float *g, float row, const float *col);

    /** u = (g row) col lr;  m = beta1 m + (1 - beta1) u where m is there, and u = m;  p = p decay - u.
     *  Numerics  |err m| <= 6 u (|m| + |u|); |err p| <= 2 u |p| + 8 u (|m| + |u|) */
    void (*adafactor)(int64_t n, float *p, const float *g, float *m, const float *col, const lora_adafactor_constants *c);

    /** g *= grad_scale;  m = momentum m + (1 - momentum) g;  out = nesterov ? momentum m + (1 - momentum) g : m.
     *  Numerics  |err| <= 6 u (|m| + |g|) */
    void (*muon_momentum)(int64_t n, const float *g, float *m, float *out, const lora_muon_constants *c);

    /** p = p decay - lr o.      Numerics  |err| <= 2 u (|p decay| + |lr o|) */
    void (*decayed_step)(int64_t n, float *p, const float *o, float decay, float lr);
} lora_optim_kernels;

/* Every slot, which is what each rung calls its function. */
#define LORA_OPTIM_SLOTS(X)                                                                                                                \
    X(dynamic_decode)                                                                                                                      \
    X(dynamic_encode)                                                                                                                      \
    X(sgd) X(lion) X(shifted_squares) X(add_shifted_squares) X(adafactor_squares) X(adafactor) X(muon_momentum) X(decayed_step)
#define LORA_OPTIM_ASSIGN(slot) k->slot = slot;
#define LORA_OPTIM_COUNT(slot) +1
_Static_assert(sizeof(lora_optim_kernels) == (LORA_OPTIM_SLOTS(LORA_OPTIM_COUNT)) * sizeof(void (*)(void)), "all slots are listed");

/** Fills every slot for the rung. */
void lora_optim_kernels_init(lora_optim_kernels *k, lora_isa isa);
void lora_optim_fill_ref(lora_optim_kernels *k);
void lora_optim_fill_portable(lora_optim_kernels *k);
void lora_optim_fill_avx2(lora_optim_kernels *k);
void lora_optim_fill_avx512(lora_optim_kernels *k);

/** The search in a map of 256 ascending values in [-1, 1] (optim_kernels.c). */
void lora_dynamic_search_fill(lora_dynamic_search *search, const float *map);

#endif
