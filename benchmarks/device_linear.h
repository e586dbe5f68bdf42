/* Linear layers of a device, in NF4 and bfloat16, without and with an adapter. */
#ifndef LORA_BENCHMARKS_DEVICE_LINEAR_H
#define LORA_BENCHMARKS_DEVICE_LINEAR_H

#include "benchmarks/device_weights.h"

enum { RANK_OF_ADAPTERS = 16 };

typedef struct linear_case {
    device_bench *b;
    lora_weight pool; /* n weights behind each other */
    int64_t n, N;
    lora_mat x, y;
    lora_adapter adapter;
} linear_case;

static lora_status forward(void *data, int64_t call, lora_error *err) {
    linear_case *c = data;
    lora_weight w;
    LORA_TRY(lora_weight_rows(&c->pool, call % c->n * c->N, c->N, &w, err));
    lora_linear_layer layer = {.w = &w, .adapter = c->adapter.rank ? &c->adapter : NULL, .y = c->y};
    return lora_linear_forward(c->b->ctx, c->x, 1, &layer, err);
}

static lora_status backward(void *data, int64_t call, lora_error *err) {
    linear_case *c = data;
    lora_weight w;
    LORA_TRY(lora_weight_rows(&c->pool, call % c->n * c->N, c->N, &w, err));
    lora_linear_gradient g = {.dy = c->y, .w = &w, .adapter = c->adapter.rank ? &c->adapter : NULL};
    lora_mat dx = lora_mat_rows(c->x, c->x.rows, c->x.rows); /* the other half of the array */
    return lora_linear_backward(c->b->ctx, c->x, 1, &g, dx, false, err);
}

static void bench_tokens(linear_case *c, bool nf4, int64_t M) {
    device_bench *b = c->b;
    int64_t N = c->N, K = c->pool.cols, R = RANK_OF_ADAPTERS;
    double weight = weight_bytes(nf4, N, K), flops = 2.0 * (double)M * (double)N * (double)K;
    lora_adapter adapter = {
        .rank = R, .A = floats(b, R * K), .B = floats(b, N * R), .dA = floats(b, R * K), .dB = floats(b, N * R), .scale = 0.01f};
    c->x = matrix(b, 2 * M, K);
    c->x.rows = M;
    c->y = matrix(b, M, N);
    for (int with = 0; with < 2; with++) {
        char sizes[160];
        snprintf(sizes, sizeof sizes, "\"weight\": \"%s\", \"out\": %lld, \"in\": %lld, \"tokens\": %lld, \"rank\": %lld, ",
                 nf4 ? "nf4" : "bfloat16", (long long)N, (long long)K, (long long)M, (long long)(with ? R : 0));
        c->adapter = with ? adapter : (lora_adapter){0};
        print_row(b, "linear forward", sizes, forward, c, weight + 4.0 * (double)(M * (N + K)), flops);
        if (M >= 2048 || b->tiny) print_row(b, "linear backward", sizes, backward, c, weight + 4.0 * (double)(M * (N + K)), flops);
    }
    const float *arrays[] = {adapter.A, adapter.B, adapter.dA, adapter.dB, c->x.data, c->y.data};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) lora_ctx_free(b->ctx, (void *)arrays[i]);
}

static void bench_linear(device_bench *b) {
    static const int64_t shapes[][2] = {{4096, 4096}, {1024, 4096}, {14336, 4096}, {4096, 14336}, {28672, 8192}};
    static const int64_t tokens[] = {1, 2, 4, 8, 16, 64, 2048, 4096}, few_tokens[] = {1, 5, 32};
    for (size_t s = 0; s < (b->tiny ? 1 : sizeof shapes / sizeof *shapes); s++)
        for (int nf4 = 1; nf4 >= 0; nf4--) {
            int64_t N = b->tiny ? 128 : shapes[s][0], K = b->tiny ? 128 : shapes[s][1], pool = b->tiny ? 2 * N * K : 1 << 29;
            void *memory_of;
            linear_case c = {.b = b, .N = N, .n = pool / (N * K) > 2 ? pool / (N * K) : 2};
            c.pool = random_weight(b, nf4, c.n * N, K, &memory_of);
            size_t n = b->tiny ? sizeof few_tokens / sizeof *few_tokens : sizeof tokens / sizeof *tokens;
            for (size_t t = 0; t < n; t++) bench_tokens(&c, nf4, b->tiny ? few_tokens[t] : tokens[t]);
            lora_ctx_free(b->ctx, memory_of);
        }
}

#endif
