/* What a decoder holds. Shapes: M tokens, H hidden_size, I intermediate_size, D head_dim, Q = heads * D,
 * KV = kv_heads * D, L layers. */
#ifndef LORA_MODEL_DECODER_STRUCT_H
#define LORA_MODEL_DECODER_STRUCT_H

#include <stdatomic.h>

#include "lora_c/decoder.h"
#include "lora_c/linear.h"
#include "lora_c/nn.h"
#include "lora_c/weight_rows.h"

typedef struct lora_matrix {
    lora_weight w;
    bool set;
    float *dW;
    const float *bias;
    float *dbias;
    lora_adapter adapter;
    bool has_adapter;
    float *norm; /* with a DoRA adapter: its row norms of this pass, owned */
    bool norm_known;
} lora_matrix;

typedef struct lora_norm_weights {
    const float *w, *b; /* b: LayerNorm */
    float *dw, *db;
} lora_norm_weights;

typedef struct lora_layer {
    lora_matrix matrices[LORA_LAYER_MATRICES];
    lora_norm_weights norms[LORA_LAYER_NORMS];
    int64_t sliding_window;
    int rope; /* -1: none */
} lora_layer;

/* What one layer keeps for its backward pass. The normed inputs and h are computed again. */
typedef struct lora_layer_state {
    float *stats[LORA_LAYER_NORMS]; /* (M, groups, 2) of each norm, or NULL: not kept */
    float *qkv;        /* (M, Q + 2 KV), q and k after norm and RoPE */
    float *qk;         /* (M, Q + KV): q and k before their norms; NULL: not kept, or no such norms */
    float *att;        /* (M, Q) */
    float *lse;        /* (M, heads), or NULL: not kept */
    float *att_branch; /* (M, H): output of o_proj, where it is not added to the stream as it is; else NULL */
    float *mlp_branch; /* (M, H): output of down_proj, likewise; in evaluation the memory of att_branch */
    float *x2;         /* (M, H): the residual stream between attention and MLP */
    float *gate, *up;  /* (M, I); without a gate both are up */
    float *low[LORA_LAYER_MATRICES]; /* (M, R): s drop(x) A^T of each matrix for the gradient of B, or NULL: formed again */
} lora_layer_state;

/* Passes in a row that needed much less than the arena holds, and the most that one of them needed. */
typedef struct lora_small_passes {
    int count;
    size_t most_bytes;
} lora_small_passes;

/* Every buffer of a pass, carved from one arena. */
typedef struct lora_buffers {
    int64_t lowest;           /* layers below keep nothing and run in place; L in evaluation */
    float **x;                /* L + 1 residual streams (M, H); those up to lowest - 1 are one buffer */
    lora_layer_state *states; /* L; with kept, one memory but for stats and lse */
    uint16_t **kept;          /* L: bfloat16 copies of what backward reads, or NULL: each layer's state is its own */
    float *xn;                /* (M, H): a normed input */
    float *h;                 /* (M, I): input of down_proj; gate's own memory in evaluation */
    float *stats_final;       /* (M, 2), or NULL */
    float *dx, *dxn;          /* (M, H): gradient of the residual stream; of a normed input */
    float *dbranch;           /* (M, H): gradient of a branch; NULL where branches are the stream */
    float *dh;                /* (M, I) */
    float *datt, *dqkv;       /* (M, Q), (M, Q + 2 KV): in the memory of h and dh, which attention does not need */
    int32_t *positions;       /* (M) */
    int32_t *rope_rows;       /* (M): rows of the RoPE tables; positions itself where segments do not choose */
    int64_t *kv_start, *kv_length; /* (M): rows of the keys and values of each segment, at most one per token */
    int64_t *kv_rows;              /* (M): rows of the cache where the keys and values of the tokens go */
    int64_t *last_rows;            /* (M): the last token of each segment, in decoding */
} lora_buffers;

