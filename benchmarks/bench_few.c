/* A linear layer of 1 to 64 tokens on NF4 weights with double quantization, precision fast beside int8: microseconds a call, the best of
 * interleaved runs, and their ratio. blocked: the int8 product of many tokens, whatever their number. Weights are read again and again
 * (cached, in the last-level cache), or one behind the other of more than it holds (streaming).
 * Usage   bench_few [threads ...] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "benchmarks/bench.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/linear_packed.h"

enum { REPETITIONS = 21, MOST_TOKENS = 64, BLOCK = 64, CONTESTANTS = 3, STREAMED_BYTES = 96 * 1024 * 1024 };

typedef struct weights {
    int64_t N, K, n;
    lora_weight *w; /* (n) of the same shape */
    void *memory;
} weights;

/* The layout of a quantized matrix, with codes and scales of noise: only their addresses differ. */
static weights make_weights(int64_t N, int64_t K, int64_t n) {
    const int64_t code_bytes = N * K / 2, blocks = N * K / BLOCK, nested = lora_div_up(blocks, 256);
    const int64_t bytes = lora_round_up(code_bytes + blocks, 64) + lora_round_up(nested * 4, 64);
    weights all = {.N = N, .K = K, .n = n, .w = malloc((size_t)n * sizeof(lora_weight)), .memory = aligned_alloc(64, (size_t)(n * bytes))};
    for (int64_t i = 0; i < n; i++) {
        uint8_t *at = (uint8_t *)all.memory + i * bytes;
        float *nested_absmax = (float *)(void *)(at + lora_round_up(code_bytes + blocks, 64));
        uint32_t state = (uint32_t)i + 1;
        for (int64_t b = 0; b < code_bytes + blocks; b++) at[b] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
        for (int64_t b = 0; b < nested; b++) nested_absmax[b] = 0.02f;
        all.w[i] = lora_weight_nf4(&(lora_nf4){.rows = N,
                                               .cols = K,
                                               .block_size = BLOCK,
                                               .lut = lora_nf4_lut(),
                                               .codes = at,
                                               .absmax_codes = at + code_bytes,
                                               .nested_absmax = nested_absmax,
                                               .nested_map = lora_dynamic_map_signed(),
                                               .nested_block_size = 256,
                                               .nested_offset = 0.05f});
    }
    return all;
}

static double run(lora_ctx *ctx, const weights *all, int64_t first, int64_t n, int contestant, lora_mat x, float *y) {
    lora_error err;
    must(lora_ctx_set_precision(ctx, contestant ? LORA_PRECISION_INT8 : LORA_PRECISION_FAST, &err), &err);
    double start = now();
    for (int64_t i = 0; i < n; i++) {
        lora_linear_layer layer = {.w = all->w + (first + i) % all->n, .y = lora_mat_f32(y, x.rows, all->N, all->N)};
        if (contestant < 2)
            must(lora_linear_forward(ctx, x, 1, &layer, &err), &err);
        else
            must(lora_linear_packed_forward(ctx, x, 1, &layer, &err), &err);
    }
    return 1e6 * (now() - start) / (double)n;
}

static void bench(lora_ctx *ctx, const weights *all, int64_t M, const char *memory) {
    double best[CONTESTANTS] = {1e9, 1e9, 1e9};
    float *x = noise(M * all->K), *y = malloc((size_t)(M * all->N) * sizeof *y);
    const lora_mat tokens = lora_mat_f32(x, M, all->K, all->K);
    const int64_t calls = all->n > 1 ? lora_div_up(all->n, 3) : 4;
    for (int c = 0; c < CONTESTANTS; c++) run(ctx, all, 0, 1, c, tokens, y);
    for (int r = 0; r < REPETITIONS; r++)
        for (int c = 0; c < CONTESTANTS; c++) best[c] = fmin(best[c], run(ctx, all, (r * CONTESTANTS + c) * calls, calls, c, tokens, y));
    printf("%5lld x %4lld  %-9s %7d %4lld %9.1f %9.1f %9.1f %9.2f %9.2f\n", (long long)all->N, (long long)all->K, memory,
           lora_ctx_threads(ctx), (long long)M, best[0], best[1], best[2], best[0] / best[1], best[0] / best[2]);
    fflush(stdout);
    free(x);
    free(y);
}

int main(int argc, char **argv) {
    static const int64_t TOKENS[] = {1, 2, 3, 4, 8, 16, 24, 25, 32, 48, 64}, SHAPES[][2] = {{2048, 2048}, {5632, 2048}, {2048, 5632}};
    lora_ctx *ctx;
    lora_error err;
    must(lora_ctx_create(NULL, &ctx, &err), &err);
    printf("rung %s, best of %d\n                                       microseconds a call              fast over it\n"
           "    N x    K  weights   threads    M      fast      int8   blocked      int8   blocked\n",
           lora_isa_name(lora_ctx_isa(ctx)), REPETITIONS);
    for (int t = 1; t <= (argc > 1 ? argc - 1 : 2); t++) {
        must(lora_ctx_set_threads(ctx, argc > 1 ? atoi(argv[t]) : t, &err), &err);
        for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++)
            for (int streaming = 0; streaming < 2; streaming++) {
                int64_t N = SHAPES[s][0], K = SHAPES[s][1];
                weights all = make_weights(N, K, streaming ? STREAMED_BYTES / (N * K / 2) : 1);
                for (size_t m = 0; m < sizeof TOKENS / sizeof *TOKENS; m++) bench(ctx, &all, TOKENS[m], streaming ? "streaming" : "cached");
                free(all.w);
                free(all.memory);
            }
    }
    lora_ctx_destroy(ctx);
    return 0;
}
