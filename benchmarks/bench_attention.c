/* Attention as a share of the machine's own float32 FMA peak, measured in the same repetition by register-only FMAs on all
 * the threads. The work counted is that of the pairs of a query and a key that it sees: 4 D flops forward, 10 D backward.
 * Contestants are interleaved; printed are the median and the best share. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "benchmarks/bench.h"

enum { REPETITIONS = 15, MAX_SEGMENTS = 16 };

/* Rows of qkv are [q | k | v], as in the decoder. */
typedef struct batch {
    lora_attention_shape shape;
    int64_t n, length, M, q_width, kv_width, ld;
    int32_t cu[MAX_SEGMENTS + 1];
    int64_t kv_start[MAX_SEGMENTS], kv_length[MAX_SEGMENTS];
    float *qkv, *dqkv, *out, *dout, *lse;
} batch;

static batch make_batch(int64_t H, int64_t KV, int64_t D, int64_t window, int64_t n, int64_t length) {
    batch b = {.shape = {.n_heads = H, .n_kv_heads = KV, .head_dim = D, .scale = (float)(1.0 / sqrt((double)D)), .sliding_window = window},
               .n = n,
               .length = length,
               .M = n * length};
    b.q_width = H * D;
    b.kv_width = KV * D;
    b.ld = b.q_width + 2 * b.kv_width;
    b.qkv = noise(b.M * b.ld);
    b.dqkv = noise(b.M * b.ld);
    b.out = noise(b.M * b.q_width);
    b.dout = noise(b.M * b.q_width);
    b.lse = noise(b.M * H);
    for (int64_t s = 0; s < n; s++) {
        b.cu[s + 1] = (int32_t)((s + 1) * length);
        b.kv_start[s] = s * length;
        b.kv_length[s] = length;
    }
    return b;
}

static void free_batch(batch *b) {
    float *all[] = {b->qkv, b->dqkv, b->out, b->dout, b->lse};
    for (int i = 0; i < 5; i++) free(all[i]);
}

static double pairs(const batch *b) {
    double window = b->shape.sliding_window ? (double)b->shape.sliding_window : (double)b->length, T = (double)b->length;
    return (double)(b->n * b->shape.n_heads) * (window * (window + 1) / 2 + (T - window) * window);
}

typedef struct contestant {
    lora_precision precision;
    double forward[REPETITIONS], backward[REPETITIONS], both[REPETITIONS];
} contestant;

static void run(lora_ctx *ctx, const batch *b, contestant *c, int repetition, double peak) {
    lora_error err;
    int64_t Q = b->q_width, KV = b->kv_width;
    lora_segments segments = {.n = b->n, .cu_seqlens = b->cu, .on_device = b->cu};
    lora_mat qkv = lora_mat_f32(b->qkv, b->M, b->ld, b->ld), dqkv = lora_mat_f32(b->dqkv, b->M, b->ld, b->ld);
    lora_mat q = lora_mat_cols(qkv, 0, Q), k = lora_mat_cols(qkv, Q, KV), v = lora_mat_cols(qkv, Q + KV, KV),
             o = lora_mat_f32(b->out, b->M, Q, Q);
    lora_kv kv = {.k = k.data, .v = v.data, .ldk = b->ld, .ldv = b->ld, .start = b->kv_start, .length = b->kv_length};
    lora_attention_gradient gradient = {.q = q,
                                        .k = k,
                                        .v = v,
                                        .o = o,
                                        .dout = lora_mat_f32(b->dout, b->M, Q, Q),
                                        .lse = b->lse,
                                        .dq = lora_mat_cols(dqkv, 0, Q),
                                        .dk = lora_mat_cols(dqkv, Q, KV),
                                        .dv = lora_mat_cols(dqkv, Q + KV, KV)};
    double flop = pairs(b) * (double)b->shape.head_dim;
    must(lora_ctx_set_precision(ctx, c->precision, &err), &err);
    double start = now();
    must(lora_attention_forward(ctx, &b->shape, &segments, q, &kv, o, b->lse, &err), &err);
    double middle = now();
    must(lora_attention_backward(ctx, &b->shape, &segments, &gradient, &err), &err);
    double end = now();
    c->forward[repetition] = 4 * flop / (middle - start) / peak;
    c->backward[repetition] = 10 * flop / (end - middle) / peak;
    c->both[repetition] = 14 * flop / (end - start) / peak;
}

static void print_share(double *share) {
    qsort(share, REPETITIONS, sizeof *share, rising);
    printf("  %4.0f %4.0f", 100 * share[REPETITIONS / 2], 100 * share[REPETITIONS - 1]);
}

static void bench(lora_ctx *ctx, const char *what, batch b) {
    contestant all[2] = {{.precision = LORA_PRECISION_EXACT}, {.precision = LORA_PRECISION_FAST}};
    for (int c = 0; c < 2; c++) run(ctx, &b, all + c, 0, 1); /* memory of the first touch */
    for (int r = 0; r < REPETITIONS; r++) {
        double peak = lora_ctx_fma_peak(ctx);
        for (int c = 0; c < 2; c++) run(ctx, &b, all + c, r, peak);
    }
    printf("%-12s %7d %5lld x %-5lld %6lld", what, lora_ctx_threads(ctx), (long long)b.n, (long long)b.length,
           (long long)b.shape.sliding_window);
    for (int c = 0; c < 2; c++) {
        print_share(all[c].forward);
        print_share(all[c].backward);
        print_share(all[c].both);
        printf("   ");
    }
    printf("\n");
    fflush(stdout);
    free_batch(&b);
}

int main(void) {
    for (int threads = 1; threads <= 2; threads++) {
        lora_ctx *ctx;
        lora_error err;
        must(lora_ctx_create(&(lora_ctx_options){.n_threads = threads, .isa = LORA_ISA_AUTO}, &ctx, &err), &err);
        must(lora_ctx_set_precision(ctx, LORA_PRECISION_FAST, &err), &err);
        if (threads == 1)
            printf("%% of the float32 FMA peak, median and best of %d. Rung %s, fast operands %s\n"
                   "                                             exact                               fast\n"
                   "shape        threads   segments    window    forward   backward       both      forward   backward       both\n",
                   REPETITIONS, lora_isa_name(lora_ctx_isa(ctx)), lora_ctx_operands(ctx));
        bench(ctx, "135M", make_batch(9, 3, 64, 0, 1, 512));
        bench(ctx, "135M", make_batch(9, 3, 64, 0, 4, 512));
        bench(ctx, "1.1B", make_batch(32, 4, 64, 0, 1, 512));
        bench(ctx, "1.1B long", make_batch(32, 4, 64, 0, 1, 2048));
        bench(ctx, "8 of 128", make_batch(8, 8, 128, 0, 1, 1024));
        bench(ctx, "windows", make_batch(8, 4, 128, 256, 1, 2048));
        lora_ctx_destroy(ctx);
    }
    return 0;
}
