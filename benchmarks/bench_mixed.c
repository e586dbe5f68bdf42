/* One decode of sequences with different adapters against one adapter for all: 135M, a step of one token for each sequence, in pairs by
 * turns. Two of eight sequences have each of three adapters, two the bare weights.
 * Usage   bench_mixed [threads ...] */
#define _DEFAULT_SOURCE /* madvise */
#include "benchmarks/random_decoder.h"

enum { SETS = 3, BATCH = 8, CONTEXT = 1024, PAIRS = 9, TOKENS = 12 };

typedef enum kind { ONE, MIXED, BARE, KINDS } kind; /* the decoder's own adapter for all; different ones; none */

static lora_decoder_adapters *new_set(lora_decoder *decoder, const shape *s, uint64_t seed) {
    lora_error err;
    lora_decoder_adapters *set;
    must(lora_decoder_adapters_create(decoder, &set, &err), &err);
    for (int64_t layer = 0; layer < s->layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            lora_adapter a = random_adapter(decoder, slot, seed);
            must(lora_decoder_adapters_set(set, layer, (lora_matrix_slot)slot, &a, &err), &err);
        }
    return set;
}

/* The median of a few steps. */
static double step(lora_decoder *decoder, lora_kv_cache *cache, const lora_decoder_adapters *const *adapters, float *logits) {
    lora_error err;
    double times[TOKENS];
    int32_t cu[BATCH + 1], sequences[BATCH], ids[BATCH];
    for (int32_t i = 0; i <= BATCH; i++) cu[i] = i;
    for (int32_t i = 0; i < BATCH; i++) sequences[i] = i, ids[i] = 11 + i;
    for (int i = 0; i < TOKENS; i++) {
        double start = now();
        must(lora_decoder_decode(decoder, cache, BATCH, cu, sequences, ids, adapters, logits, &err), &err);
        times[i] = now() - start;
    }
    for (int32_t i = 0; i < BATCH; i++) must(lora_kv_cache_truncate(cache, i, 0, &err), &err);
    qsort(times, TOKENS, sizeof *times, rising);
    return times[TOKENS / 2];
}

static void bench(lora_ctx *ctx, model *m, const shape *s, const lora_decoder_adapters *const *mixed, const char *base) {
    static const lora_decoder_adapters *const none[BATCH] = {NULL};
    lora_error err;
    lora_kv_cache *cache;
    double times[KINDS][PAIRS], ratios[PAIRS];
    float *logits = memory((size_t)(BATCH * s->vocab) * sizeof *logits);
    const lora_decoder_adapters *const *adapters[KINDS] = {NULL, mixed, none};
    must(lora_kv_cache_create(m->decoder, BATCH, CONTEXT, &cache, &err), &err);
    for (int precision = LORA_PRECISION_EXACT; precision <= LORA_PRECISION_FAST; precision++) {
        must(lora_decoder_set_precision(m->decoder, (lora_precision)precision, &err), &err);
        for (int i = 0; i < PAIRS; i++) {
            for (int k = 0; k < KINDS; k++) {
                int turn = i % 2 ? KINDS - 1 - k : k;
                times[turn][i] = step(m->decoder, cache, adapters[turn], logits);
            }
            ratios[i] = times[ONE][i] / times[MIXED][i];
        }
        qsort(ratios, PAIRS, sizeof *ratios, rising);
        for (int k = 0; k < KINDS; k++) qsort(times[k], PAIRS, sizeof *times[k], rising);
        printf("%-8s %9s %7d %9.1f %9.1f %9.1f %9.3f (%.3f to %.3f)\n", base, lora_precision_name((lora_precision)precision),
               lora_ctx_threads(ctx), BATCH / times[BARE][PAIRS / 2], BATCH / times[ONE][PAIRS / 2], BATCH / times[MIXED][PAIRS / 2],
               ratios[PAIRS / 2], ratios[PAIRS / 4], ratios[3 * PAIRS / 4]);
        fflush(stdout);
    }
    lora_kv_cache_destroy(cache);
    free(logits);
}

int main(int argc, char **argv) {
    lora_error err;
    const shape *s = &SHAPES[0];
    printf("%s, %d sequences, adapters of rank %d on all matrices: tokens/s without adapters, with one for all, and with %d and the bare\n"
           "weights for two sequences each; mixed by one: the median of %d pairs (quartiles)\n"
           "base     precision threads      none       one     mixed    mixed by one\n",
           s->name, BATCH, RANK, SETS, PAIRS);
    for (int dense = 1; dense >= 0; dense--) {
        lora_ctx *ctx;
        must(lora_ctx_create(NULL, &ctx, &err), &err);
        model m = build(ctx, s, dense);
        add_adapters(&m, s);
        lora_decoder_adapters *sets[SETS + 1] = {NULL};
        const lora_decoder_adapters *mixed[BATCH];
        for (int i = 0; i < SETS; i++) sets[i] = new_set(m.decoder, s, 10 * (uint64_t)(i + 1));
        for (int i = 0; i < BATCH; i++) mixed[i] = sets[i % (SETS + 1)]; /* not side by side */
        for (int t = 1; t <= (argc > 1 ? argc - 1 : 2); t++) {
            must(lora_ctx_set_threads(ctx, argc > 1 ? atoi(argv[t]) : t, &err), &err);
            bench(ctx, &m, s, mixed, dense ? "bfloat16" : "NF4");
        }
        for (int i = 0; i < SETS; i++) lora_decoder_adapters_destroy(sets[i]);
        lora_decoder_destroy(m.decoder);
        lora_ctx_destroy(ctx);
    }
    return 0;
}
