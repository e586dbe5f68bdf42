/* What a decoder holds. Shapes: M tokens, H hidden_size, I intermediate_size, D head_dim, Q = heads * D,
 * KV = kv_heads * D, L layers, S segments.
 * A pointer in lora_buffers, lora_layer_state, lora_batch_tables, lora_matrix, lora_scaling, lora_bottleneck, lora_norm_weights,
 * lora_token_rows and lora_adapted_global is an address of the device of ctx, which the host may not read: work on it is asked for by
 * operations. */
#ifndef LORA_MODEL_DECODER_STRUCT_H
#define LORA_MODEL_DECODER_STRUCT_H

#include <stdatomic.h>

#include "lora_c/decoder.h"
#include "lora_c/linear.h"
#include "lora_c/nn.h"

typedef struct lora_matrix {
    lora_weight w;
    bool set;
    float *dW;
    const float *bias;
    float *dbias;
    lora_adapter adapter;
    bool has_adapter;
    lora_scaling scaling; /* l NULL: none */
    float *norm;          /* with a DoRA adapter: its row norms of this pass, owned */
    bool norm_known;
} lora_matrix;

typedef struct lora_norm_weights {
    const float *w, *b; /* b: LayerNorm */
    float *dw, *db;
} lora_norm_weights;

typedef struct lora_layer {
    lora_matrix matrices[LORA_LAYER_MATRICES];
    lora_norm_weights norms[LORA_LAYER_NORMS];
    lora_bottleneck bottlenecks[LORA_BOTTLENECK_PLACES]; /* size 0: none */
    int64_t sliding_window;
    int rope; /* -1: none */
    bool prefix_trains;
} lora_layer;

/* What one layer keeps for its backward pass. The normed inputs and h are computed again. */
typedef struct lora_layer_state {
    float *stats[LORA_LAYER_NORMS];        /* (M, groups, 2) of each norm, or NULL: not kept */
    float *qkv;                            /* (M, Q + 2 KV), q and k after norm and RoPE */
    float *qk;                             /* (M, Q + KV): q and k before their norms; NULL: not kept, or no such norms */
    void *att;                             /* (M, Q) */
    float *lse;                            /* (M, heads), or NULL: not kept */
    float *att_branch;                     /* (M, H): output of o_proj, where it is not added to the stream as it is; else NULL */
    float *mlp_branch;                     /* (M, H): output of down_proj, likewise; in evaluation the memory of att_branch */
    float *x2;                             /* (M, H): the residual stream between attention and MLP */
    float *gate, *up;                      /* (M, I); without a gate both are up */
    float *before[LORA_BOTTLENECK_PLACES]; /* (M, H): what a bottleneck reads, or NULL: not kept, or no bottleneck */
    float *low[LORA_LAYER_MATRICES];       /* (M, R): s drop(x) A^T of each matrix for the gradient of B, or NULL: formed again */
} lora_layer_state;

/* Passes in a row that needed much less than the arena holds, and the most that one of them needed. */
typedef struct lora_small_passes {
    int count;
    size_t most_bytes;
} lora_small_passes;

/* What operations read of a batch, filled on the host and sent as one block before the pass. S is at most M. */
typedef struct lora_batch_tables {
    int32_t *input_ids;            /* (M) */
    int32_t *positions;            /* (M): they go on where the cache ends and begin at 0 without one */
    int32_t *rope_rows;            /* (M): rows of the RoPE tables; positions itself where segments do not choose */
    int32_t *cu_seqlens;           /* (M + 1) */
    int32_t *targets;              /* (M) */
    float *loss_weight;            /* (M) */
    float *values;                 /* (M, num_labels) of a classifier that is asked for numbers; else absent */
    int64_t *kv_start, *kv_length; /* (S): the keys and values of a segment */
    int64_t *cache_rows;           /* (M): where the cache keeps the key of a token */
    int64_t *last_tokens;          /* (S) */
    int64_t *real_rows;            /* (M): rows of the caller's tokens, one behind the other; with virtual tokens, else not there */
    int64_t *virtual_rows;         /* (M): those of virtual tokens */
    int32_t *virtual_ids;          /* (M): which of them each is */
} lora_batch_tables;

