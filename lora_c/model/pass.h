/* A pass: the tokens that go through a decoder, from the checks before it to what runs after it. */
#ifndef LORA_MODEL_PASS_H
#define LORA_MODEL_PASS_H

#include "lora_c/base/util.h"
#include "lora_c/model/decoder_struct.h"

/* Tokens that have the same adapters. */
typedef struct lora_run_group {
    const lora_decoder_adapters *adapters; /* NULL: none */
    int64_t first, rows;
} lora_run_group;

/* The tokens of a pass and what is done with them; arrays of the caller, on the host, or with virtual tokens among them from
 * lora_add_virtual_tokens on. cache == NULL: keys and values are the batch's own. */
typedef struct lora_run {
    int64_t n_tokens, n_segments;
    const int32_t *input_ids, *cu_seqlens;
    bool wants_loss;
    const int32_t *targets; /* read with wants_loss */
    const float *loss_weight;
    const float *values; /* read with wants_loss and lora_has_values */
    const lora_kv_cache *cache;
    const int32_t *sequences;
    const lora_run_group *groups; /* (n_groups): all tokens, with adapters in place of the decoder's own; 0: with those */
    int64_t n_groups;
    const int32_t *order;           /* (n_segments): where the caller has each; NULL: as here */
    const lora_layer_state *states; /* of a training pass, else NULL */
    bool training;
    uint64_t dropout_step;
    int64_t n_virtual;       /* rows of virtual tokens */
    int64_t layers_left_out; /* at the end; with any the final norm is left out, too */
} lora_run;

/* complete.c: names the first required weight that is missing */
lora_status lora_check_complete(const lora_decoder *d, lora_error *err) LORA_MUST_CHECK;

/* check_run.c */
/** Refuses what no pass could compute (missing weights, ids, segment table, lengths, targets) before anything is written. */
lora_status lora_check_run(const lora_decoder *d, const lora_run *run, lora_error *err) LORA_MUST_CHECK;
/** Tokens that a segment goes on from. */
int64_t lora_past_tokens(const lora_run *run, int64_t segment);
/** Virtual tokens that stand before a segment: where it begins a sequence. */
int64_t lora_virtual_before(const lora_decoder *d, const lora_run *run, int64_t segment);
/** Whether a pass only goes on with begun sequences: what was made of adapters for them then stands. */
bool lora_goes_on(const lora_run *run);

/* decoder_adapters.c */
/* Segments in the order of their adapters. */
typedef struct lora_grouped {
    int32_t cu_seqlens[LORA_DECODE_BATCH + 1], sequences[LORA_DECODE_BATCH], order[LORA_DECODE_BATCH], input_ids[LORA_DECODE_BATCH];
    lora_run_group groups[LORA_DECODE_BATCH];
    int64_t n_groups;
} lora_grouped;
/** Gives the segments of a run that was checked their adapters; g is its memory from here on. */
lora_status lora_group_segments(const lora_decoder *d, const lora_decoder_adapters *const *adapters, lora_run *run, lora_grouped *g,
                                lora_error *err) LORA_MUST_CHECK;
/** What adapters (NULL allowed) have on matrix slot of layer, or NULL. */
const lora_adapter *lora_adapter_at(const lora_decoder_adapters *adapters, int64_t layer, int slot);
/** The adapters of the groups of a run on matrix slot of layer in out (LORA_DECODE_BATCH). Returns how many there are. */
int64_t lora_run_groups(const lora_run *run, int64_t layer, int slot, lora_adapter_rows *out);

/* weights.c: whether a decoder could take an adapter (NULL: removed) */
lora_status lora_check_adapter(const lora_decoder *d, int64_t layer, int slot, const lora_adapter *adapter,
                               lora_error *err) LORA_MUST_CHECK;

/* pass.c */
/** Memory and tables of a pass that was checked, and what runs before it. After this lora_end_pass must follow. */
lora_status lora_begin_pass(lora_decoder *d, lora_run *run, lora_buffers *b, lora_error *err) LORA_MUST_CHECK;
/** What runs after a pass that ended with status, and waits for the device. Returns the first status that is not OK. */
lora_status lora_end_pass(lora_decoder *d, const lora_run *run, lora_status status, lora_error *err) LORA_MUST_CHECK;
/** Between two layers: whether somebody asked the pass to stop. */
lora_status lora_check_stop(const lora_decoder *d, lora_error *err) LORA_MUST_CHECK;

