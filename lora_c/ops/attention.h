/* What attention.c and attention_backward.c share. */
#ifndef LORA_OPS_ATTENTION_H
#define LORA_OPS_ATTENTION_H

#include "lora_c/kernels/attention_kernels.h"
#include "lora_c/nn.h"

/** Refuses a segment table that does not ascend from 0 on or goes beyond M rows; EINVAL. */
lora_status lora_attention_check_segments(const lora_segments *segments, int64_t M, lora_error *err) LORA_MUST_CHECK;

/** The kernels of the context's precision for heads of D elements. */
const lora_attention_kernels *lora_attention_kernels_of(const lora_ctx *ctx, int64_t D);

/** The pairs of a query and a key that it sees, over all heads: the measure of the work. length (segments->n): keys of each segment;
 *  NULL: its own. */
double lora_attention_pairs(const lora_attention_shape *shape, const lora_segments *segments, const int64_t *length);

/** The segment s with first[s] <= item < first[s + 1]; first has n + 1 ascending entries. */
int64_t lora_attention_segment_of(const int64_t *first, int64_t n, int64_t item);

#endif