/* Trained rows of the embedding (n, H) by token id. */
typedef struct lora_token_rows {
    int64_t n;
    int64_t *ids; /* owned: row numbers of the embedding */
    const float *rows;
    float *grad;
} lora_token_rows;

/* W + s B A of the embedding or the head, where it has an adapter. */
typedef struct lora_adapted_global {
    float *whole, *gradient; /* (V, H), owned; gradient zero between passes */
    bool known;              /* whole is that of the present weight */
} lora_adapted_global;

struct lora_decoder {
    lora_ctx *shared; /* the caller's */
    lora_ctx *ctx;    /* a view of it, owned, with the precision of the passes */
    lora_decoder_config config;
    lora_layer *layers;
    lora_matrix globals[LORA_MATRIX_SLOTS - LORA_LAYER_MATRICES];
    lora_adapted_global adapted[LORA_MATRIX_SLOTS - LORA_LAYER_MATRICES];
    lora_norm_weights final_norm;
    lora_token_rows token_rows;
    double *inv_freq[LORA_MAX_ROPES]; /* (rotary / 2), owned */
    float *cos, *sin;                /* (n_ropes, rope_positions, rotary / 2), each table behind the other */
    int64_t rope_at[LORA_MAX_ROPES]; /* where each begins */
    int64_t rope_positions;          /* so far: tables grow with what passes ask for */
    lora_recompute recompute;
    lora_dtype activation_dtype;
    atomic_bool stopping; /* set by another thread than that of the pass */
    void *arena;
    size_t arena_bytes;
    lora_small_passes small_passes;
};

struct lora_kv_cache {
    lora_ctx *ctx;
    const lora_decoder *decoder;
    int64_t n_sequences, max_tokens, width; /* width KV */
    int64_t *lengths;                       /* (n_sequences) */
    float *data;                            /* (L, 2, n_sequences, max_tokens, KV): keys, then values */
};

/* The tokens of a pass and what is done with them. cache == NULL: keys and values are the batch's own. */
typedef struct lora_run {
    int64_t n_tokens, n_segments;
    const int32_t *input_ids, *cu_seqlens;
    const lora_kv_cache *cache;
    const int32_t *sequences;
    const lora_layer_state *states; /* of a training pass, else NULL */
    bool training;
    uint64_t dropout_step;
    int64_t layers_left_out; /* at the end; with any the final norm is left out, too */
} lora_run;

static inline lora_segments lora_run_segments(const lora_run *run) {
    return (lora_segments){.n = run->n_segments, .cu_seqlens = run->cu_seqlens, .on_device = run->cu_seqlens};
}

/* Between two layers: whether somebody asked the pass to stop. */
static inline lora_status lora_check_stop(const lora_decoder *d, lora_error *err) {
    if (!atomic_load_explicit(&d->stopping, memory_order_relaxed)) return LORA_OK;
    return lora_fail(err, LORA_ESTOPPED, "decoder: the pass was stopped between two layers");
}

static inline const lora_adapter *lora_adapter_of(const lora_matrix *m) { return m->has_adapter ? &m->adapter : NULL; }

static inline int64_t lora_q_width(const lora_decoder_config *c) { return c->num_attention_heads * c->head_dim; }
static inline int64_t lora_kv_width(const lora_decoder_config *c) { return c->num_key_value_heads * c->head_dim; }
static inline int64_t lora_qkv_width(const lora_decoder_config *c) { return lora_q_width(c) + 2 * lora_kv_width(c); }

