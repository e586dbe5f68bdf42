/* What attention.c and attention_backward.c share. */
#ifndef LORA_OPS_ATTENTION_H
#define LORA_OPS_ATTENTION_H

#include "lora_c/kernels/attention_kernels.h"
#include "lora_c/nn.h"

/** Refuses impossible shapes and segment tables; ESHAPE, EINVAL. */
lora_status lora_attention_check(const lora_attention_shape *shape, int64_t n_segments, const int32_t *cu_seqlens,
                                 lora_error *err) LORA_MUST_CHECK;
/** Refuses a NULL pointer or a row stride below width. rows 0: anything goes. */
lora_status lora_attention_check_rows(const char *name, const void *p, int64_t rows, int64_t ld, int64_t width,
                                      lora_error *err) LORA_MUST_CHECK;

/** The kernels of the context's precision for heads of D elements. */
const lora_attention_kernels *lora_attention_kernels_of(const lora_ctx *ctx, int64_t D);

/** The pairs of a query and a key that it sees, over all heads: the measure of the work. kv NULL: each segment's own keys. */
double lora_attention_pairs(const lora_attention_shape *shape, int64_t n_segments, const int32_t *cu_seqlens,
                            const lora_kv_view *kv);

/** The segment s with first[s] <= item < first[s + 1]; first has n + 1 ascending entries. */
int64_t lora_attention_segment_of(const int64_t *first, int64_t n, int64_t item);

#endif
