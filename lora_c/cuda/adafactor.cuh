/* The numbers of a step of Adafactor, shared by its two files: second moments, and the update. */
#ifndef LORA_CUDA_ADAFACTOR_CUH
#define LORA_CUDA_ADAFACTOR_CUH

#include "lora_c/cuda/optim_squares.cuh"

struct lora_adafactor_args {
    lora_cuda_arrays arrays;
    lora_adafactor_state state;
    double *partial;                /* (tasks): of the arrays' squares, then of the updates' */
    double *scale, *update_rms;     /* (arrays): root mean squares of the array and of its update */
    float *row_factor, *col_factor; /* (rows, columns of all arrays): what the gradient is multiplied by */
    double rate;                    /* but what depends on the array */
    double beta2, eps1, eps2, clip_threshold, weight_decay, grad_scale;
    float beta1, one_minus_beta1;
    bool scale_parameter;
};

/** Moments and factors from the gradients; scale where it counts. */
lora_status lora_cuda_adafactor_moments(lora_cuda *c, const lora_adafactor_args *args, lora_error *err) LORA_MUST_CHECK;

#endif