static inline const lora_matrix *lora_global(const lora_decoder *d, lora_matrix_slot slot) {
    return &d->globals[slot - LORA_LAYER_MATRICES];
}
static inline const lora_matrix *lora_head(const lora_decoder *d) {
    bool tied = d->config.tie_word_embeddings && !lora_global(d, LORA_LM_HEAD)->set;
    return lora_global(d, tied ? LORA_EMBED_TOKENS : LORA_LM_HEAD);
}
/* Outputs of attention and MLP go through a norm or a factor before they join the residual stream. */
static inline bool lora_has_branches(const lora_decoder_config *c) { return c->post_norm || c->residual_scale != 1.0; }
static inline bool lora_has_norm(const lora_decoder_config *c, int norm) {
    return norm <= LORA_POST_ATTENTION_LAYERNORM ? c->pre_norm
           : norm <= LORA_MLP_OUTPUT_NORM        ? c->post_norm
           : norm <= LORA_K_NORM                 ? c->qk_norm != LORA_QK_NORM_NONE
                                                 : true;
}
/* names.c */
/* "layers.3.q_proj", "layers.3.q_proj.bias", or "embed_tokens" for layer -1 */
typedef struct lora_weight_name {
    char text[80];
} lora_weight_name;
lora_weight_name lora_matrix_name(int64_t layer, int slot);
lora_weight_name lora_vector_name(int64_t layer, int slot);

/* norm.c */
/** The norm as an operation; weights are those of the norm slot (LORA_FINAL_NORM: layer is not read). */
lora_norm lora_decoder_norm(const lora_decoder *d, int64_t layer, int slot);
/** Elements of the weight of a norm slot. */
int64_t lora_norm_width(const lora_decoder_config *c, int slot);

/* decoder.c: names the first required weight that is missing */
lora_status lora_check_complete(const lora_decoder *d, lora_error *err) LORA_MUST_CHECK;

/* run.c */
/** Refuses what no pass could compute (missing weights, ids, segment table, lengths) before anything is written. */
lora_status lora_check_run(const lora_decoder *d, const lora_run *run, lora_error *err) LORA_MUST_CHECK;
/** Fills positions (they go on where the cache ends and begin at 0 without one) and rows of the RoPE tables. */
void lora_set_positions(const lora_decoder *d, const lora_run *run, lora_buffers *b);
/** Tokens that a segment goes on from. */
int64_t lora_past_tokens(const lora_run *run, int64_t segment);

/* trainable.c: what a gradient is wanted for */
bool lora_reads_input(const lora_matrix *m); /* the gradients of m are made from its input */
bool lora_matrix_trains(const lora_matrix *m);
bool lora_norm_trains(const lora_norm_weights *n);
bool lora_qk_norm_trains(const lora_layer *l);
bool lora_embeddings_train(const lora_decoder *d);
bool lora_qkv_trains(const lora_layer *l);       /* q, k, v or the norms around them */
bool lora_attention_trains(const lora_layer *l); /* the same, o_proj or the norm behind it */
bool lora_gate_up_trains(const lora_layer *l);   /* gate, up or the norm before them */
int64_t lora_lowest_trainable_layer(const lora_decoder *d); /* 0 .. L; L: only what lies above the layers */

/* arena.c */
lora_status lora_arena_prepare(lora_decoder *d, int64_t n_tokens, bool training, lora_buffers *out,
                               lora_error *err) LORA_MUST_CHECK;

/* adapter_norms.c: the row norms of DoRA adapters */
lora_status lora_refresh_adapter_norms(lora_decoder *d, const lora_run *run, lora_error *err) LORA_MUST_CHECK;
lora_status lora_make_adapter_norm(lora_decoder *d, lora_matrix *m, lora_error *err) LORA_MUST_CHECK; /* memory for m's */
void lora_free_adapter_norms(lora_decoder *d);
/** Whether a pass only goes on with begun sequences: what was made of adapters for them then stands. */
bool lora_goes_on(const lora_run *run);

/* adapted_globals.c: adapters of LORA_EMBED_TOKENS and LORA_LM_HEAD */
lora_weight lora_global_weight(const lora_decoder *d, lora_matrix_slot slot); /* as a pass reads it; the head's may be tied */
float *lora_global_gradient(const lora_decoder *d, lora_matrix_slot slot);
lora_status lora_make_adapted_global(lora_decoder *d, lora_matrix_slot slot, const lora_adapter *adapter,
                                     lora_error *err) LORA_MUST_CHECK; /* memory for it; adapter NULL: none */
