/* A decoder: one forward and one backward over a packed batch, and KV-cache decoding. What differs between the families
 * of models is data in lora_decoder_config.
 * Weights, gradients and adapters are borrowed: the caller keeps them alive while they are set. They lie at addresses of the device of
 * the decoder's context (place.h brings frozen ones there, memory.h makes others); ids, targets, weights of the loss, and the losses,
 * logits and hidden states that come back are the caller's, on the host. */
#ifndef LORA_C_DECODER_H
#define LORA_C_DECODER_H

#include <stdbool.h>

#include "lora_c/context.h"
#include "lora_c/linear.h"
#include "lora_c/nn.h"
#include "lora_c/types.h"
#include "lora_c/watch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lora_decoder lora_decoder;
typedef struct lora_kv_cache lora_kv_cache;
typedef struct lora_decoder_adapters lora_decoder_adapters;

enum { LORA_MAX_ROPES = 2, LORA_MAX_LAYERS = 1 << 16 };

/* One table of rotations. */
typedef struct lora_rope_config {
    const double *inv_freq; /* rotary / 2 values, copied */
    int64_t rotary;         /* elements of each head that are rotated, from its start: even, <= head_dim */
    double scale;           /* multiplies cos and sin (yarn's and longrope's attention factor); 1 otherwise */
} lora_rope_config;

typedef enum lora_qk_norm {
    LORA_QK_NORM_NONE,
    LORA_QK_NORM_HEAD, /* each head of q and k by itself (Qwen 3, Gemma 3) */
    LORA_QK_NORM_ROW,  /* all heads together (OLMo 2) */
} lora_qk_norm;

/* What a classifier is asked, and so its loss; transformers' problem_type. */
typedef enum lora_problem {
    LORA_SINGLE_LABEL, /* which one of the labels: cross entropy */
    LORA_REGRESSION,   /* numbers: mean squared error */
    LORA_MULTI_LABEL,  /* each label, yes or no: binary cross entropy of logits */
} lora_problem;

/* One layer:   x2 = x + residual_scale * post(o_proj(attention(pre(x))))
 *              x' = x2 + residual_scale * post(down_proj(mlp(pre(x2))))         pre, post: norms, where switched on */
typedef struct lora_decoder_config {
    int64_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim;
    int64_t vocab_size, max_position_embeddings;
    lora_norm_kind norm;
    double norm_eps, norm_weight_offset;
    bool pre_norm, post_norm; /* at least one: norms of the inputs, of the outputs of attention and MLP */
    lora_qk_norm qk_norm;     /* before the rotation */
    lora_activation activation;
    bool gated_mlp;         /* activation(gate) * up; else activation(up) and no gate_proj */
    bool learned_positions; /* an embedding of the position is added to that of the token */
    bool tie_word_embeddings;
    double embedding_scale, residual_scale;
    double attention_scale;   /* of q k^T, usually 1 / sqrt(head_dim) */
    double attention_softcap; /* 0: none */
    lora_logit_map logits;
    const int32_t *sliding_window; /* (num_hidden_layers), 0: none; copied. NULL: none anywhere */
    int n_ropes;                   /* 0: no rotation */
    lora_rope_config ropes[LORA_MAX_ROPES];
    const int8_t *layer_rope; /* (num_hidden_layers): which of ropes, -1: none; copied. NULL: 0 everywhere */
    int64_t rope_switch;      /* 0, or with two ropes and no layer_rope: segments longer than this use the second */
    int64_t num_labels;       /* 0: a language model. Else a classifier: LORA_LM_HEAD is (num_labels, hidden_size), tied to nothing,
                               * logits are of labels, and logits.scale is 1 and logits.softcap 0 */
    lora_problem problem;     /* of a classifier */
} lora_decoder_config;

