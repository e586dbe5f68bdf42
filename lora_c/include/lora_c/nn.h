/* The operations around the linear layers, each with its gradient. All activations float32, row-major.
 * Letters  M tokens, H hidden size, D head_dim, V vocabulary. ld* in elements. d<name> is the gradient of <name>.
 * Common   outputs may not overlap inputs unless a line says so; sums run in an order fixed by the shape;
 *          errors ESHAPE, EINVAL, ENOMEM. */
#ifndef LORA_C_NN_H
#define LORA_C_NN_H

#include <stdbool.h>

#include "lora_c/context.h"
#include "lora_c/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum lora_norm_kind { LORA_NORM_RMS, LORA_NORM_LAYER } lora_norm_kind;

/* A norm. A row is groups vectors of H elements behind each other (the heads of q or k; else 1), each normed by itself. */
typedef struct lora_norm {
    lora_norm_kind kind;
    int64_t H, groups;
    float eps;
    float weight_offset; /* RMS: added to the weight (Gemma's 1 + w); 0 otherwise */
    const float *weight; /* (H) */
    const float *bias;   /* (H) for LAYER; not read for RMS */
} lora_norm;

/** RMS: y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight). LAYER: y = (x - mean) / sqrt(var + eps) * weight + bias.
 *  stats (M, groups, 2) receives 1/sqrt(...) and the mean (0 for RMS), or is NULL. y may be x (same pointer and stride).
 *  Source   RMSNorm, arXiv:1910.07467, eq. 4; LayerNorm, arXiv:1607.06450, eq. 4 */
lora_status lora_norm_forward(lora_ctx *ctx, const lora_norm *norm, int64_t M, const float *x, int64_t ldx, float *y,
                              int64_t ldy, float *stats, lora_error *err) LORA_MUST_CHECK;
/** dx (added to when accumulate_dx, else it may be dy; may be NULL), dweight and dbias (H, added to; may be NULL). */
lora_status lora_norm_backward(lora_ctx *ctx, const lora_norm *norm, int64_t M, const float *dy, int64_t lddy,
                               const float *x, int64_t ldx, const float *stats, float *dx, int64_t lddx,
                               bool accumulate_dx, float *dweight, float *dbias, lora_error *err) LORA_MUST_CHECK;

/** y = a * x (added to when accumulate), (M, N); without accumulate y may be x (same pointer and stride). */
lora_status lora_scale_rows(lora_ctx *ctx, int64_t M, int64_t N, float a, const float *x, int64_t ldx, float *y,
                            int64_t ldy, bool accumulate, lora_error *err) LORA_MUST_CHECK;

/** cos[p][i] = scale * cos(positions[p] * inv_freq[i]), sin likewise, for p < n_positions, i < half; computed in float64,
 *  rounded once. positions NULL: 0, 1, ... n_positions - 1. */
lora_status lora_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                            double scale, float *cos, float *sin, lora_error *err) LORA_MUST_CHECK;
/** Rotates the pairs (i, i + rotary/2) of the first rotary elements of each head of x (M, n_heads * D) in place by the
 *  angle of positions[m], a row of the tables (n_positions, rotary/2); backward rotates the other way (the gradient).
 *  positions[m] < n_positions is checked (EINVAL).
 *  Source   RoFormer, arXiv:2104.09864, eq. 34; half-split pairing of Hugging Face folders */
lora_status lora_rope(lora_ctx *ctx, int64_t M, int64_t n_heads, int64_t D, int64_t rotary, float *x, int64_t ldx,
                      const int32_t *positions, const float *cos, const float *sin, int64_t n_positions, bool backward,
                      lora_error *err) LORA_MUST_CHECK;

typedef struct lora_attention_shape {
    int64_t n_heads, n_kv_heads, head_dim; /* n_heads % n_kv_heads == 0 */
    float scale;                           /* usually 1/sqrt(head_dim) */
    int64_t sliding_window;                /* 0: none; else a query sees the last sliding_window keys, itself included */
    float softcap;                         /* 0: none; else scores become softcap * tanh(score / softcap) (Gemma 2) */
} lora_attention_shape;

/* Keys and values of one segment: row t of k is (n_kv_heads * D) floats at k + t * ldk. In training the rows are the
 * segment's own tokens; with a KV cache they are all past tokens and the new ones. */
typedef struct lora_kv_view {
    const float *k, *v;
    int64_t ldk, ldv;
    int64_t length; /* >= the segment's number of queries; query i sees keys 0 .. length - n_queries + i */
} lora_kv_view;

