/* What only some models have: it runs before or after every pass (pass.c lists it), or stands in for a weight. */
#ifndef LORA_MODEL_EXTRAS_H
#define LORA_MODEL_EXTRAS_H

#include "lora_c/model/pass.h"

/* Work around a pass, in memory that the pass reads or has written. */
typedef struct lora_pass_hook {
    lora_status (*before)(lora_decoder *d, const lora_run *run, lora_error *err);               /* or NULL */
    lora_status (*after)(lora_decoder *d, const lora_run *run, bool complete, lora_error *err); /* or NULL; complete: the pass did all */
} lora_pass_hook;

/* adapter_norms.c: the row norms of DoRA adapters */
extern const lora_pass_hook lora_adapter_norms_hook;
lora_status lora_make_adapter_norm(lora_decoder *d, lora_matrix *m, lora_error *err) LORA_MUST_CHECK; /* memory for m's */
void lora_forget_adapter_norms(lora_decoder *d);
void lora_free_adapter_norms(lora_decoder *d);

/* adapted_globals.c: adapters of LORA_EMBED_TOKENS and LORA_LM_HEAD */
extern const lora_pass_hook lora_adapted_globals_hook;
lora_weight lora_global_weight(const lora_decoder *d, lora_matrix_slot slot); /* as a pass reads it; the head's may be tied */
float *lora_global_gradient(const lora_decoder *d, lora_matrix_slot slot);
lora_status lora_make_adapted_global(lora_decoder *d, lora_matrix_slot slot, const lora_adapter *adapter,
                                     lora_error *err) LORA_MUST_CHECK; /* memory for it; adapter NULL: none */
void lora_forget_adapted_globals(lora_decoder *d);                     /* after a weight has changed */
void lora_free_adapted_globals(lora_decoder *d);
int64_t lora_adapted_globals_bytes(const lora_decoder *d);
/** Clears what a pass had begun to write into them. */
lora_status lora_drop_adapted_gradients(lora_decoder *d, lora_error *err) LORA_MUST_CHECK;

/* virtual_tokens.c: trained tokens before each sequence */
/** Their rows of the first residual stream, before learned positions are added: embeddings, or zero where only keys and values count. */
lora_status lora_put_virtual_embeddings(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_error *err) LORA_MUST_CHECK;
/** Their keys and values of a layer into qkv, after the rotation. memory: (n_virtual, KV), for nothing else meanwhile. */
lora_status lora_put_prefix(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer, float *memory,
                            lora_error *err) LORA_MUST_CHECK;
/** The gradients at their rows go to the parameters, summed in the order of the segments, and nothing of them goes on. */
lora_status lora_collect_embeddings(lora_decoder *d, const lora_run *run, const lora_buffers *b, lora_error *err) LORA_MUST_CHECK;
lora_status lora_collect_prefix(lora_decoder *d, const lora_run *run, const lora_buffers *b, int64_t layer,
                                lora_error *err) LORA_MUST_CHECK;
bool lora_prompt_trains(const lora_decoder *d);
void lora_free_virtual_tokens(lora_decoder *d);

/* prefix_encoder.c */
extern const lora_pass_hook lora_prefix_encoder_hook;
lora_status lora_make_prefix_encoder(lora_decoder *d, const lora_virtual_tokens *tokens, lora_virtual *out,
                                     lora_error *err) LORA_MUST_CHECK; /* its memory */
int64_t lora_prefix_encoder_bytes(const lora_decoder *d);
void lora_free_prefix_encoder(lora_decoder *d, lora_virtual *v);
lora_status lora_drop_prefix_gradient(lora_decoder *d, lora_error *err) LORA_MUST_CHECK;

/* token_rows.c: rows of the embedding that train alone */
extern const lora_pass_hook lora_token_rows_hook;
lora_status lora_drop_token_gradients(lora_decoder *d, lora_error *err) LORA_MUST_CHECK;
void lora_free_token_rows(lora_decoder *d);

#endif
