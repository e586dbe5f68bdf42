/* The matrix product as a share of the machine's own float32 FMA peak, measured in the same repetition by register-only
 * FMAs on all the threads. Contestants are interleaved; printed are the median and the best share. An argument chooses
 * weights by a part of their name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "benchmarks/bench.h"
#include "lora_c/ops/ctx.h"

enum { REPETITIONS = 9, LAYER_BUFFERS = 12, CONTESTANTS = 6 };

typedef struct layer {
    int64_t M, N, K;
    lora_weight w;
    lora_adapter adapter;
    float *x, *y, *dx;
    void *memory[LAYER_BUFFERS]; /* x, y, dx, w; four of NF4; four of an adapter */
    int n_memory;
} layer;

static void *keep(layer *l, void *p) {
    if (l->n_memory == LAYER_BUFFERS) abort();
    return l->memory[l->n_memory++] = p;
}

static layer *make_layer(lora_ctx *ctx, lora_weight_kind kind, bool double_quant, int64_t M, int64_t N, int64_t K, int64_t rank) {
    layer *l = calloc(1, sizeof *l);
    lora_error err;
    *l = (layer){.M = M, .N = N, .K = K};
    l->x = keep(l, noise(M * K));
    l->y = keep(l, calloc((size_t)(M * N), sizeof(float)));
    l->dx = keep(l, calloc((size_t)(M * K), sizeof(float)));
    float *w = keep(l, noise(N * K));
    l->w = lora_weight_f32(w, N, K, K);
    if (kind == LORA_WEIGHT_BF16) {
        uint16_t *h = keep(l, malloc((size_t)(N * K) * 2 + 64));
        ctx->engine->kernels.convert.f32_to_bf16(N * K, w, h);
        l->w = lora_weight_bf16(h, N, K, K);
    } else if (kind == LORA_WEIGHT_NF4) {
        int64_t blocks = N * K / 64;
        uint8_t *codes = keep(l, malloc((size_t)(N * K / 2 + 64))), *absmax_codes = keep(l, malloc((size_t)blocks));
        float *absmax = keep(l, malloc((size_t)blocks * 4)), *nested = keep(l, malloc((size_t)(blocks / 256 + 1) * 4));
        must(lora_nf4_quantize(ctx, w, LORA_F32, N, K, 64, codes, absmax, &err), &err);
        lora_nf4 nf4 = {.rows = N,
                        .cols = K,
                        .block_size = 64,
                        .lut = lora_nf4_lut(),
                        .codes = codes,
                        .absmax = absmax,
                        .absmax_codes = absmax_codes,
                        .nested_absmax = nested,
                        .nested_map = lora_dynamic_map_signed(),
                        .nested_block_size = 256};
        if (double_quant) {
            must(lora_nf4_double_quantize(ctx, absmax, blocks, absmax_codes, nested, &nf4.nested_offset, &err), &err);
            nf4.absmax = NULL;
        }
        l->w = lora_weight_nf4(&nf4);
    }
    if (rank)
        l->adapter = (lora_adapter){.rank = rank,
                                    .A = keep(l, noise(rank * K)),
                                    .B = keep(l, noise(N * rank)),
                                    .scale = 2,
                                    .dA = keep(l, calloc((size_t)(rank * K), 4)),
                                    .dB = keep(l, calloc((size_t)(N * rank), 4))};
    return l;
}

static void free_layer(layer *l) {
    for (int i = 0; i < l->n_memory; i++) free(l->memory[i]);
    free(l);
}

typedef struct contestant {
    lora_precision precision;
    bool backward;
    double share[REPETITIONS];
} contestant;

static double run(lora_ctx *ctx, layer *l, const contestant *c) { /* useful flop/s */
    lora_error err;
    must(lora_ctx_set_precision(ctx, c->precision, &err), &err);
    const lora_adapter *a = l->adapter.rank ? &l->adapter : NULL;
    lora_mat x = lora_mat_f32(l->x, l->M, l->K, l->K), y = lora_mat_f32(l->y, l->M, l->N, l->N);
    lora_linear_layer output = {.w = &l->w, .adapter = a, .y = y};
    lora_linear_gradient gradient = {.dy = y, .w = &l->w, .adapter = a};
    double flop = 2.0 * (double)l->M * (double)l->N * (double)l->K, start = now();
    if (c->backward)
        must(lora_linear_backward(ctx, x, 1, &gradient, lora_mat_f32(l->dx, l->M, l->K, l->K), false, &err), &err);
    else
        must(lora_linear_forward(ctx, x, 1, &output, &err), &err);
    if (a) flop += (c->backward ? 5.0 : 2.0) * (double)(l->M * a->rank) * (double)(l->N + l->K);
    return flop / (now() - start);
}

