/* Decoders with random weights, and adapters on all their matrices. */
#ifndef LORA_BENCHMARKS_RANDOM_DECODER_H
#define LORA_BENCHMARKS_RANDOM_DECODER_H

#include <math.h>

#include "benchmarks/memory_speed.h"
#include "lora_c/base/philox.h"

enum { RANK = 16 };

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

static inline float *random_floats(int64_t n, float scale, uint64_t seed) {
    float *p = memory((size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = scale * (lora_philox_uniform(seed, 1, (uint64_t)i) - 0.5f);
    return p;
}

/* Double-quantized; scales near 0.02 so that activations stay finite. */
static inline lora_weight random_nf4(int64_t rows, int64_t cols, double *bytes) {
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

static inline lora_weight random_bf16(int64_t rows, int64_t cols) {
    uint16_t *p = memory((size_t)(rows * cols) * sizeof *p);
    random_bytes(p, (size_t)(rows * cols) * sizeof *p, 5);
    for (int64_t i = 0; i < rows * cols; i++) p[i] = (uint16_t)((p[i] & 0x807f) | 0x3c80); /* magnitude 0.016 to 0.03 */
    return lora_weight_bf16(p, rows, cols, cols);
}

/* --- decoders --- */

typedef struct model {
    lora_decoder *decoder;
    double nf4_bytes, head_bytes, adapter_bytes;
    lora_adapter adapters[LORA_LAYER_MATRICES];
} model;

/* Layers in NF4, or in bfloat16. */
static inline model build(lora_ctx *ctx, const shape *s, bool dense) {
    lora_error err;
    model m = {0};
    int64_t D = s->hidden / s->heads;
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
    float *ones = random_floats(s->hidden, 0, 1);
    for (int64_t i = 0; i < s->hidden; i++) ones[i] = 1;
    for (int64_t layer = 0; layer < s->layers; layer++) {
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            int64_t N, K;
            lora_decoder_matrix_shape(m.decoder, (lora_matrix_slot)slot, &N, &K);
            lora_weight w = dense ? random_bf16(N, K) : random_nf4(N, K, &m.nf4_bytes);
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

/* Of a matrix; seed: others have other values. */
static inline lora_adapter random_adapter(const lora_decoder *decoder, int slot, uint64_t seed) {
    int64_t N, K;
    lora_decoder_matrix_shape(decoder, (lora_matrix_slot)slot, &N, &K);
    return (lora_adapter){
        .rank = RANK, .A = random_floats(RANK * K, 0.02f, seed), .B = random_floats(N * RANK, 0.02f, seed + 1), .scale = 2};
}

/* Each matrix has memory of its own, as in a model. */
static inline void add_adapters(model *m, const shape *s) {
    lora_error err;
    for (int64_t layer = 0; layer < s->layers; layer++)
        for (int slot = 0; slot < LORA_LAYER_MATRICES; slot++) {
            lora_adapter a = random_adapter(m->decoder, slot, 1);
            int64_t N, K;
            lora_decoder_matrix_shape(m->decoder, (lora_matrix_slot)slot, &N, &K);
            must(lora_decoder_set_adapter(m->decoder, layer, (lora_matrix_slot)slot, &a, &err), &err);
            m->adapter_bytes += 4.0 * (double)(RANK * (N + K));
        }
}

#endif
