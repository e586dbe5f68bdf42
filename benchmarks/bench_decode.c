/* Decoding: tokens per second of an NF4 decoder with random weights, beside what the machine can read and what the product
 * itself does from the cache, measured in the same run on the same threads.
 * Usage   bench_decode [threads ...]       Times are the best over the tokens of a run (batch: one token of each sequence). */
#define _DEFAULT_SOURCE /* madvise */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <math.h>

#include "benchmarks/memory_speed.h"
#include "lora_c/base/philox.h"

enum { RANK = 16, PROMPT = 64, TOKENS = 24, CONTEXT = 256, MAX_BATCH = 16 };

typedef struct shape {
    const char *name;
    int64_t hidden, layers, heads, kv_heads, mlp, vocab;
    bool tied;
} shape;

static const shape SHAPES[] = {
    {.name = "135M", .hidden = 576, .layers = 30, .heads = 9, .kv_heads = 3, .mlp = 1536, .vocab = 49152, .tied = true},
    {.name = "1.1B", .hidden = 2048, .layers = 22, .heads = 32, .kv_heads = 4, .mlp = 5632, .vocab = 32000},
};

/* --- random weights --- */

static float *random_floats(int64_t n, float scale, uint64_t seed) {
    float *p = memory((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = scale * (lora_philox_uniform(seed, 1, (uint64_t)i) - 0.5f);
    return p;
}

/* Double-quantized; scales near 0.02 so that activations stay finite. */
static lora_weight random_nf4(int64_t rows, int64_t cols, double *bytes) {
    int64_t blocks = rows * cols / 64, nested = (blocks + 255) / 256;
    uint8_t *codes = memory((size_t)(rows * cols / 2 + 64)), *absmax = memory((size_t)blocks + 64);
    float *nested_absmax = memory((size_t)nested * sizeof(float));
    random_bytes(codes, (size_t)(rows * cols / 2), (uint64_t)(rows + cols));
    random_bytes(absmax, (size_t)blocks, 7);
    for (int64_t i = 0; i < nested; i++) nested_absmax[i] = 0.01f;
    lora_nf4 nf4 = {.rows = rows,
                    .cols = cols,
                    .block_size = 64,
                    .lut = lora_nf4_lut(),
                    .codes = codes,
                    .absmax_codes = absmax,
                    .nested_absmax = nested_absmax,
                    .nested_map = lora_dynamic_map_signed(),
                    .nested_offset = 0.02f,
                    .nested_block_size = 256};
    *bytes += (double)(rows * cols / 2 + blocks + 4 * nested);
    return lora_weight_nf4(&nf4);
}

static lora_weight random_bf16(int64_t rows, int64_t cols) {
    uint16_t *p = memory((size_t)(rows * cols) * sizeof *p);
    random_bytes(p, (size_t)(rows * cols) * sizeof *p, 5);
    for (int64_t i = 0; i < rows * cols; i++) p[i] = (uint16_t)((p[i] & 0x807f) | 0x3c80); /* magnitude 0.016 to 0.03 */
    return lora_weight_bf16(p, rows, cols, cols);
}

/* --- calibration --- */

enum { PRECISIONS = 2 }; /* exact and fast, in turn */

/* bytes/s of codes and scales when they come from the second-level caches */
static void in_cache_speed(lora_ctx *ctx, double *speed) {
    lora_error err;
    int64_t N = 256 * lora_ctx_threads(ctx), K = 2048;
    double bytes = 0, best[PRECISIONS] = {1e9, 1e9};
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

/* --- a decoder --- */

typedef struct model {
    lora_decoder *decoder;
    double nf4_bytes, head_bytes, adapter_bytes;
    lora_adapter adapters[LORA_LAYER_MATRICES];
} model;

static model build(lora_ctx *ctx, const shape *s) {
    lora_error err;
    model m = {0};
    int64_t D = s->hidden / s->heads, KV = D * s->kv_heads;
    double *inv_freq = memory((size_t)(D / 2) * sizeof *inv_freq);
    for (int64_t i = 0; i < D / 2; i++) inv_freq[i] = 1.0 / (double)(1 + i * i);
    lora_decoder_config config = {.hidden_size = s->hidden,
                                  .intermediate_size = s->mlp,
                                  .num_hidden_layers = s->layers,
                                  .num_attention_heads = s->heads,
                                  .num_key_value_heads = s->kv_heads,
                                  .head_dim = D,
                                  .vocab_size = s->vocab,
                                  .max_position_embeddings = 2048,
                                  .norm = LORA_NORM_RMS,
                                  .norm_eps = 1e-5,
                                  .pre_norm = true,
                                  .activation = LORA_SILU,
                                  .gated_mlp = true,
                                  .tie_word_embeddings = s->tied,
                                  .embedding_scale = 1,
                                  .residual_scale = 1,
                                  .attention_scale = 1 / sqrt((double)D),
                                  .logits = {.scale = 1},
                                  .n_ropes = 1,
                                  .ropes = {{.inv_freq = inv_freq, .rotary = D, .scale = 1}}};
    must(lora_decoder_create(ctx, &config, &m.decoder, &err), &err);
    const int64_t shapes[LORA_LAYER_MATRICES][2] = {{s->hidden, s->hidden}, {KV, s->hidden},     {KV, s->hidden},    {s->hidden, s->hidden},
                                                    {s->mlp, s->hidden},    {s->mlp, s->hidden}, {s->hidden, s->mlp}};
    float *ones = random_floats(s->hidden, 0, 1);
    for (int64_t i = 0; i < s->hidden; i++) ones[i] = 1;
    for (int64_t layer = 0; layer < s->layers; layer++) {
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            lora_weight w = random_nf4(shapes[slot][0], shapes[slot][1], &m.nf4_bytes);
            must(lora_decoder_set_matrix(m.decoder, layer, (lora_matrix_slot)slot, &w, NULL, &err), &err);
        }
        must(lora_decoder_set_vector(m.decoder, layer, LORA_INPUT_LAYERNORM, ones, s->hidden, NULL, &err), &err);
        must(lora_decoder_set_vector(m.decoder, layer, LORA_POST_ATTENTION_LAYERNORM, ones, s->hidden, NULL, &err), &err);
    }
    must(lora_decoder_set_vector(m.decoder, -1, LORA_FINAL_NORM, ones, s->hidden, NULL, &err), &err);
    lora_weight table = random_bf16(s->vocab, s->hidden);
    must(lora_decoder_set_matrix(m.decoder, -1, LORA_EMBED_TOKENS, &table, NULL, &err), &err);
    if (!s->tied) table = random_bf16(s->vocab, s->hidden);
    if (!s->tied) must(lora_decoder_set_matrix(m.decoder, -1, LORA_LM_HEAD, &table, NULL, &err), &err);
    m.head_bytes = 2.0 * (double)(s->vocab * s->hidden);
    return m;
}

static void add_adapters(model *m, const shape *s) {
    lora_error err;
    int64_t KV = s->hidden / s->heads * s->kv_heads;
    const int64_t shapes[LORA_LAYER_MATRICES][2] = {{s->hidden, s->hidden}, {KV, s->hidden},     {KV, s->hidden},    {s->hidden, s->hidden},
                                                    {s->mlp, s->hidden},    {s->mlp, s->hidden}, {s->hidden, s->mlp}};
    for (int64_t layer = 0; layer < s->layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            int64_t N = shapes[slot][0], K = shapes[slot][1];
            lora_adapter a = {.rank = RANK, .A = random_floats(RANK * K, 0.02f, 1), .B = random_floats(N * RANK, 0.02f, 2), .scale = 2};
            must(lora_decoder_set_adapter(m->decoder, layer, (lora_matrix_slot)slot, &a, &err), &err);
            m->adapter_bytes += 4.0 * (double)(RANK * (N + K));
        }
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
        lora_decoder_set_precision(m->decoder, (lora_precision)p);
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
            lora_decoder_set_precision(m->decoder, (lora_precision)p);
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
        model m = build(ctx, &SHAPES[i]);
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
