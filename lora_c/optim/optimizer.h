/* What the kinds of optimizers share. */
#ifndef LORA_OPTIM_OPTIMIZER_H
#define LORA_OPTIM_OPTIMIZER_H

#include "lora_c/device.h"
#include "lora_c/optim.h"

/* What a kind of optimizer does on its own. */
typedef struct lora_optimizer_rule {
    lora_status (*check)(const lora_optimizer_options *options, lora_error *err);
    /* Changes every array and the state by one step; the number of steps is counted by the caller. */
    lora_status (*update)(lora_optimizer *opt, double lr, double grad_scale, lora_error *err);
} lora_optimizer_rule;

extern const lora_optimizer_rule lora_adamw_rule; /* adamw.c */

struct lora_optimizer {
    lora_ctx *ctx;
    const lora_optimizer_rule *rule;
    lora_optimizer_options options;
    int64_t n_params, steps;
    lora_param *params;
    int64_t *starts; /* n_params + 1: where each array's moments begin, in elements */
    float *m, *v;    /* the moments of all arrays behind each other */
    double *sum;     /* where the operation leaves the sum of squares */
};

#endif