/* Matrices. Layer matrices first (layer = 0 …), then the two global ones (layer = -1). */
typedef enum lora_matrix_slot {
    LORA_Q_PROJ,
    LORA_K_PROJ,
    LORA_V_PROJ,
    LORA_O_PROJ,
    LORA_GATE_PROJ,
    LORA_UP_PROJ,
    LORA_DOWN_PROJ,
    LORA_LAYER_MATRICES,
    LORA_EMBED_TOKENS = LORA_LAYER_MATRICES,
    LORA_LM_HEAD,         /* with tie_word_embeddings the embedding, until a head of its own is set; of a classifier its score */
    LORA_EMBED_POSITIONS, /* (max_position_embeddings, hidden_size), with learned_positions */
    LORA_MATRIX_SLOTS,
} lora_matrix_slot;

/* Vectors: the norms that the configuration switches on (required), their biases for LayerNorm (required), and the
 * biases of the layer matrices (optional). Bias of norm i = LORA_NORM_BIAS + i, of matrix i = LORA_BIAS + i. */
typedef enum lora_vector_slot {
    LORA_INPUT_LAYERNORM,
    LORA_POST_ATTENTION_LAYERNORM, /* pre_norm: before attention, before the MLP (Llama's names) */
    LORA_ATTENTION_OUTPUT_NORM,
    LORA_MLP_OUTPUT_NORM, /* post_norm */
    LORA_Q_NORM,
    LORA_K_NORM, /* qk_norm */
    LORA_LAYER_NORMS,
    LORA_FINAL_NORM = LORA_LAYER_NORMS, /* layer = -1 */
    LORA_NORM_SLOTS,
    LORA_NORM_BIAS = LORA_NORM_SLOTS,
    LORA_BIAS = LORA_NORM_BIAS + LORA_NORM_SLOTS,
    LORA_VECTOR_SLOTS = LORA_BIAS + LORA_LAYER_MATRICES,
} lora_vector_slot;

/** Name of a slot without its layer: "q_proj", "input_layernorm", "q_proj.bias". slot < LORA_VECTOR_SLOTS.
 *  vector: of lora_vector_slot, else of lora_matrix_slot. */
typedef struct lora_slot_name {
    char text[48];
} lora_slot_name;
lora_slot_name lora_decoder_slot_name(bool vector, int slot);

lora_status lora_decoder_create(lora_ctx *ctx, const lora_decoder_config *config, lora_decoder **out, lora_error *err) LORA_MUST_CHECK;
void lora_decoder_destroy(lora_decoder *decoder);
/** In a child whose parent forked it in the middle of a pass: drops what that pass had begun to write. */
void lora_decoder_after_fork(lora_decoder *decoder);

/** Sets a matrix; grad (same shape, float32, contiguous) makes it trainable, NULL freezes it. Shapes are checked. */
lora_status lora_decoder_set_matrix(lora_decoder *decoder, int64_t layer, lora_matrix_slot slot, const lora_weight *w, float *grad,
                                    lora_error *err) LORA_MUST_CHECK;
/** (rows, cols) of a matrix slot. */
void lora_decoder_matrix_shape(const lora_decoder *decoder, lora_matrix_slot slot, int64_t *rows, int64_t *cols);
/** Sets a norm weight or a bias (n floats); grad as above. */
lora_status lora_decoder_set_vector(lora_decoder *decoder, int64_t layer, lora_vector_slot slot, const float *v, int64_t n, float *grad,
                                    lora_error *err) LORA_MUST_CHECK;
/** Sets the LoRA adapter of a layer matrix, of LORA_EMBED_TOKENS or LORA_LM_HEAD (copied struct, borrowed arrays); NULL
 *  removes it. Those two take A (r, H) and B (V, r) like any (V, H) matrix, no DoRA, no dropout while they train, and float32
 *  memory of their matrix's size, twice where they train. A tied head does not see the adapter of the embedding. dropout_stream is set by
 *  the decoder from (dropout_step, layer, slot), the slot being the first with the same A: adapters of matrices that were
 *  cut from a fused one share A, its gradient and its masks. norm is made from the weight and the adapter at the start of each pass; a
 * decode that only goes on with begun sequences keeps the norms of the pass before it. */