static const char *wanted = ""; /* part of the name of a weight */

static void bench(lora_ctx *ctx, const char *what, layer *l) {
    if (!strstr(what, wanted)) {
        free_layer(l);
        return;
    }
    contestant all[CONTESTANTS] = {{.precision = LORA_PRECISION_EXACT}, {.precision = LORA_PRECISION_EXACT, .backward = true},
                                   {.precision = LORA_PRECISION_FAST},  {.precision = LORA_PRECISION_FAST, .backward = true},
                                   {.precision = LORA_PRECISION_INT8},  {.precision = LORA_PRECISION_INT8, .backward = true}};
    double peaks[REPETITIONS];
    for (int c = 0; c < CONTESTANTS; c++) run(ctx, l, all + c); /* memory of the first touch */
    for (int r = 0; r < REPETITIONS; r++) {
        peaks[r] = lora_ctx_fma_peak(ctx);
        for (int c = 0; c < CONTESTANTS; c++) all[c].share[r] = run(ctx, l, all + c) / peaks[r];
    }
    qsort(peaks, REPETITIONS, sizeof *peaks, rising);
    printf("%-12s %7d %5lld %5lld %5lld %7.0f", what, lora_ctx_threads(ctx), (long long)l->M, (long long)l->N, (long long)l->K,
           peaks[REPETITIONS / 2] / 1e9);
    for (int c = 0; c < CONTESTANTS; c++) {
        qsort(all[c].share, REPETITIONS, sizeof(double), rising);
        printf("   %4.0f %4.0f", 100 * all[c].share[REPETITIONS / 2], 100 * all[c].share[REPETITIONS - 1]);
    }
    printf("\n");
    fflush(stdout);
    free_layer(l);
}

int main(int argc, char **argv) {
    if (argc > 1) wanted = argv[1];
    for (int threads = 1; threads <= 2; threads++) {
        lora_ctx *ctx;
        lora_error err;
        must(lora_ctx_create(&(lora_ctx_options){.n_threads = threads, .isa = LORA_ISA_AUTO}, &ctx, &err), &err);
        must(lora_ctx_set_precision(ctx, LORA_PRECISION_FAST, &err), &err);
        if (threads == 1)
            printf(
                "%% of the float32 FMA peak, median and best of %d. Rung %s, fast operands %s\n"
                "                                         peak     exact       exact        fast        fast        int8        int8\n"
                "weight       threads     M     N     K GFLOP/s    forward    backward     forward    backward     forward    backward\n",
                REPETITIONS, lora_isa_name(lora_ctx_isa(ctx)), lora_ctx_operands(ctx));
        for (int64_t M = 512; M <= 2048; M *= 4)
            for (int64_t N = 2048; N <= 4096; N *= 2) bench(ctx, "NF4", make_layer(ctx, LORA_WEIGHT_NF4, false, M, N, N, 0));
        bench(ctx, "NF4 double", make_layer(ctx, LORA_WEIGHT_NF4, true, 512, 2048, 2048, 0));
        bench(ctx, "float32", make_layer(ctx, LORA_WEIGHT_F32, false, 512, 2048, 2048, 0));
        bench(ctx, "bfloat16", make_layer(ctx, LORA_WEIGHT_BF16, false, 512, 2048, 2048, 0));
        bench(ctx, "head", make_layer(ctx, LORA_WEIGHT_BF16, false, 128, 49152, 576, 0));
        bench(ctx, "135M q", make_layer(ctx, LORA_WEIGHT_NF4, true, 512, 576, 576, 0));
        bench(ctx, "135M q r=16", make_layer(ctx, LORA_WEIGHT_NF4, true, 512, 576, 576, 16));
        bench(ctx, "135M gate", make_layer(ctx, LORA_WEIGHT_NF4, true, 512, 1536, 576, 0));
        bench(ctx, "  r=16", make_layer(ctx, LORA_WEIGHT_NF4, true, 512, 1536, 576, 16));
        bench(ctx, "1.1B gate", make_layer(ctx, LORA_WEIGHT_NF4, true, 256, 5632, 2048, 0));
        bench(ctx, "  r=16", make_layer(ctx, LORA_WEIGHT_NF4, true, 256, 5632, 2048, 16));
        lora_ctx_destroy(ctx);
    }
    return 0;
}