/* Types of what only products read, float32 or that of their operands, the same in all layers. */
typedef struct lora_operand_types {
    lora_dtype attention_input, attention_output, mlp_input; /* normed streams, and what attention puts out */
    lora_dtype mlp_inner, mlp_gradient;                      /* h; the gradients of gate and up */
    int64_t lent;                                            /* columns behind each row of 16 bits: the largest rank, in eights */
} lora_operand_types;

/* Every buffer of a pass. */
typedef struct lora_buffers {
    int64_t lowest;           /* layers below keep nothing and run in place; L in evaluation */
    float **x;                /* L + 1 residual streams (M, H); those up to lowest - 1 are one buffer */
    lora_layer_state *states; /* L; with kept, one memory but for stats, lse and an att of 16 bits */
    void **kept;              /* L: copies of what backward reads, or NULL: each layer's state is its own (or computed again) */
    lora_dtype kept_dtype;    /* of the copies */
    lora_operand_types types;
    float *xn;               /* (M, H): a normed input, of 16 bits in a part of it */
    void *h;                 /* (M, I): input of down_proj; in float32 gate's own memory in evaluation. Later dgate, dup of 16 bits */
    float *stats_final;      /* (M, 2), or NULL */
    float *dx, *dxn;         /* (M, H): gradient of the residual stream; of a normed input */
    float *dbranch;          /* (M, H): gradient of a branch; NULL where branches are the stream */
    float *dh;               /* (M, I) */
    float *datt, *dqkv;      /* (M, Q), (M, Q + 2 KV): in the memory of h and dh, which attention does not need */
    float *scaled, *dscaled; /* (M, widest input of a matrix with a scaling of its input) or NULL: that input times l; its gradient */
    float *unscaled;         /* (M, widest output with a trained scaling) or NULL: that output without l, computed again */
    float
        *bottleneck[3]; /* (M, widest bottleneck) or NULL: its inside before and after the activation, a gradient; evaluation: the first */
    double *loss_sum;   /* (1) */
    float *labels;      /* (M, num_labels): logits and their gradient, with tables.values */
    lora_batch_tables tables;
} lora_buffers;

/* Trained rows of the embedding (n, H) by token id. */
typedef struct lora_token_rows {
    int64_t n;
    int64_t *ids; /* (n), owned */
    const float *rows;
    float *grad;
} lora_token_rows;

/* Virtual tokens, and what an encoder makes theirs of. */
typedef struct lora_virtual {
    lora_virtual_tokens tokens; /* n 0: none; with an encoder values and gradient are owned */
    lora_prefix_encoder encoder;
    float *hidden, *dhidden; /* (n, encoder.hidden), owned */
} lora_virtual;

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
    lora_virtual virtual;
    double *inv_freq[LORA_MAX_ROPES]; /* (rotary / 2) on the host, owned */
    float *cos, *sin;                 /* (n_ropes, rope_positions, rotary / 2), each table behind the other */
    int64_t rope_at[LORA_MAX_ROPES];  /* where each begins */
    int64_t rope_positions;           /* so far: tables grow with what passes ask for */
    lora_recompute recompute;
    lora_dtype activation_dtype;
    float noise_alpha;
    uint64_t noise_seed;
    atomic_bool stopping; /* set by another thread than that of the pass */
    lora_layer_done *layer_done;
    void *layer_done_arg;
    /* of a pass */
    float **streams;          /* (L + 1) on the host: lora_buffers.x */
    lora_layer_state *states; /* (L) on the host */
    void **kept;              /* (L) on the host */
    void *arena;              /* on the device */
    size_t arena_bytes;
    void *stage; /* on the host: the tables of the batch */
    size_t stage_bytes;
    void *with_virtual; /* on the host: the tables of the caller with virtual tokens in them */
    size_t with_virtual_bytes;
    lora_small_passes small_passes;
    /* copies in memory of the host (offload.c) */
    char *offload_folder; /* owned; NULL: they are in the arena */
    void *offloaded;      /* paged memory */
    size_t offloaded_bytes;
    int64_t offload_process; /* that may use it: a child has its parent's */
};