lora_status lora_decoder_set_adapter(lora_decoder *decoder, int64_t layer, lora_matrix_slot slot, const lora_adapter *adapter,
                                     lora_error *err) LORA_MUST_CHECK;

/* IA3's vector on a layer matrix: it multiplies what the matrix puts out, its bias and the sum of base and LoRA adapter, or with
 * input what both read.   Source  IA3, arXiv:2205.05638, section 3.3 */
typedef struct lora_scaling {
    const float *l; /* (out_features), with input (in_features) */
    float *dl;      /* added to; NULL: frozen */
    bool input;
} lora_scaling;
/** Sets the scaling vector of a layer matrix (copied struct, borrowed arrays); NULL removes it. The gradient of a trained one needs what
 *  the matrix puts out, which the backward pass computes again. */
lora_status lora_decoder_set_scaling(lora_decoder *decoder, int64_t layer, lora_matrix_slot slot, const lora_scaling *scaling,
                                     lora_error *err) LORA_MUST_CHECK;

/* Where a bottleneck lies: behind o_proj or down_proj, before a norm of that output and before the addition to the stream. */
typedef enum lora_bottleneck_place { LORA_AFTER_ATTENTION, LORA_AFTER_MLP, LORA_BOTTLENECK_PLACES } lora_bottleneck_place;
/* h + scale * (up · activation(down · h + down_bias) + up_bias), float32 and contiguous.   Source  arXiv:1902.00751, section 2.1 */
typedef struct lora_bottleneck {
    int64_t size;
    lora_activation activation;
    float scale;
    const float *down, *down_bias, *up, *up_bias; /* (size, H), (size), (H, size), (H) */
    float *ddown, *ddown_bias, *dup, *dup_bias;   /* added to; NULL: frozen */
} lora_bottleneck;
/** Sets the bottleneck of a place of a layer (copied struct, borrowed arrays); NULL removes it. */
lora_status lora_decoder_set_bottleneck(lora_decoder *decoder, int64_t layer, lora_bottleneck_place place,
                                        const lora_bottleneck *bottleneck, lora_error *err) LORA_MUST_CHECK;

/** Trains n rows (n, H) of the embedding by token id and nothing else of it. embed_tokens must be a trained float32 matrix
 *  that exists for this: its rows are overwritten before each pass, its gradient is moved into grad (n, H) and cleared.
 *  ids are distinct and copied, rows and grad borrowed. n 0 ends it. */
lora_status lora_decoder_set_token_rows(lora_decoder *decoder, int64_t n, const int32_t *ids, const float *rows, float *grad,
                                        lora_error *err) LORA_MUST_CHECK;

/* Makes a prefix of rows of an embedding: W2 tanh(W1 e + b1) + b2. Gradients like their values, added to; NULL: frozen. */
typedef struct lora_prefix_encoder {
    int64_t width, hidden;                      /* of the embedding, of what the tanh puts out */
    const float *embedding, *w1, *b1, *w2, *b2; /* (n, width), (hidden, width), (hidden), (L * 2 * KV, hidden), (L * 2 * KV) */
    float *dembedding, *dw1, *db1, *dw2, *db2;
} lora_prefix_encoder;

typedef enum lora_virtual_kind {
    LORA_PROMPT, /* they are embeddings and go through all layers like tokens (prompt tuning) */
    LORA_PREFIX, /* each layer has keys and values of theirs (prefix tuning) */
} lora_virtual_kind;

/* Virtual tokens before each sequence: they take the first n positions. */
typedef struct lora_virtual_tokens {
    lora_virtual_kind kind;
    int64_t n;
    const float *values; /* PROMPT (n, H); PREFIX (n, L, 2, KV): the keys, not rotated any more, and the values of each layer */
    float *gradient;     /* like values, added to; NULL: frozen */
    float scale;         /* PROMPT: of the embeddings, on their way in */
    const lora_prefix_encoder *encoder; /* PREFIX: makes values, which then are NULL with their gradient; or NULL */
} lora_virtual_tokens;

