/* The NF4 linear layer as a share of the machine's own float32 FMA peak, measured in the same run.
 * Best of several interleaved repetitions. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "lora_c/base/cpuinfo.h"
#include "lora_c/base/philox.h"
#include "lora_c/lora_c.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *noise(int64_t n) {
    float *p = malloc((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = lora_philox_uniform(1, 1, (uint64_t)i) - 0.5f;
    return p;
}

static void must(lora_status status, const lora_error *err) {
    if (status == LORA_OK) return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

static void bench(lora_ctx *ctx, int threads, int64_t M, int64_t N) {
    lora_error err;
    int64_t K = N;
    float *x = noise(M * K), *y = malloc((size_t)(M * N) * sizeof *y), *w = noise(N * K);
    uint8_t *codes = malloc((size_t)(N * K / 2 + 64));
    float *absmax = malloc((size_t)(N * K / 64) * sizeof *absmax);
    must(lora_nf4_quantize(ctx, w, LORA_F32, N, K, 64, codes, absmax, &err), &err);
    free(w);
    lora_nf4 nf4 = {.rows = N, .cols = K, .block_size = 64, .lut = lora_nf4_lut(), .codes = codes, .absmax = absmax};
    lora_weight weight = {.kind = LORA_WEIGHT_NF4, .rows = N, .cols = K, .nf4 = &nf4};
    double forward = 0, backward = 0, peak = 0, flop = 2.0 * (double)M * (double)N * (double)K;
    must(lora_linear_forward(ctx, M, x, K, &weight, NULL, NULL, y, N, false, &err), &err);
    for (int i = 0; i < 7; i++) {
        double p = lora_ctx_fma_peak(ctx), t0 = now();
        must(lora_linear_forward(ctx, M, x, K, &weight, NULL, NULL, y, N, false, &err), &err);
        double t1 = now();
        must(lora_linear_backward(ctx, M, y, N, NULL, K, &weight, NULL, x, K, false, NULL, NULL, &err), &err);
        double t2 = now();
        if (p > peak) peak = p;
        if (flop / (t1 - t0) > forward) forward = flop / (t1 - t0);
        if (flop / (t2 - t1) > backward) backward = flop / (t2 - t1);
        for (int64_t j = 0; j < M * K; j++) x[j] = (float)(j % 17) - 8;
    }
    printf("%7d %6lld %6lld %12.1f %10.1f (%3.0f %%) %10.1f (%3.0f %%)\n", threads, (long long)M, (long long)N, peak / 1e9,
           forward / 1e9, 100 * forward / peak, backward / 1e9, 100 * backward / peak);
    free(x);
    free(y);
    free(codes);
    free(absmax);
}

int main(void) {
    lora_error err;
    printf("NF4 linear, %s, GFLOP/s and share of the float32 FMA peak\nthreads      M    N=K   peak GFLOP/s     forward            backward\n",
           lora_isa_name(lora_cpu_best_isa()));
    for (int threads = 1; threads <= 2; threads++) {
        lora_ctx *ctx;
        must(lora_ctx_create(&(lora_ctx_options){.n_threads = threads, .isa = LORA_ISA_AUTO}, &ctx, &err), &err);
        for (int64_t N = 2048; N <= 4096; N *= 2)
            for (int64_t M = 512; M <= 2048; M *= 4) bench(ctx, threads, M, N);
        lora_ctx_destroy(ctx);
    }
    return 0;
}
