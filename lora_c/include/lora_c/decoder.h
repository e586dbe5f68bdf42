/* A Llama-family decoder: one forward and one backward over a packed batch, and KV-cache decoding.
 * Weights, gradients and adapters are borrowed: the caller keeps them alive while they are set. */
#ifndef LORA_C_DECODER_H
#define LORA_C_DECODER_H

#include <stdbool.h>

#include "lora_c/context.h"
#include "lora_c/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lora_decoder lora_decoder;
typedef struct lora_kv_cache lora_kv_cache;

typedef struct lora_decoder_config {
    int64_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim;
    int64_t vocab_size, max_position_embeddings;
    int64_t sliding_window;      /* 0: none */
    double rms_norm_eps;
    const double *rope_inv_freq; /* head_dim / 2 values, copied */
    double rope_scale;           /* multiplies cos and sin (yarn's attention factor); 1 otherwise */
    bool tie_word_embeddings;
} lora_decoder_config;

/* Matrices. Layer matrices first (layer = 0 …), then the two global ones (layer = -1). */
typedef enum lora_matrix_slot {
    LORA_Q_PROJ, LORA_K_PROJ, LORA_V_PROJ, LORA_O_PROJ, LORA_GATE_PROJ, LORA_UP_PROJ, LORA_DOWN_PROJ,
    LORA_LAYER_MATRICES,
    LORA_EMBED_TOKENS = LORA_LAYER_MATRICES,
    LORA_LM_HEAD, /* with tie_word_embeddings the embedding, until a head of its own is set */
} lora_matrix_slot;

/* Vectors: norms (required) and the biases of the seven layer matrices (optional, bias of matrix i = LORA_BIAS + i). */
typedef enum lora_vector_slot {
    LORA_INPUT_LAYERNORM, LORA_POST_ATTENTION_LAYERNORM,
    LORA_FINAL_NORM, /* layer = -1 */
    LORA_BIAS,
    LORA_VECTOR_SLOTS = LORA_BIAS + LORA_LAYER_MATRICES,
} lora_vector_slot;

lora_status lora_decoder_create(lora_ctx *ctx, const lora_decoder_config *config, lora_decoder **out,
                                lora_error *err) LORA_MUST_CHECK;
void lora_decoder_destroy(lora_decoder *decoder);

/** Sets a matrix; grad (same shape, float32, contiguous) makes it trainable, NULL freezes it. Shapes are checked. */
lora_status lora_decoder_set_matrix(lora_decoder *decoder, int64_t layer, lora_matrix_slot slot, const lora_weight *w,
                                    float *grad, lora_error *err) LORA_MUST_CHECK;
/** Sets a norm weight or a bias (n floats); grad as above. */
lora_status lora_decoder_set_vector(lora_decoder *decoder, int64_t layer, lora_vector_slot slot, const float *v,
                                    int64_t n, float *grad, lora_error *err) LORA_MUST_CHECK;
/** Sets the LoRA adapter of a layer matrix (copied struct, borrowed arrays); NULL removes it. dropout_stream is set by
 *  the decoder from (dropout_step, layer, slot), norm from the weight and the adapter at the start of each pass; a decode
 *  that only goes on with begun sequences keeps the norms of the pass before it. */
lora_status lora_decoder_set_adapter(lora_decoder *decoder, int64_t layer, lora_matrix_slot slot,
                                     const lora_adapter *adapter, lora_error *err) LORA_MUST_CHECK;

/** Trains n rows (n, H) of the embedding by token id and nothing else of it. embed_tokens must be a trained float32 matrix
 *  that exists for this: its rows are overwritten before each pass, its gradient is moved into grad (n, H) and cleared.
 *  ids are copied, rows and grad borrowed. n 0 ends it. */
lora_status lora_decoder_set_token_rows(lora_decoder *decoder, int64_t n, const int32_t *ids, const float *rows, float *grad,
                                        lora_error *err) LORA_MUST_CHECK;

typedef enum lora_recompute { LORA_RECOMPUTE_NONE, LORA_RECOMPUTE_LAYER } lora_recompute;
/** LAYER keeps one residual row per layer and computes the rest of a layer again in backward: same bits, less memory. */
void lora_decoder_set_recompute(lora_decoder *decoder, lora_recompute recompute);

/* A packed batch: no padding; segment s is tokens cu_seqlens[s] .. cu_seqlens[s+1]-1 and attends only to itself. */
typedef struct lora_batch {
    int64_t n_tokens, n_segments;
    const int32_t *input_ids;    /* (n_tokens) */
    const int32_t *cu_seqlens;   /* (n_segments + 1), starts with 0, ends with n_tokens, rises strictly */
    const int32_t *targets;      /* (n_tokens): the token that each position must predict; read where loss_weight != 0 */
    const float *loss_weight;    /* (n_tokens) */
    uint64_t dropout_step;       /* makes the dropout masks of this micro-batch its own */
} lora_batch;

/** loss_sum = sum of loss_weight * cross entropy. Gradients of grad_scale * loss_sum are added to every grad that is set.
 *  Stops below the lowest trainable module. Errors also when a required weight is missing (named). */
lora_status lora_decoder_forward_backward(lora_decoder *decoder, const lora_batch *batch, float grad_scale,
                                          double *loss_sum, lora_error *err) LORA_MUST_CHECK;
/** The same loss without gradients and without dropout. token_loss (n_tokens) or NULL. */
lora_status lora_decoder_loss(lora_decoder *decoder, const lora_batch *batch, double *loss_sum, float *token_loss,
                              lora_error *err) LORA_MUST_CHECK;
/** logits (n_tokens, vocab_size); targets and loss_weight are not read. */
lora_status lora_decoder_logits(lora_decoder *decoder, const lora_batch *batch, float *logits,
                                lora_error *err) LORA_MUST_CHECK;

/** Bytes of the activation arena for n_tokens in training (or evaluation), known before the start. */
int64_t lora_decoder_arena_bytes(const lora_decoder *decoder, int64_t n_tokens, bool training);

/** Keys and values of up to n_sequences sequences of up to max_tokens each. */
lora_status lora_kv_cache_create(lora_decoder *decoder, int64_t n_sequences, int64_t max_tokens, lora_kv_cache **out,
                                 lora_error *err) LORA_MUST_CHECK;
void lora_kv_cache_destroy(lora_kv_cache *cache);
int64_t lora_kv_cache_length(const lora_kv_cache *cache, int64_t sequence);
int64_t lora_kv_cache_sequences(const lora_kv_cache *cache);
int64_t lora_kv_cache_max_tokens(const lora_kv_cache *cache);
/** Cuts a sequence to length (0: forget all); larger than the present length is refused. */
lora_status lora_kv_cache_truncate(lora_kv_cache *cache, int64_t sequence, int64_t length, lora_error *err) LORA_MUST_CHECK;

/** Appends the tokens of each segment s to sequence sequences[s] (distinct) and writes the logits of each segment's last
 *  token to logits (n_segments, vocab_size). Prefill and decode are the same call; no dropout. */
lora_status lora_decoder_decode(lora_decoder *decoder, lora_kv_cache *cache, int64_t n_segments,
                                const int32_t *cu_seqlens, const int32_t *sequences, const int32_t *input_ids,
                                float *logits, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