/** Puts virtual tokens before every sequence that begins from here on, of a batch or in a cache (copied structs, borrowed arrays);
 *  NULL ends it. Ids, targets, lengths and all results are those of the caller's tokens alone, but virtual tokens count
 *  towards max_position_embeddings, the max_tokens of a cache and LORA_DECODE_BATCH. A sequence in a cache keeps those that it
 *  began with.
 *  Source   prompt tuning, arXiv:2104.08691, section 2; prefix tuning, arXiv:2101.00190, section 4.2 */
lora_status lora_decoder_set_virtual_tokens(lora_decoder *decoder, const lora_virtual_tokens *tokens, lora_error *err) LORA_MUST_CHECK;
/** How many there are. */
int64_t lora_decoder_virtual_tokens(const lora_decoder *decoder);

typedef enum lora_recompute { LORA_RECOMPUTE_NONE, LORA_RECOMPUTE_LAYER, LORA_RECOMPUTE_ATTENTION } lora_recompute;
/** LAYER keeps one residual row per layer and computes the rest of a layer again in backward: same bits, less memory. ATTENTION computes
 *  q, k, v and the stream behind attention again, from the layer's input and attention's output, which are kept like gate and up: the
 *  same bits, between the two in memory and time. With rounded activations (below) both see what was rounded, and ATTENTION makes its
 *  output and the sums of its softmax again, too, as those of the q, k and v that its gradient reads.
 *  Source   selective recomputation, arXiv:2205.05198, section 5, of the projections and not of what lies between them */
void lora_decoder_set_recompute(lora_decoder *decoder, lora_recompute recompute);
/** BF16 keeps what backward needs of a layer in half the memory: same loss, gradients of activations rounded once. INT8 keeps a third:
 *  the output of attention, gate and up in 8 bits as LORA_PRECISION_INT8 rounds x, so that a product in 8 bits has read the same
 *  integers, and the rest in bfloat16. With LAYER, which keeps next to nothing anyway, BF16 has no effect, and INT8 keeps the inputs of
 *  layers in bfloat16. Errors: EDTYPE for others than F32 (the default), BF16 and INT8; EUNSUPPORTED for INT8 on a device that lacks it.
 */
lora_status lora_decoder_set_activation_dtype(lora_decoder *decoder, lora_dtype dtype, lora_error *err) LORA_MUST_CHECK;

/** Keeps what backward needs of all layers but the last in memory of the host (lora_paged_alloc: pinned where the device is a GPU, on the
 *  CPU a file without a name in folder), in the type that it has without this: same bits. With LAYER that is the residual rows. folder
 *  (copied) must be one that a pass can write to; NULL (at first): not. Passes fail with EINVAL or ENOMEM where there is no room.
 *  Errors    ENOMEM */
lora_status lora_decoder_set_activation_offload(lora_decoder *decoder, const char *folder, lora_error *err) LORA_MUST_CHECK;
/** The folder, borrowed until it is set again; NULL: activations stay on the device. */
const char *lora_decoder_activation_offload(const lora_decoder *decoder);
/** Bytes that a training pass of n_tokens, virtual ones included, keeps there; they are not in lora_decoder_arena_bytes. */
int64_t lora_decoder_offload_bytes(const lora_decoder *decoder, int64_t n_tokens);

/** Noise on embedded tokens in training passes, with a stream of its own for each dropout_step (lora_add_noise); alpha 0 (at first): none.
 *  Errors    EINVAL alpha is negative or not finite */
lora_status lora_decoder_set_noise(lora_decoder *decoder, double alpha, uint64_t seed, lora_error *err) LORA_MUST_CHECK;

/** Precision of every pass of this decoder; at first that of the context when it was created. */
lora_status lora_decoder_set_precision(lora_decoder *decoder, lora_precision precision, lora_error *err) LORA_MUST_CHECK;
lora_precision lora_decoder_precision(const lora_decoder *decoder);