void lora_forget_adapted_globals(lora_decoder *d); /* after a weight has changed */
void lora_free_adapted_globals(lora_decoder *d);
int64_t lora_adapted_globals_bytes(const lora_decoder *d);
lora_status lora_write_adapted_globals(lora_decoder *d, const lora_run *run, lora_error *err) LORA_MUST_CHECK; /* before a pass */
/** Gradients out of the matrices into A and B (dropped unless complete). */
lora_status lora_collect_adapted_globals(lora_decoder *d, bool complete, lora_error *err) LORA_MUST_CHECK;

void lora_drop_adapted_gradients(lora_decoder *d);

/* rope_tables.c */
lora_status lora_copy_inv_freq(lora_decoder *d, lora_error *err) LORA_MUST_CHECK;
/** Tables for every position of a run. */
lora_status lora_reach_positions(lora_decoder *d, const lora_run *run, lora_error *err) LORA_MUST_CHECK;
void lora_free_rope_tables(lora_decoder *d);

/* token_rows.c */
lora_status lora_write_token_rows(lora_decoder *d, lora_error *err) LORA_MUST_CHECK; /* into the embedding, before a pass */
/** Gradients out of the embedding's (dropped unless complete). */
lora_status lora_collect_token_rows(lora_decoder *d, bool complete, lora_error *err) LORA_MUST_CHECK;
void lora_drop_token_gradients(lora_decoder *d);

/* forward.c */
/** What this run does with the adapter of matrix slot of layer. */
lora_adapter_pass lora_run_adapter(const lora_layer *l, const lora_run *run, int64_t layer, int slot);
/** What attention or the MLP reads of the stream x: its norm of slot, or x itself. */
lora_status lora_block_input(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, const float *x,
                             float *stats, const float **out, lora_error *err) LORA_MUST_CHECK;
lora_attention_shape lora_layer_attention(const lora_decoder *d, int64_t layer);
/** RoPE on q and k of qkv as the layer has it; backward: the other way. */
lora_status lora_rotate(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, float *qkv, bool backward,
                        lora_error *err) LORA_MUST_CHECK;
/** h = activation(gate) * up of a state, or activation(up). */
lora_status lora_layer_activation(lora_decoder *d, const lora_run *run, const lora_layer_state *s, float *h,
                                  lora_error *err) LORA_MUST_CHECK;
/** From token ids to the normed input of the head in b->xn. */
lora_status lora_layers_forward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) LORA_MUST_CHECK;
/** Fills the state of a layer from its input again; its output is not needed. */
lora_status lora_layer_recompute(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer,
                                 lora_error *err) LORA_MUST_CHECK;

/* kept_layers.c: with activations in bfloat16, the copy of a layer that has run, and its state from the copy */
lora_status lora_keep_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) LORA_MUST_CHECK;
lora_status lora_restore_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) LORA_MUST_CHECK;
int64_t lora_kept_width(const lora_decoder_config *k); /* elements of a copy, per token */

/* passes.c */
/** logits (M, V) of M normed rows. */
lora_status lora_decoder_head(lora_decoder *d, int64_t M, const float *xn, float *logits, lora_error *err) LORA_MUST_CHECK;

/* backward.c: from b->dx, the gradient of the last layer's output, down to the lowest thing that trains */
lora_status lora_layers_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) LORA_MUST_CHECK;

/* kv_cache.c */
/** Fills the tables of where keys and values lie: in the cache, past and new rows behind each other, or in the batch. */
void lora_set_kv_rows(const lora_run *run, lora_buffers *b);
/** Stores the new keys and values, which kv leads to, in the cache; then kv leads there. */
lora_status lora_kv_append(const lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, lora_kv *kv,
                           lora_error *err) LORA_MUST_CHECK;

#endif
