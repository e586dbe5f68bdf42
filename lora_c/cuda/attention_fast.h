/* Attention with bfloat16 operands, for segments without past keys. Widths of heads are rounded up to one of a few. */
#ifndef LORA_CUDA_ATTENTION_FAST_H
#define LORA_CUDA_ATTENTION_FAST_H

#include "lora_c/cuda/attention.cuh"

/* Shared memory of the most demanding kernel, with heads of 256: four tiles of 64 rows, three numbers of two stages of 32 rows, a place. */
enum { LORA_CUDA_ATTENTION_SHARED = 4 * 64 * (256 + 8) * 2 + 2 * 32 * 3 * 4 + sizeof(attention_place) };

/** Whether a context's precision, its device and heads of D elements allow for it. */
bool lora_cuda_attention_is_fast(const lora_ctx *ctx, int64_t D);
/** D rounded up to 32, 64, 96, 128 or 256. */
int64_t lora_cuda_attention_width(int64_t D);

/* A float32 matrix of the tokens of segments, to be rounded to (n_kv_heads, tokens * group, width). */
typedef struct lora_cuda_pack {
    const float *from;
    int64_t ld, D, width, heads, group;
    const int32_t *cu; /* (n + 1), on the device */
    int64_t n, first, tokens;
    const int64_t *start, *length; /* rows of segments; those with past keys are left out. NULL: rows are tokens */
    bool aligned;
    uint16_t *to;
} lora_cuda_pack;
lora_status lora_cuda_attention_pack(lora_cuda *c, const lora_cuda_pack *pack, lora_error *err) LORA_MUST_CHECK;

/** Leaves segments with past keys or few rows alone. */
lora_status lora_cuda_attention_forward_fast(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                             const lora_kv *kv, lora_mat o, float *lse, lora_error *err) LORA_MUST_CHECK;
/** Leaves segments with few rows alone. delta (M, n_heads): the sums of dout * o over each head. */
lora_status lora_cuda_attention_backward_fast(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                              const lora_attention_gradient *gradient, const float *delta, lora_error *err) LORA_MUST_CHECK;

/* Calls launch<D>(...) of the width; the arguments are evaluated once. */
#define LORA_CUDA_BY_WIDTH(width, launch, ...)                                                                                             \
    ((width) == 32    ? launch<32>(__VA_ARGS__)                                                                                            \
     : (width) == 64  ? launch<64>(__VA_ARGS__)                                                                                            \
     : (width) == 96  ? launch<96>(__VA_ARGS__)                                                                                            \
     : (width) == 128 ? launch<128>(__VA_ARGS__)                                                                                           \
                      : launch<256>(__VA_ARGS__))

#endif