/** While on, passes end between two layers with ESTOPPED, the running one too: may be called while another thread is in a
 *  pass. A training pass that was stopped leaves some of its gradients added: clear them all. A device that runs behind ends a
 *  pass that has been asked for whole. */
void lora_decoder_set_stopping(lora_decoder *decoder, bool on);
bool lora_decoder_stopping(const lora_decoder *decoder);

/* What a training pass calls when the gradients of a layer's parameters are complete, after those of the layers above it. Those of
 * parameters of no layer (embeddings, head, last norm, virtual tokens) are complete when the pass has ended. On a device that runs behind
 * they are asked for by then, and there after the next lora_sync. */
typedef void lora_layer_done(void *arg, int64_t layer);
/** done: in the thread of the pass, and must use neither decoder nor context; NULL (at first): none. */
void lora_decoder_on_layer_done(lora_decoder *decoder, lora_layer_done *done, void *arg);

/* A packed batch: no padding; segment s is tokens cu_seqlens[s] .. cu_seqlens[s+1]-1 and attends only to itself. */
typedef struct lora_batch {
    int64_t n_tokens, n_segments;
    const int32_t *input_ids;  /* (n_tokens) */
    const int32_t *cu_seqlens; /* (n_segments + 1), starts with 0, ends with n_tokens, rises strictly */
    const int32_t *targets;    /* (n_tokens): the token, or the label, that each position must predict; read where loss_weight != 0 */
    const float *loss_weight;  /* (n_tokens); a classifier has weights on the last token of each segment */
    const float *values;       /* (n_tokens, num_labels): in the place of targets with LORA_REGRESSION and LORA_MULTI_LABEL, where they
                                * are from 0 to 1; else not read */
    uint64_t dropout_step;     /* makes the dropout masks of this micro-batch its own */
} lora_batch;

/** loss_sum = sum of loss_weight * cross entropy (of a classifier: * the loss of its problem, the mean over its labels). Gradients of
 * grad_scale * loss_sum are added to every grad that is set. Stops below the lowest trainable module. Errors also when a required weight is
 * missing (named). */
lora_status lora_decoder_forward_backward(lora_decoder *decoder, const lora_batch *batch, float grad_scale, double *loss_sum,
                                          lora_error *err) LORA_MUST_CHECK;
/** The same loss without gradients and without dropout. token_loss (n_tokens) or NULL. */
lora_status lora_decoder_loss(lora_decoder *decoder, const lora_batch *batch, double *loss_sum, float *token_loss,
                              lora_error *err) LORA_MUST_CHECK;
/** logits (n_tokens, V), V num_labels or else vocab_size; targets and loss_weight are not read. */
lora_status lora_decoder_logits(lora_decoder *decoder, const lora_batch *batch, float *logits, lora_error *err) LORA_MUST_CHECK;
/** The same of the last token of each segment alone: logits (n_segments, V). */
lora_status lora_decoder_last_logits(lora_decoder *decoder, const lora_batch *batch, float *logits, lora_error *err) LORA_MUST_CHECK;
/** out (n_tokens, hidden_size): what goes into layer `layer`; num_hidden_layers: out of the last one and the final norm. */
lora_status lora_decoder_hidden_states(lora_decoder *decoder, const lora_batch *batch, int64_t layer, float *out,
                                       lora_error *err) LORA_MUST_CHECK;

/* The first value of a pass that is not finite, as lora_watch_found has it, with the name of the weight. */
typedef struct lora_nonfinite {
    lora_watch_found found; /* operation NULL: every value was finite. Of values for tokens the row is the token, virtual
                             * ones counted */
    lora_slot_name weight;  /* "" without one */
} lora_nonfinite;
/** While on, passes look at the results of all operations (lora_ctx_watch).   Errors  ENOMEM */
lora_status lora_decoder_watch(lora_decoder *decoder, bool on, lora_error *err) LORA_MUST_CHECK;
/** What was found since it was switched on. */
lora_nonfinite lora_decoder_nonfinite(const lora_decoder *decoder);