/* arena.c */
lora_status lora_arena_prepare(lora_decoder *d, int64_t n_tokens, bool training, lora_buffers *out, lora_error *err) LORA_MUST_CHECK;

/* offload.c */
/** At least so many bytes at d->offloaded. */
lora_status lora_reach_offloaded(lora_decoder *d, size_t bytes, lora_error *err) LORA_MUST_CHECK;
void lora_free_offloaded(lora_decoder *d);

/* carver.c */
/* Places behind each other from base on, which is never read; base NULL: only count. */
typedef struct lora_carver {
    unsigned char *base;
    size_t used; /* SIZE_MAX: more than the address space */
} lora_carver;
/** n elements at the next place; NULL when only counting. */
void *lora_carve(lora_carver *c, int64_t n, size_t element_bytes);

/* run_rows.c: a run whose segments have their virtual tokens */
/** Puts the virtual tokens of a run that was checked into its tables, which are the decoder's own from here on. */
lora_status lora_add_virtual_tokens(lora_decoder *d, lora_run *run, lora_error *err) LORA_MUST_CHECK;
/** Rows of the caller's tokens of x (M, cols): x itself, or copied to out, of as many columns. */
lora_status lora_real_rows(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_mat x, float *out, lora_mat *rows,
                           lora_error *err) LORA_MUST_CHECK;

/* batch_tables.c */
/** Places of the tables of a batch of n_tokens. */
lora_batch_tables lora_lay_tables(lora_carver *c, const lora_decoder *d, int64_t n_tokens);
/** Fills the tables on the host and sends them to b. */
lora_status lora_stage_batch(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_error *err) LORA_MUST_CHECK;

/* rope_tables.c */
lora_status lora_copy_inv_freq(lora_decoder *d, lora_error *err) LORA_MUST_CHECK;
/** Tables for every position of a run. */
lora_status lora_reach_positions(lora_decoder *d, const lora_run *run, lora_error *err) LORA_MUST_CHECK;
/** Of the tables, after a pass of n_tokens. */
int64_t lora_rope_tables_bytes(const lora_decoder *d, int64_t n_tokens);
void lora_free_rope_tables(lora_decoder *d);

/* project.c */
/** n consecutive slots from first on that read the same x, into as many outputs, with adapters and scaling vectors. Outputs with a
 *  scaling are not accumulated. */
lora_status lora_project(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int first, int64_t n, lora_mat x,
                         const lora_mat *out, bool accumulate, lora_error *err) LORA_MUST_CHECK;
/* The gradient of the output of matrix slot; one with a scaling is overwritten. */
typedef struct lora_projected {
    int slot;
    lora_mat dy;
} lora_projected;
/** Projections of one input, those that something wants a gradient of: dx (+)= the sum of their parts, one product. */
lora_status lora_project_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int n, const lora_projected *parts,
                                  lora_mat x, lora_mat dx, bool accumulate, lora_error *err) LORA_MUST_CHECK;
/** The adapter of matrix slot of layer for all tokens, or NULL, and what this run does with it. */
const lora_adapter *lora_run_adapter(const lora_layer *l, const lora_run *run, int64_t layer, int slot, lora_adapter_pass *pass);

/* bottleneck.c */
/** y = h and the update of h by the bottleneck of a place; y may be h. Uses b->xn. */
lora_status lora_bottleneck_forward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int place, lora_mat h, lora_mat y,
                                    lora_error *err) LORA_MUST_CHECK;
/** dy becomes the gradient of h, where below wants it; the bottleneck's own are added. Uses b->xn. */
lora_status lora_bottleneck_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int place, lora_mat dy,
                                     bool below, lora_error *err) LORA_MUST_CHECK;

/* forward.c */
/** What attention or the MLP reads of the stream x: its norm of slot, or x itself. */
lora_status lora_block_input(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, int slot, const float *x, float *stats,
                             lora_mat *out, lora_error *err) LORA_MUST_CHECK;
lora_attention_shape lora_layer_attention(const lora_decoder *d, int64_t layer);
/** RoPE on q and k of qkv as the layer has it; backward: the other way. */
lora_status lora_rotate(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, float *qkv, bool backward,
                        lora_error *err) LORA_MUST_CHECK;
