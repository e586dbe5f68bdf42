/* Values that are hard to round to 8 bits. */
#ifndef LORA_TESTS_HARD_VALUES_H
#define LORA_TESTS_HARD_VALUES_H

#include "tests/c/check_ops.h"

/* Ordinary values, blocks of zeros, huge and tiny ones, halves between two integers, one alone in its block. */
static inline float *hard_values(int64_t n) {
    float *x = random_floats(n, -2, 2);
    for (int64_t i = 0; i < n; i++) {
        int64_t kind = i / 64 % 7;
        if (kind == 1) x[i] = 0;
        if (kind == 2) x[i] *= 1e38f;
        if (kind == 3) x[i] *= 1e-33f;
        if (kind == 4) x[i] *= 1e-38f; /* below what is told from zero */
        if (kind == 5) x[i] = (float)(i % 128 - 63) + 0.5f;
        if (kind == 6) x[i] = i % 64 == 17 ? -127.0f : 0.0f;
    }
    return x;
}

#endif