/** Bytes of the activation arena for n_tokens, virtual ones included, in training (or evaluation), known before the start. */
int64_t lora_decoder_arena_bytes(const lora_decoder *decoder, int64_t n_tokens, bool training);
/** Frees the activation arena; the next pass makes one of its size. It also shrinks by itself after some passes that need less
 *  than half of it. */
void lora_decoder_free_activations(lora_decoder *decoder);
/** Whether an adapter has dropout or there is noise, so that a training pass depends on its dropout_step. */
bool lora_decoder_has_dropout(const lora_decoder *decoder);
/** Bytes that the operations of a training step of n_tokens in up to n_segments work in: the most that each of their buffers takes. */
int64_t lora_decoder_scratch_bytes(const lora_decoder *decoder, int64_t n_tokens, int64_t n_segments);

/** Keys and values of up to n_sequences sequences of up to max_tokens each, virtual ones included. */
lora_status lora_kv_cache_create(lora_decoder *decoder, int64_t n_sequences, int64_t max_tokens, lora_kv_cache **out,
                                 lora_error *err) LORA_MUST_CHECK;
void lora_kv_cache_destroy(lora_kv_cache *cache);
/** Tokens of the caller in a sequence. */
int64_t lora_kv_cache_length(const lora_kv_cache *cache, int64_t sequence);
int64_t lora_kv_cache_sequences(const lora_kv_cache *cache);
int64_t lora_kv_cache_max_tokens(const lora_kv_cache *cache);
/** Cuts a sequence to length (0: forget all, virtual tokens, too); larger than the present length is refused. */
lora_status lora_kv_cache_truncate(lora_kv_cache *cache, int64_t sequence, int64_t length, lora_error *err) LORA_MUST_CHECK;
/** Makes the first length tokens of sequence from (and its virtual tokens) the content of sequence to, which forgets its own: both go on
 *  with the same bits. From and to may be the same: a truncate. Errors EINVAL, what backends report. */
lora_status lora_kv_cache_copy(lora_kv_cache *cache, int64_t from, int64_t to, int64_t length, lora_error *err) LORA_MUST_CHECK;

/** The longest sequence that the RoPE table of a sequence of length tokens serves: rope_switch until a sequence grows
 *  beyond it, max_position_embeddings otherwise; less the virtual tokens. Growing past it in the cache is refused: truncate to 0 and
 *  append all. */
int64_t lora_decoder_rope_limit(const lora_decoder *decoder, int64_t length);

/** Adapters of a decoder's layer matrices that lie outside of it, so that sequences of one decode may have different ones. At first
 *  there are none. They may outlive the decoder, but are set while it lives. */
lora_status lora_decoder_adapters_create(lora_decoder *decoder, lora_decoder_adapters **out, lora_error *err) LORA_MUST_CHECK;
void lora_decoder_adapters_destroy(lora_decoder_adapters *adapters);
/** As lora_decoder_set_adapter, of a layer matrix and without DoRA. */
lora_status lora_decoder_adapters_set(lora_decoder_adapters *adapters, int64_t layer, lora_matrix_slot slot, const lora_adapter *adapter,
                                      lora_error *err) LORA_MUST_CHECK;

/** Appends the tokens of each segment s to sequence sequences[s] (distinct) and writes the logits of each segment's last
 *  token to logits (n_segments, V). Prefill and decode are the same call; no dropout. Up to LORA_DECODE_BATCH tokens
 *  in a call the logits of each have the bits that it gets alone.
 *  adapters (n_segments) or NULL: those of each segment, NULL: the bare weights. They stand in for the decoder's own, which may have none
 * on the embedding and the head then, nor token rows, virtual tokens, scaling vectors and bottlenecks. Where they differ, up to
 * LORA_DECODE_BATCH tokens in all (EINVAL). */
lora_status lora_decoder_decode(lora_decoder *decoder, lora_kv_cache *cache, int64_t n_segments, const int32_t *cu_seqlens,
                                const int32_t *sequences, const int32_t *input_ids, const lora_decoder_adapters *const *adapters,
                                float *logits, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
