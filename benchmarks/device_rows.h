/* Timing on a device, and its arrays: what the groups of bench_device.c share. */
#ifndef LORA_BENCHMARKS_DEVICE_ROWS_H
#define LORA_BENCHMARKS_DEVICE_ROWS_H

#include <stdbool.h>
#include <string.h>

#include "benchmarks/memory_speed.h"
#include "lora_c/lora_c.h"

enum { REPETITIONS = 7, MOST_CALLS = 500, DISTINCT_FLOATS = 1 << 22 };

typedef struct device_bench {
    lora_ctx *ctx;
    bool tiny;         /* sizes that an emulated device can do */
    double copy_speed; /* bytes/s read and written, of the copy that dequantizing is compared with */
    float *noise;      /* DISTINCT_FLOATS of the host in [-1/2, 1/2) */
} device_bench;

/* One call of an operation; call counts them, so that weights can take turns and stay out of caches. */
typedef lora_status (*operation)(void *data, int64_t call, lora_error *err);

static inline void *on_device(const device_bench *b, size_t bytes) {
    void *p = lora_ctx_alloc_uncleared(b->ctx, LORA_MEM_SCRATCH, bytes);
    if (p) return p;
    fprintf(stderr, "expected %zu bytes of %s, got none\n", bytes, lora_ctx_device(b->ctx));
    exit(1);
}

/* Numbers in [-1/2, 1/2), never zeros: GPUs run cooler, and faster, on those. */
static inline float *floats(const device_bench *b, int64_t n) {
    lora_error err;
    float *p = on_device(b, (size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i += DISTINCT_FLOATS) {
        int64_t count = n - i < DISTINCT_FLOATS ? n - i : DISTINCT_FLOATS;
        must(lora_upload(b->ctx, p + i, b->noise, (size_t)count * sizeof *p, &err), &err);
    }
    must(lora_sync(b->ctx, &err), &err);
    return p;
}

static inline lora_mat matrix(const device_bench *b, int64_t rows, int64_t cols) {
    return lora_mat_f32(floats(b, rows * cols), rows, cols, cols);
}

/* n calls behind each other, waited for once: seconds, or -1 with err. */
static inline double seconds_of(lora_ctx *ctx, operation run, void *data, int64_t n, lora_error *err) {
    double start = now();
    for (int64_t i = 0; i < n; i++)
        if (run(data, i, err) != LORA_OK) return -1;
    return lora_sync(ctx, err) == LORA_OK ? now() - start : -1;
}

/* Median seconds of a call among as many as fill a tenth of a second; -1 with err where the device refuses it. */
static inline double median_seconds(const device_bench *b, operation run, void *data, lora_error *err) {
    double times[REPETITIONS];
    for (int warm = 0; warm < 2; warm++)
        if ((times[0] = seconds_of(b->ctx, run, data, 1, err)) < 0) return -1;
    int64_t n = b->tiny ? 1 : (int64_t)(0.1 / (times[0] + 1e-9)), repetitions = b->tiny ? 1 : REPETITIONS;
    n = n < 1 ? 1 : n > MOST_CALLS ? MOST_CALLS : n;
    for (int64_t r = 0; r < repetitions; r++) {
        if ((times[r] = seconds_of(b->ctx, run, data, n, err)) < 0) return -1;
        times[r] /= (double)n;
    }
    qsort(times, (size_t)repetitions, sizeof *times, rising);
    return times[repetitions / 2];
}

/* A row as one JSON object: what, the text of its sizes ("\"tokens\": 4, "), and the speed. Returns the seconds, or -1. */
static inline double print_row(const device_bench *b, const char *what, const char *sizes, operation run, void *data, double bytes,
                               double flops) {
    lora_error err = {0};
    double seconds = median_seconds(b, run, data, &err);
    if (seconds < 0) {
        printf("{\"what\": \"%s\", %s\"error\": \"%s\"}\n", what, sizes, err.message);
    } else {
        printf("{\"what\": \"%s\", %s\"microseconds\": %.3f, \"gb_per_s\": %.1f", what, sizes, 1e6 * seconds, 1e-9 * bytes / seconds);
        if (flops > 0) printf(", \"tflops\": %.3f", 1e-12 * flops / seconds);
        if (flops == 0 && b->copy_speed > 0) printf(", \"of_copy\": %.3f", bytes / seconds / b->copy_speed);
        printf("}\n");
    }
    fflush(stdout);
    return seconds;
}

#endif
