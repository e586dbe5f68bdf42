/* What the C benchmarks share: the clock, errors that end the program, random floats, and an order for medians. */
#ifndef LORA_BENCHMARKS_BENCH_H
#define LORA_BENCHMARKS_BENCH_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "lora_c/base/philox.h"
#include "lora_c/lora_c.h"

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline void must(lora_status status, const lora_error *err) {
    if (status == LORA_OK) return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

/* n floats in [-1/2, 1/2), the caller's to free */
static inline float *noise(int64_t n) {
    float *p = malloc((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = lora_philox_uniform(1, 1, (uint64_t)i) - 0.5f;
    return p;
}

/* For qsort. */
static inline int rising(const void *a, const void *b) { return *(const double *)a > *(const double *)b ? 1 : -1; }

#endif
