/* What a decoder holds. Shapes: M tokens, H hidden_size, I intermediate_size, D head_dim, Q = heads * D,
 * KV = kv_heads * D, L layers. */
#ifndef LORA_MODEL_DECODER_STRUCT_H
#define LORA_MODEL_DECODER_STRUCT_H

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
    float *norm; /* with a DoRA adapter: its row norms of this pass, owned */
    bool norm_known;
} lora_matrix;

typedef struct lora_norm {
    const float *w;
    float *dw;
} lora_norm;

typedef struct lora_layer {
    lora_matrix matrices[LORA_LAYER_MATRICES];
    lora_norm input_norm, post_attention_norm;
} lora_layer;

/* What one layer keeps for its backward pass. The normed inputs and h are computed again. */
typedef struct lora_layer_state {
    float *rstd1;     /* (M), or NULL: not kept */
    float *qkv;       /* (M, Q + 2 KV), q and k after RoPE */
    float *att;       /* (M, Q) */
    float *lse;       /* (M, heads), or NULL: not kept */
    float *x2;        /* (M, H): the residual stream between attention and MLP */
    float *rstd2;     /* (M), or NULL */
    float *gate, *up; /* (M, I) */
} lora_layer_state;

/* Every buffer of a pass, carved from one arena. */
typedef struct lora_buffers {
    int64_t lowest;           /* layers below keep nothing and run in place; L in evaluation */
    float **x;                /* L + 1 residual streams (M, H); those up to lowest - 1 are one buffer */
    lora_layer_state *states; /* L */
    float *xn;                /* (M, H): a normed input */
    float *h;                 /* (M, I): input of down_proj; gate's own memory in evaluation */
    float *rstd_final;        /* (M) */
    float *dx, *dxn;          /* (M, H): gradient of the residual stream; of a normed input */
    float *dh;                /* (M, I) */
    float *datt, *dqkv;       /* (M, Q), (M, Q + 2 KV): in the memory of h and dh, which attention does not need */
    int32_t *positions;       /* (M) */
    lora_kv_view *views;      /* (M): at most one segment per token */
} lora_buffers;

/* Trained rows of the embedding (n, H) by token id. */
typedef struct lora_token_rows {
    int64_t n;
    int32_t *ids; /* owned */
    const float *rows;
    float *grad;
} lora_token_rows;

struct lora_decoder {
    lora_ctx *ctx;
    lora_decoder_config config;
    lora_layer *layers;
    lora_matrix embed_tokens, lm_head;
    lora_norm final_norm;
    lora_token_rows token_rows;
    float *cos, *sin; /* (max_position_embeddings, D / 2) */
    lora_attention_shape attention;
    lora_recompute recompute;
    void *arena;
    size_t arena_bytes;
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
    bool training;
    uint64_t dropout_step;
} lora_run;

static inline int64_t lora_q_width(const lora_decoder_config *c) { return c->num_attention_heads * c->head_dim; }
static inline int64_t lora_kv_width(const lora_decoder_config *c) { return c->num_key_value_heads * c->head_dim; }
static inline int64_t lora_qkv_width(const lora_decoder_config *c) { return lora_q_width(c) + 2 * lora_kv_width(c); }

static inline const lora_matrix *lora_head(const lora_decoder *d) {
    return d->config.tie_word_embeddings && !d->lm_head.set ? &d->embed_tokens : &d->lm_head;
}

/* decoder.c: names the first required weight that is missing */
lora_status lora_check_complete(const lora_decoder *d, lora_error *err) LORA_MUST_CHECK;

/* run.c */
/** Refuses what no pass could compute (missing weights, ids, segment table, lengths) before anything is written. */
lora_status lora_check_run(const lora_decoder *d, const lora_run *run, lora_error *err) LORA_MUST_CHECK;
/** Fills positions: they go on where the cache ends and begin at 0 without one. */
void lora_set_positions(const lora_run *run, int32_t *positions);

/* trainable.c: what a gradient is wanted for */
bool lora_reads_input(const lora_matrix *m); /* the gradients of m are made from its input */
bool lora_matrix_trains(const lora_matrix *m);
bool lora_qkv_trains(const lora_layer *l);       /* q, k, v or the norm before them */
bool lora_attention_trains(const lora_layer *l); /* the same, or o_proj */
bool lora_gate_up_trains(const lora_layer *l);   /* gate, up or the norm before them */
int64_t lora_lowest_trainable_layer(const lora_decoder *d); /* 0 .. L; L: only what lies above the layers */

/* arena.c */
lora_status lora_arena_prepare(lora_decoder *d, int64_t n_tokens, bool training, lora_buffers *out,
                               lora_error *err) LORA_MUST_CHECK;

/* adapter_norms.c: the row norms of DoRA adapters */
lora_status lora_refresh_adapter_norms(lora_decoder *d, const lora_run *run, lora_error *err) LORA_MUST_CHECK;
lora_status lora_make_adapter_norm(lora_decoder *d, lora_matrix *m, lora_error *err) LORA_MUST_CHECK; /* memory for m's */
void lora_free_adapter_norms(lora_decoder *d);

/* token_rows.c */
void lora_write_token_rows(lora_decoder *d);                    /* into the embedding, before a pass */
void lora_collect_token_rows(lora_decoder *d, bool complete);   /* gradients out of it (dropped unless complete) */

/* forward.c */
/** The adapter of matrix slot as this run uses it, or NULL; *storage backs it. */
const lora_adapter *lora_run_adapter(const lora_matrix *m, const lora_run *run, int64_t layer, int slot,
                                     lora_adapter *storage);
/** From token ids to the normed input of the head in b->xn. */
lora_status lora_layers_forward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) LORA_MUST_CHECK;
/** Fills the state of a layer from its input again; its output is not needed. */
lora_status lora_layer_recompute(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer,
                                 lora_error *err) LORA_MUST_CHECK;

/* backward.c: from b->dx, the gradient of the last layer's output, down to the lowest thing that trains */
lora_status lora_layers_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) LORA_MUST_CHECK;

/* kv_cache.c: stores the new keys and values (rows ld apart) and points the views at past and new rows together */
void lora_kv_append(const lora_run *run, int64_t layer, const float *k, const float *v, int64_t ld, lora_kv_view *views);

#endif
