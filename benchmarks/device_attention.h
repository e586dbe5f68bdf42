/* Attention of a device in training. */
#ifndef LORA_BENCHMARKS_DEVICE_ATTENTION_H
#define LORA_BENCHMARKS_DEVICE_ATTENTION_H

#include <math.h>

#include "benchmarks/device_rows.h"

typedef struct attention_case {
    lora_ctx *ctx;
    lora_attention_shape shape;
    lora_segments segments;
    lora_kv kv;
    lora_attention_gradient g;
    float *lse;
} attention_case;

static lora_status attention_forward(void *data, int64_t call, lora_error *err) {
    (void)call;
    attention_case *c = data;
    return lora_attention_forward(c->ctx, &c->shape, &c->segments, c->g.q, &c->kv, c->g.o, c->lse, err);
}

static lora_status attention_backward(void *data, int64_t call, lora_error *err) {
    (void)call;
    attention_case *c = data;
    return lora_attention_backward(c->ctx, &c->shape, &c->segments, &c->g, err);
}

static void *sent(device_bench *b, const void *host, size_t bytes) {
    lora_error err;
    void *p = on_device(b, bytes);
    must(lora_upload(b->ctx, p, host, bytes, &err), &err);
    must(lora_sync(b->ctx, &err), &err);
    return p;
}

/* One sequence of T tokens; the flops are those of the pairs that a query sees: 4 D forward, 10 D backward. */
static void bench_one_attention(device_bench *b, int64_t H, int64_t KV, int64_t D, int64_t T) {
    const int32_t cu[2] = {0, (int32_t)T};
    const int64_t start = 0, length = T;
    int64_t Q = H * D, W = KV * D;
    attention_case c = {.ctx = b->ctx, .shape = {.n_heads = H, .n_kv_heads = KV, .head_dim = D, .scale = (float)(1 / sqrt((double)D))}};
    c.segments = (lora_segments){.n = 1, .cu_seqlens = cu, .on_device = sent(b, cu, sizeof cu)};
    c.g = (lora_attention_gradient){.q = matrix(b, T, Q),
                                    .k = matrix(b, T, W),
                                    .v = matrix(b, T, W),
                                    .o = matrix(b, T, Q),
                                    .dout = matrix(b, T, Q),
                                    .dq = matrix(b, T, Q),
                                    .dk = matrix(b, T, W),
                                    .dv = matrix(b, T, W)};
    c.g.lse = c.lse = floats(b, T * H);
    c.kv = (lora_kv){.k = c.g.k.data,
                     .v = c.g.v.data,
                     .ldk = W,
                     .ldv = W,
                     .start = sent(b, &start, sizeof start),
                     .length = sent(b, &length, sizeof length)};
    char sizes[128];
    snprintf(sizes, sizeof sizes, "\"heads\": %lld, \"kv_heads\": %lld, \"head_dim\": %lld, \"tokens\": %lld, ", (long long)H,
             (long long)KV, (long long)D, (long long)T);
    double pairs = (double)H * (double)T * (double)(T + 1) / 2, forward_bytes = 8.0 * (double)(T * (Q + W));
    print_row(b, "attention forward", sizes, attention_forward, &c, forward_bytes, 4 * (double)D * pairs);
    print_row(b, "attention backward", sizes, attention_backward, &c, 2 * forward_bytes, 10 * (double)D * pairs);
    void *arrays[] = {(void *)c.segments.on_device,
                      c.g.q.data,
                      c.g.k.data,
                      c.g.v.data,
                      c.g.o.data,
                      c.g.dout.data,
                      c.g.dq.data,
                      c.g.dk.data,
                      c.g.dv.data,
                      c.lse,
                      (void *)c.kv.start,
                      (void *)c.kv.length};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) lora_ctx_free(b->ctx, arrays[i]);
}

static void bench_attention(device_bench *b) {
    static const int64_t shapes[][4] = {{32, 8, 64, 2048},  {32, 8, 128, 2048}, {32, 8, 128, 4096},
                                        {32, 8, 128, 8192}, {64, 8, 128, 2048}, {96, 96, 128, 2048}};
    if (b->tiny) bench_one_attention(b, 2, 1, 16, 40);
    for (size_t i = 0; !b->tiny && i < sizeof shapes / sizeof *shapes; i++)
        bench_one_attention(b, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3]);
}

#endif
