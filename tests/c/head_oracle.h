/* Head and loss as float64 loops. */
#ifndef LORA_TESTS_HEAD_ORACLE_H
#define LORA_TESTS_HEAD_ORACLE_H

#include "lora_c/nn.h"

typedef struct head_problem {
    int64_t M, V, H, ldx;
    const float *x, *w; /* (M, H) of ldx; (V, H) */
    const int32_t *targets;
    const float *weight; /* (M), rows of weight 0 are left out */
    float grad_scale;
    lora_logit_map map;
} head_problem;

typedef struct head_results {
    double loss_sum, *token_loss, *dx, *dW; /* (M), (M, H), (V, H) behind each other */
} head_results;

head_results head_oracle(const head_problem *p);
void head_results_free(head_results *r);

#endif