/** b->h = activation(gate) * up of a layer, or activation(up). */
lora_status lora_layer_activation(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer,
                                  lora_error *err) LORA_MUST_CHECK;
/** From token ids to the normed input of the head in b->xn. */
lora_status lora_layers_forward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) LORA_MUST_CHECK;
/** Fills the state of a layer from its input again; its output is not needed. */
lora_status lora_layer_recompute(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) LORA_MUST_CHECK;
/** In backward: x2 of a layer, from its input and the output of attention; q, k and v, from its input, when h and dh are done with. */
lora_status lora_stream_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) LORA_MUST_CHECK;
lora_status lora_qkv_again(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) LORA_MUST_CHECK;

/* kept_layers.c: with activations in bfloat16, in int8 or in memory of the host, the copy of a layer that has run, and its state from the
 * copy */
lora_status lora_keep_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) LORA_MUST_CHECK;
lora_status lora_restore_layer(lora_decoder *d, const lora_run *run, lora_buffers *b, int64_t layer, lora_error *err) LORA_MUST_CHECK;
bool lora_keeps_copy(const lora_decoder *d, const lora_buffers *b, int64_t layer);
/** The memory of the copy of a layer at the next place. */
void *lora_carve_kept(lora_carver *at, const lora_decoder *d, const lora_buffers *b, int64_t layer, int64_t M);

/* passes.c */
/** logits (M, V), on the host, of M normed rows; V: rows of the head. */
lora_status lora_decoder_head(lora_decoder *d, int64_t M, const float *xn, float *logits, lora_error *err) LORA_MUST_CHECK;
/** A whole pass without its end: logits (n_segments, V), on the host, of the last token of each segment. */
lora_status lora_last_logits(lora_decoder *d, lora_run *run, float *logits, lora_error *err) LORA_MUST_CHECK;

/* backward.c: from b->dx, the gradient of the last layer's output, down to the lowest thing that trains */
lora_status lora_layers_backward(lora_decoder *d, const lora_run *run, lora_buffers *b, lora_error *err) LORA_MUST_CHECK;

/* An activation of the pass, a row per token: cols columns, of rows that are ld apart, or whole rows. data NULL: absent. */
static inline lora_mat lora_run_cols(const lora_run *run, const float *data, int64_t cols, int64_t ld) {
    return data ? lora_mat_f32(data, run->n_tokens, cols, ld) : lora_mat_none();
}
static inline lora_mat lora_run_mat(const lora_run *run, const float *data, int64_t cols) { return lora_run_cols(run, data, cols, cols); }

/* The same in a type: rows of 16 bits are at 16 bytes, where products read them as they are, and end with what is lent to linear layers. */
static inline int64_t lora_operand_ld(int64_t cols, lora_dtype dtype, int64_t lent) {
    return dtype == LORA_F32 ? cols : lora_round_up(cols, 8) + lent;
}
static inline lora_mat lora_run_typed(const lora_run *run, const void *data, int64_t cols, lora_dtype dtype, int64_t lent) {
    if (!data) return lora_mat_none();
    return (lora_mat){.data = (void *)data, .rows = run->n_tokens, .cols = cols, .ld = lora_operand_ld(cols, dtype, lent), .dtype = dtype};
}

/* operands.c */
lora_operand_types lora_operand_types_of(const lora_decoder *d, int64_t n_tokens);
lora_mat lora_attention_output(const lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer);
lora_mat lora_mlp_inner(const lora_decoder *d, const lora_run *run, const lora_buffers *b);
/** Where the gradients of gate and up of a layer go; without a gate the first is that of up. */
void lora_mlp_gradients(const lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, lora_mat *dgate, lora_mat *dup);

/* The segment table of a run. */
static inline lora_segments lora_run_segments(const lora_run *run, const lora_buffers *b) {
    return (lora_segments){.n = run->n_segments, .cu_seqlens = run->cu_seqlens, .on_device = b->tables.cu_seqlens};
}

/* kv_cache.c */
/** Stores the new keys and values (rows ld apart) of a layer. */
lora_status lora_kv_append(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, const float *k, const float *v,
                           int64_t ld, lora_error *err) LORA_MUST_CHECK;
/** Where the keys and values of a layer lie: in the cache, or in qkv. */
lora_kv lora_layer_kv(const lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, const float *qkv);

#endif
