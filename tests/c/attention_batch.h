/* Packed batches for the attention checks: buffers between guard bands, one run of both directions, comparisons. */
#ifndef TESTS_ATTENTION_BATCH_H
#define TESTS_ATTENTION_BATCH_H

#include "attention_oracle.h"
#include "check.h"
#include "lora_c/nn.h"

enum { MAX_SEGMENTS = 8, ATTENTION_GUARD = 19 };

/* A packed batch in fused buffers: rows of qkv are [q | k | v | gap], of out [o | gap], with NaN in every gap and in a
 * band around each buffer. Gaps are odd unless given, so rows are misaligned in every way. */
typedef struct attention_batch {
    lora_attention_shape shape;
    int64_t n, M, ld, ld_out;
    int32_t cu[MAX_SEGMENTS + 1];
    float *qkv, *dqkv, *out, *dout, *lse;
} attention_batch;

/* n floats, NaN, between bands of NaN. */
float *attention_buffer(int64_t n);
void attention_buffer_free(float *p);

/* n segments; q, k, v uniform in +-size, dout in +-1. */
attention_batch attention_batch_create(int64_t D, int64_t H, int64_t KV, int64_t window, int64_t n, const int *lengths, float size);
/* With these gaps. */
attention_batch attention_batch_create_apart(int64_t D, int64_t H, int64_t KV, int64_t window, int64_t n, const int *lengths, float size,
                                             int64_t gap, int64_t gap_out);
void attention_batch_destroy(attention_batch *b);
int64_t attention_q_width(const attention_batch *b);
int64_t attention_k_width(const attention_batch *b);

lora_ctx *attention_context(lora_isa isa, int n_threads, lora_precision precision);
const char *attention_rung(const lora_ctx *ctx); /* the rung, or "fast" */
lora_segments attention_batch_segments(const attention_batch *b);
void attention_batch_run(lora_ctx *ctx, attention_batch *b); /* forward and backward */
/* The same with buffers, starts of segments and their lengths at addresses of the device. */
void attention_batch_run_at(lora_ctx *ctx, const attention_batch *b, const int32_t *cu, const int64_t *start, const int64_t *length);

/* Segment s in float64; operand: the relative error of an operand that its bounds allow; bf16: rounds operands itself. */
attention_oracle attention_batch_oracle(const attention_batch *b, int64_t s, double operand, bool bf16);
/* Every element within its bound. */
void attention_batch_compare(const attention_batch *b, int64_t s, const attention_oracle *a, const char *what);
/* Every gap and band still NaN. */
bool attention_batch_guards_hold(const attention_batch *b);

bool attention_same_rows(const float *a, const float *b, int64_t rows, int64_t ld, int64_t width);
bool attention_batch_same(const attention_batch *a, int64_t a_row, const attention_batch *b, int64_t b_row, int64_t rows);

#endif