/** Causal grouped-query attention over packed segments: segment s holds query rows cu_seqlens[s] .. cu_seqlens[s+1]-1.
 *  o (M, n_heads * D); lse (M, n_heads), the log of the softmax denominator with the maximum inside, or NULL.
 *  Tiled: no T×T matrix exists for more than one tile. Same bits for any thread count and any packing of segments.
 *  Numerics  the products have float32 operands; in precision FAST bfloat16 where the matrix product has (not int16), for
 *            segments without past keys and heads up to 1024 wide. Sums and the softmax are float32.
 *  Source   FlashAttention-2, arXiv:2307.08691, algorithm 1 */
lora_status lora_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, int64_t n_segments,
                                   const int32_t *cu_seqlens, const float *q, int64_t ldq, const lora_kv_view *kv,
                                   float *o, int64_t ldo, float *lse, lora_error *err) LORA_MUST_CHECK;
/** dq, dk, dv (overwritten) for the training case: keys and values are the segment's own rows of k and v. Numerics as above.
 *  Source   FlashAttention-2, arXiv:2307.08691, algorithm 2 */
lora_status lora_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, int64_t n_segments,
                                    const int32_t *cu_seqlens, const float *q, int64_t ldq, const float *k, int64_t ldk,
                                    const float *v, int64_t ldv, const float *o, int64_t ldo, const float *lse,
                                    const float *dout, int64_t lddo, float *dq, int64_t lddq, float *dk, int64_t lddk,
                                    float *dv, int64_t lddv, lora_error *err) LORA_MUST_CHECK;

typedef enum lora_activation { LORA_SILU, LORA_GELU_TANH } lora_activation;

/** h = activation(gate) * up, (M, inner); up NULL (GELU only): h = activation(gate). h may be gate or up (same pointer
 *  and stride).   Source  GLU variants, arXiv:2002.05202; GELU, arXiv:1606.08415, section 2 */
lora_status lora_mlp_forward(lora_ctx *ctx, lora_activation activation, int64_t M, int64_t inner, const float *gate,
                             int64_t ldg, const float *up, int64_t ldu, float *h, int64_t ldh,
                             lora_error *err) LORA_MUST_CHECK;
/** dgate, dup from dh (up and dup NULL together); dgate may be gate, dup may be up or dh (same pointer and stride). */
lora_status lora_mlp_backward(lora_ctx *ctx, lora_activation activation, int64_t M, int64_t inner, const float *dh,
                              int64_t lddh, const float *gate, int64_t ldg, const float *up, int64_t ldu, float *dgate,
                              int64_t lddg, float *dup, int64_t lddu, lora_error *err) LORA_MUST_CHECK;

/** y[m] = W[ids[m]], W (V, H) of any kind. ids outside 0 .. V-1 are refused by index (EINVAL). */
lora_status lora_embedding_forward(lora_ctx *ctx, int64_t M, const int32_t *ids, const lora_weight *w, float *y,
                                   int64_t ldy, lora_error *err) LORA_MUST_CHECK;
/** dW[ids[m]] += dy[m], in the order of m. */
lora_status lora_embedding_backward(lora_ctx *ctx, int64_t M, const int32_t *ids, const float *dy, int64_t lddy,
                                    int64_t V, int64_t H, float *dW, lora_error *err) LORA_MUST_CHECK;

/* What lies between x · W^T and the logits: first scale, then softcap * tanh(· / softcap). */
typedef struct lora_logit_map {
    float scale;   /* 1: none (Granite: 1 / logits_scaling) */
    float softcap; /* 0: none (Gemma 2) */
} lora_logit_map;

/** Applies the softcap of the map to M rows of N logits in place; the scale is the caller's alpha. */
lora_status lora_softcap_rows(lora_ctx *ctx, int64_t M, int64_t N, float softcap, float *x, int64_t ldx,
                              lora_error *err) LORA_MUST_CHECK;

/** Fused head and loss: logits = map(x · W^T) of rows with loss_weight != 0 exist in cache, a few rows and columns at a time.
 *  loss_sum   sum over m of loss_weight[m] * (logsumexp(logits[m]) - logits[m][targets[m]]), float64
 *  dx (M, H)  grad_scale * d loss_sum / dx, rows without weight are set to 0; NULL: evaluation only
 *  dW (V, H)  added to; NULL: frozen head.   token_loss (M): the unweighted loss per token (0 where weight 0), or NULL
 *  targets outside 0 .. V-1 on weighted rows are refused by index. */
lora_status lora_linear_cross_entropy(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, const lora_weight *w,
                                      lora_logit_map map, const int32_t *targets, const float *loss_weight, float grad_scale,
                                      double *loss_sum, float *token_loss, float *dx, int64_t lddx, float *dW,
                                      lora_error *err) LORA_MUST_CHECK;
/** Bytes of scratch that a frozen head needs for M rows with loss. */
int64_t lora_linear_cross_entropy_scratch(const lora_ctx *ctx, int64_t M, const lora_weight *w);

#ifdef __cplusplus
}
#endif
#endif
