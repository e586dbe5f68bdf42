/* Inputs of a linear layer with LoRA, and what it gives and passes back as float64 loops, with dropout masks recomputed from
 * their definition. */
#ifndef LORA_TESTS_LINEAR_PROBLEM_H
#define LORA_TESTS_LINEAR_PROBLEM_H

#include "lora_c/linear.h"
#include "tests/c/check_ops.h"

typedef struct linear_problem {
    int64_t M, K, N, R;
    float *x, *w, *bias, *A, *B, *dy, *magnitude; /* from N(0, 1) */
    float scale, dropout;
    double *drop; /* (M, K): mask / (1 - p) */
} linear_problem;

linear_problem linear_problem_new(int64_t M, int64_t K, int64_t N, int64_t R, float dropout);
void linear_problem_free(linear_problem *p);

/* An adapter without a magnitude, and its pass. */
lora_adapter linear_problem_adapter(const linear_problem *p, float *dA, float *dB);
lora_adapter_pass linear_problem_pass(const linear_problem *p);

/* y (M, N). */
void linear_oracle_forward(const linear_problem *p, double *y);
/* All behind each other in the order of their names; each starts with zeros. */
typedef struct linear_gradients {
    double *dx, *dA, *dB, *dW, *dbias;
} linear_gradients;
linear_gradients linear_oracle_backward(const linear_problem *p);
void linear_gradients_free(linear_gradients *g);

static inline lora_mat rows_of(const float *data, int64_t rows, int64_t cols) { return lora_mat_f32(data, rows, cols, cols); }

#endif