struct lora_kv_cache {
    lora_ctx *ctx;
    const lora_decoder *decoder;
    int64_t n_sequences, max_tokens, width; /* width KV */
    int64_t *lengths;                       /* (n_sequences) on the host: rows in use */
    int64_t *virtual;                       /* (n_sequences) on the host: how many of them are of virtual tokens, the first ones */
    uint8_t *named;                         /* (n_sequences) on the host, 0 between calls */
    float *data;                            /* (L, 2, n_sequences, max_tokens, KV): keys, then values */
};

static inline int64_t lora_q_width(const lora_decoder_config *c) { return c->num_attention_heads * c->head_dim; }
static inline int64_t lora_kv_width(const lora_decoder_config *c) { return c->num_key_value_heads * c->head_dim; }
static inline int64_t lora_qkv_width(const lora_decoder_config *c) { return lora_q_width(c) + 2 * lora_kv_width(c); }

/* Rows of the head. */
static inline int64_t lora_head_rows(const lora_decoder_config *c) { return c->num_labels ? c->num_labels : c->vocab_size; }
/* Whether the loss compares numbers with values, not logits with a target. */
static inline bool lora_has_values(const lora_decoder_config *c) { return c->num_labels && c->problem != LORA_SINGLE_LABEL; }

static inline const lora_matrix *lora_global(const lora_decoder *d, lora_matrix_slot slot) {
    return &d->globals[slot - LORA_LAYER_MATRICES];
}
static inline const lora_matrix *lora_head(const lora_decoder *d) {
    bool tied = d->config.tie_word_embeddings && !lora_global(d, LORA_LM_HEAD)->set;
    return lora_global(d, tied ? LORA_EMBED_TOKENS : LORA_LM_HEAD);
}
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

/* check_config.c */
lora_status lora_check_config(const lora_decoder_config *c, lora_error *err) LORA_MUST_CHECK;

/* norm.c */
/** The norm as an operation; weights are those of the norm slot (LORA_FINAL_NORM: layer is not read). */
lora_norm lora_decoder_norm(const lora_decoder *d, int64_t layer, int slot);
/** Elements of the weight of a norm slot. */
int64_t lora_norm_width(const lora_decoder_config *c, int slot);

/* methods.c: scaling vectors and bottlenecks */
bool lora_has_scalings(const lora_decoder *d);
bool lora_has_bottlenecks(const lora_decoder *d);
/** Whether outputs of attention and MLP go through a norm, a factor, a scaling or a bottleneck before they join the residual stream. */
bool lora_has_branches(const lora_decoder *d);
/** Whether layer (-1: any) has a bottleneck at place. */
bool lora_has_bottleneck(const lora_decoder *d, int64_t layer, int place);

/* trainable.c: what a gradient is wanted for */
bool lora_reads_input(const lora_matrix *m); /* the gradients of m are made from its input */
bool lora_matrix_trains(const lora_matrix *m);
bool lora_norm_trains(const lora_norm_weights *n);
bool lora_bottleneck_trains(const lora_bottleneck *b);
bool lora_qk_norm_trains(const lora_layer *l);
bool lora_embeddings_train(const lora_decoder *d);
bool lora_qkv_trains(const lora_layer *l);                  /* q, k, v or the norms around them */
bool lora_attention_trains(const lora_layer *l);            /* the same, o_proj or what lies behind it */
bool lora_gate_up_trains(const lora_layer *l);              /* gate, up or the norm before them */
int64_t lora_lowest_trainable_layer(const lora_decoder *d); /* 0 .. L; L: only what lies above the layers */

#endif
