/* Decoding: tokens per second of an NF4 decoder with random weights, beside what the machine can read and what the product
 * itself does from the cache, measured in the same run on the same threads.
 * Usage   bench_decode [threads ...]       Times are the best over the tokens of a run (batch: one token of each sequence). */
#define _DEFAULT_SOURCE /* madvise */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "benchmarks/random_decoder.h"

enum { PROMPT = 64, TOKENS = 24, CONTEXT = 256, MAX_BATCH = 16 };

/* --- calibration --- */

enum { PRECISIONS = 3 }; /* exact, fast and int8, in turn */

/* bytes/s of codes and scales when they come from the second-level caches */
static void in_cache_speed(lora_ctx *ctx, double *speed) {
    lora_error err;
    int64_t N = 256 * lora_ctx_threads(ctx), K = 2048;
    double bytes = 0, best[PRECISIONS] = {1e9, 1e9, 1e9};
    lora_weight w = random_nf4(N, K, &bytes);
    float *x = random_floats(K, 1, 3), *y = memory((size_t)N * sizeof *y);
    lora_linear_layer layer = {.w = &w, .y = lora_mat_f32(y, 1, N, N)};
    for (int i = 0; i < 300; i++)
        for (int p = 0; p < PRECISIONS; p++) {
            must(lora_ctx_set_precision(ctx, (lora_precision)p, &err), &err);
            double start = now();
            for (int j = 0; j < 4; j++) must(lora_linear_forward(ctx, lora_mat_f32(x, 1, K, K), 1, &layer, &err), &err);
            double time = (now() - start) / 4;
            if (time < best[p]) best[p] = time;
        }
    for (int p = 0; p < PRECISIONS; p++) speed[p] = bytes / best[p];
}

typedef struct step {
    double prefill, decode; /* seconds */
} step;

/* The prompts of batch sequences, and one token for each. */
static void step_time(model *m, const shape *s, int64_t batch, step *best) {
    lora_error err;
    lora_kv_cache *caches[PRECISIONS];
    int32_t cu[MAX_BATCH + 1], sequences[MAX_BATCH], prompt[PROMPT], ids[MAX_BATCH];
    float *logits = memory((size_t)(batch * s->vocab) * sizeof *logits);
    for (int32_t i = 0; i < PROMPT; i++) prompt[i] = i * 7 + 3;
    for (int32_t i = 0; i <= batch; i++) cu[i] = i;
    for (int p = 0; p < PRECISIONS; p++) {
        must(lora_kv_cache_create(m->decoder, batch, CONTEXT, &caches[p], &err), &err);
        must(lora_decoder_set_precision(m->decoder, (lora_precision)p, &err), &err);
        best[p] = (step){.prefill = 1e9, .decode = 1e9};
        for (int32_t i = 0; i < batch; i++) {
            sequences[i] = i;
            ids[i] = 11 + i;
            double start = now();
            must(lora_decoder_decode(m->decoder, caches[p], 1, (int32_t[]){0, PROMPT}, &i, prompt, NULL, logits, &err), &err);
            best[p].prefill = fmin(best[p].prefill, now() - start);
        }
    }
    for (int i = 0; i < TOKENS; i++)
        for (int p = 0; p < PRECISIONS; p++) {
            must(lora_decoder_set_precision(m->decoder, (lora_precision)p, &err), &err);
            double start = now();
            must(lora_decoder_decode(m->decoder, caches[p], batch, cu, sequences, ids, NULL, logits, &err), &err);
            best[p].decode = fmin(best[p].decode, now() - start);
        }
    for (int p = 0; p < PRECISIONS; p++) lora_kv_cache_destroy(caches[p]);
    free(logits);
}

static void bench(lora_ctx *ctx, lora_pool *pool, const shape *s, model *m, const char *adapter) {
    double bandwidth = read_bandwidth(pool), in_cache[PRECISIONS];
    double bytes = m->nf4_bytes + m->head_bytes + m->adapter_bytes;
    in_cache_speed(ctx, in_cache);
    for (int64_t batch = 1; batch <= MAX_BATCH; batch *= 4) {
        step times[PRECISIONS];
        step_time(m, s, batch, times);
        for (int p = 0; p < PRECISIONS; p++) {
            double time = times[p].decode;
            /* what the step would take if the products ran as from the cache and the dense weights at the speed of memory */
            double floor = m->nf4_bytes / fmin(in_cache[p], bandwidth) + (bytes - m->nf4_bytes) / bandwidth;
            printf("%-5s %7s %9s %7d %6lld %9.1f %8.1f %10.1f (%3.0f %%) %10.1f", s->name, adapter, lora_precision_name((lora_precision)p),
                   lora_ctx_threads(ctx), (long long)batch, 1e3 * time, (double)batch / time, bytes / time / 1e9,
                   100 * bytes / time / bandwidth, in_cache[p] / 1e9);
            if (batch == 1) printf(" (%3.0f %%) %8.1f", 100 * floor / time, PROMPT / times[p].prefill);
            printf("\n");
        }
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    lora_error err;
    printf("NF4 decoding, %s, context %d. bytes: codes, scales, head in bfloat16 and adapters, once per step, and their share of the read\n"
           "bandwidth; in cache: the product's own GB/s from the second-level caches, and how much of that speed the step keeps, memory\n"
           "allowing; prefill: tokens/s of the context\n"
           "shape adapter precision threads  batch   ms/step tokens/s  GB/s of bytes   in cache GB/s    prefill\n",
           lora_isa_name(lora_cpu_best_isa()), PROMPT);
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        lora_ctx *ctx;
        must(lora_ctx_create(NULL, &ctx, &err), &err);
        model m = build(ctx, &SHAPES[i], false);
        for (int adapter = 0; adapter < 2; adapter++) {
            if (adapter) add_adapters(&m, &SHAPES[i]);
            for (int t = 1; t <= (argc > 1 ? argc - 1 : 2); t++) {
                int threads = argc > 1 ? atoi(argv[t]) : t;
                lora_mem mem;
                lora_pool *pool;
                lora_mem_init(&mem);
                must(lora_pool_create(&mem, threads, &pool, &err), &err);
                must(lora_ctx_set_threads(ctx, threads, &err), &err);
                bench(ctx, pool, &SHAPES[i], &m, adapter ? "r=16" : "none");
                lora_pool_destroy(pool);
            }
        }
        lora_decoder_destroy(m.decoder);
        lora_ctx_destroy(ctx);
    }
    return 0;
}
