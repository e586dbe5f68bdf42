/* Quantizing a matrix to NF4 with double quantization: bytes of the source per second, and the share of the speed at which the
 * same threads read memory. Best of several interleaved repetitions. */
#define _DEFAULT_SOURCE /* madvise */
#include "benchmarks/memory_speed.h"

enum { SIZE = 4096, COPIES = 4, REPETITIONS = 12 }; /* copies: together more than the caches hold */

static double quantize_time(lora_ctx *ctx, const void *source, lora_dtype dtype, uint8_t *codes, float *absmax) {
    lora_error err;
    int64_t blocks = lora_nf4_blocks(SIZE, SIZE, 64);
    static uint8_t absmax_codes[SIZE * SIZE / 64];
    static float nested[SIZE * SIZE / 64 / 256], offset;
    double start = now();
    must(lora_nf4_quantize(ctx, source, dtype, SIZE, SIZE, 64, codes, absmax, &err), &err);
    must(lora_nf4_double_quantize(ctx, absmax, blocks, absmax_codes, nested, &offset, &err), &err);
    return now() - start;
}

int main(void) {
    static const lora_dtype dtypes[] = {LORA_F32, LORA_BF16, LORA_F16};
    const size_t n = (size_t)SIZE * SIZE;
    float *source = memory(COPIES * n * sizeof *source), *absmax = memory(n / 64 * sizeof *absmax);
    uint8_t *codes = memory(n / 2 + 64);
    for (size_t i = 0; i < COPIES * n; i++) source[i] = (float)((i * 2654435761u) >> 9 & 0xffff) / 65536.0f - 0.5f;
    uint16_t *half = memory(COPIES * n * sizeof *half); /* bits that are finite in both 16-bit formats */
    for (size_t i = 0; i < COPIES * n; i++) half[i] = (uint16_t)((i * 2654435761u >> 13 & 0x83ff) | 0x3800);
    printf("NF4 + double quantization of %d x %d, %s\nthreads source     ms   GB/s of source (share of read bandwidth)\n", SIZE, SIZE,
           lora_isa_name(lora_cpu_best_isa()));
    for (int threads = 1; threads <= 2; threads++) {
        lora_error err;
        lora_ctx *ctx;
        lora_mem mem;
        lora_pool *pool;
        lora_mem_init(&mem);
        must(lora_pool_create(&mem, threads, &pool, &err), &err);
        must(lora_ctx_create(&(lora_ctx_options){.n_threads = threads, .isa = LORA_ISA_AUTO}, &ctx, &err), &err);
        double best[3] = {1e9, 1e9, 1e9}, bandwidth = 0;
        for (int i = 0; i < REPETITIONS; i++) {
            double read = read_bandwidth(pool);
            if (read > bandwidth) bandwidth = read;
            for (int d = 0; d < 3; d++) {
                const char *from = d ? (const char *)half : (const char *)source;
                double time = quantize_time(ctx, from + (size_t)(i % COPIES) * n * lora_dtype_bytes(dtypes[d]), dtypes[d], codes, absmax);
                if (time < best[d]) best[d] = time;
            }
        }
        for (int d = 0; d < 3; d++) {
            double speed = (double)(n * lora_dtype_bytes(dtypes[d])) / best[d];
            printf("%7d %-8s %5.2f %10.1f (%3.0f %% of %.1f)\n", threads, lora_dtype_name(dtypes[d]), 1e3 * best[d], speed / 1e9,
                   100 * speed / bandwidth, bandwidth / 1e9);
        }
        lora_ctx_destroy(ctx);
        lora_pool_destroy(pool);
    }
    return 0;
}
