/* The operations around the linear layers, each with its gradient. Matrices are float32 unless a line says otherwise: "or bfloat16" is a
 * choice of the caller on devices that have it (EDTYPE elsewhere, as on the CPU); a result is rounded to it once, to nearest, ties to even.
 * Letters  M tokens, H hidden size, D head_dim, V vocabulary. d<name> is the gradient of <name>.
 * Common   every array is at an address of the device. Outputs may not overlap inputs unless a line says so: "y may be x" means the
 *          same pointer and stride. Sums run in an order fixed by the shape; errors ESHAPE, EINVAL, EDTYPE, ENOMEM. */
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
 *  x, y (M, groups * H), y or bfloat16; y may be x. stats (M, groups, 2) receives 1/sqrt(...) and the mean (0 for RMS), or is NULL.
 *  Source   RMSNorm, arXiv:1910.07467, eq. 4; LayerNorm, arXiv:1607.06450, eq. 4 */
lora_status lora_norm_forward(lora_ctx *ctx, const lora_norm *norm, lora_mat x, lora_mat y, float *stats, lora_error *err) LORA_MUST_CHECK;
/** dx like x (added to when accumulate_dx, else it may be dy; may be absent), dweight and dbias (H, added to; may be NULL). */
lora_status lora_norm_backward(lora_ctx *ctx, const lora_norm *norm, lora_mat dy, lora_mat x, const float *stats, lora_mat dx,
                               bool accumulate_dx, float *dweight, float *dbias, lora_error *err) LORA_MUST_CHECK;

/** y = a * x (added to when accumulate), of the same shape; without accumulate y may be x. */
lora_status lora_scale_rows(lora_ctx *ctx, float a, lora_mat x, lora_mat y, bool accumulate, lora_error *err) LORA_MUST_CHECK;
/** y[m][n] = l[n] * x[m][n], l (N), of the same shape; y may be x. Rounded once.
 *  Source   IA3, arXiv:2205.05638, eq. 1 */
lora_status lora_scale_columns(lora_ctx *ctx, const float *l, lora_mat x, lora_mat y, lora_error *err) LORA_MUST_CHECK;
/** dx[m][n] = l[n] * dy[m][n] (added to when accumulate_dx, else dx may be dy; may be absent), dl[n] += sum over m of dy[m][n] * x[m][n]
 *  (dl NULL: not wanted, and x is not read).
 *  Numerics  with u = 2^-24: |err dl| <= (35 + M / 32) u sum|dy x| + 2 (1 + M / 32) u |dl before|, |err dx| <= u |l dy|, accumulated 2 u
 * more of both summands Source   IA3, arXiv:2205.05638, eq. 1, differentiated */
lora_status lora_scale_columns_backward(lora_ctx *ctx, const float *l, lora_mat dy, lora_mat x, lora_mat dx, bool accumulate_dx, float *dl,
                                        lora_error *err) LORA_MUST_CHECK;
/** x becomes softcap * tanh(x / softcap). */
lora_status lora_softcap_rows(lora_ctx *ctx, float softcap, lora_mat x, lora_error *err) LORA_MUST_CHECK;
/** dy becomes the gradient of x, from y, of the same shape, that lora_softcap_rows made of x: dy * (1 - (y / softcap)^2).
 *  Numerics  |err| <= 4 * 2^-24 |dy before| */
lora_status lora_softcap_backward(lora_ctx *ctx, float softcap, lora_mat y, lora_mat dy, lora_error *err) LORA_MUST_CHECK;

/** Copies rows of equal width: row i of the n goes from row from_rows[i] (NULL: i) of from to row to_rows[i] (NULL: i) of to, or is
 *  added to it when accumulate. At most one of the two tables is given; n is the number of rows of the matrix without one, and
 *  without any table both have n rows. to_rows holds distinct numbers, which is not checked.
 *  Errors   EINVAL with a row number outside its matrix, too */
lora_status lora_copy_rows(lora_ctx *ctx, lora_mat from, const int64_t *from_rows, lora_mat to, const int64_t *to_rows, bool accumulate,
                           lora_error *err) LORA_MUST_CHECK;
/** to = from, of the same shape, one of them float32 and the other bfloat16, to which is rounded to nearest, ties to even, or int8, to
 *  which is rounded as LORA_PRECISION_INT8 rounds x. Rounded again, a row of int8 has the same integers.
 *  Numerics  int8: |err| <= scale (1/2 + 127 * 2^-22); a block below 1e-36 is zero, one with a value that is not finite NaN
 *  Errors    EUNSUPPORTED int8 on a device that lacks it, too */
lora_status lora_convert_rows(lora_ctx *ctx, lora_mat from, lora_mat to, lora_error *err) LORA_MUST_CHECK;

/** cos[p][i] = scale * cos(positions[p] * inv_freq[i]), sin likewise, for p < n_positions, i < half; computed in float64,
 *  rounded once. positions NULL: 0, 1, ... n_positions - 1. inv_freq (half) lies in memory of the host. */
lora_status lora_rope_table(lora_ctx *ctx, int64_t n_positions, const int32_t *positions, int64_t half, const double *inv_freq,
                            double scale, float *cos, float *sin, lora_error *err) LORA_MUST_CHECK;

/* Tables of a rotation, a row per position. */
typedef struct lora_rotations {
    const float *cos, *sin; /* (n_positions, half) each */
    int64_t n_positions, half;
} lora_rotations;

/** Rotates the pairs (i, i + half) of the first 2 * half elements of each head of x (M, n_heads * head_dim) in place by the
 *  angle of positions[m], a row of the tables; backward rotates the other way (the gradient).
 *  positions[m] < n_positions is checked (EINVAL).
 *  Source   RoFormer, arXiv:2104.09864, eq. 34; half-split pairing of Hugging Face folders */
lora_status lora_rope(lora_ctx *ctx, const lora_rotations *rotations, int64_t n_heads, int64_t head_dim, const int32_t *positions,
                      lora_mat x, bool backward, lora_error *err) LORA_MUST_CHECK;

typedef struct lora_attention_shape {
    int64_t n_heads, n_kv_heads, head_dim; /* n_heads % n_kv_heads == 0 */
    float scale;                           /* usually 1/sqrt(head_dim) */
    int64_t sliding_window;                /* 0: none; else a query sees the last sliding_window keys, itself included */
    float softcap;                         /* 0: none; else scores become softcap * tanh(score / softcap) (Gemma 2) */
} lora_attention_shape;

/* Packed segments: segment s holds the rows cu_seqlens[s] .. cu_seqlens[s+1]-1. */
typedef struct lora_segments {
    int64_t n;
    const int32_t *cu_seqlens; /* (n + 1), ascending, in memory of the host: the work is planned by it */
    const int32_t *on_device;  /* the same values at an address of the device; the same pointer where that is the host */
} lora_segments;

/* Noise for the rows of packed segments. */
typedef struct lora_noise {
    float alpha;
    uint64_t seed, stream;
} lora_noise;

/** x[m,h] += alpha / sqrt(L H) * e, with L the tokens of the segment of row m, H the columns and e uniform in [-1, 1), drawn as
 *  element m H + h of (seed, stream): the same wherever and whenever it is asked for.   Numerics  float32, two roundings
 *  Source   NEFTune, arXiv:2310.05914, algorithm 1; Philox4x32-10, Salmon et al., SC 2011 */
lora_status lora_add_noise(lora_ctx *ctx, const lora_noise *noise, const lora_segments *segments, lora_mat x,
                           lora_error *err) LORA_MUST_CHECK;

/* Keys and values: segment s has rows start[s] .. start[s] + length[s] - 1 of k and of v, a row being (n_kv_heads * D) floats. In
 * training they are the segment's own tokens; with a KV cache they are all past tokens and the new ones. */
typedef struct lora_kv {
    const float *k, *v;
    int64_t ldk, ldv;
    const int64_t *start;
    const int64_t *length; /* >= the segment's number of queries; query i sees keys 0 .. length - n_queries + i */
} lora_kv;

/** Causal grouped-query attention over packed segments of queries.
 *  q, o (M, n_heads * D), o or bfloat16; lse (M, n_heads), the log of the softmax denominator with the maximum inside, or NULL.
 *  Tiled: no T×T matrix exists for more than one tile. Same bits for any thread count and any packing of segments.
 *  Numerics  the products have float32 operands; in precision FAST bfloat16 where the matrix product has (not int16), for
 *            segments without past keys and heads up to 1024 wide. Sums and the softmax are float32. With n keys, u = 2^-24 and the
 *            relative error e of an operand (0, or 2^-8 in bfloat16):
 *                |err o| <= max|v| (2 d + (n + 8) u + 2 e), |err lse| <= d + n u + 4 u |lse|,
 *                d = exp(((D + 4) u + 2 e) |scale| max |q||k| + (6 max|score| + 16) u) - 1, with a softcap 16 for the 6
 *  Source   FlashAttention-2, arXiv:2307.08691, algorithm 1 */
lora_status lora_attention_forward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments, lora_mat q,
                                   const lora_kv *kv, lora_mat o, float *lse, lora_error *err) LORA_MUST_CHECK;

/* The training case: keys and values are the segment's own rows of k and v. */
typedef struct lora_attention_gradient {
    lora_mat q, k, v;    /* (M, n_heads * D), then (M, n_kv_heads * D) twice */
    lora_mat o, dout;    /* (M, n_heads * D), o or bfloat16 */
    const float *lse;    /* (M, n_heads), of the forward pass as o is */
    lora_mat dq, dk, dv; /* overwritten */
} lora_attention_gradient;

/** dq, dk, dv.
 *  Numerics  as above, carried through p (dp - delta): tests/c/attention_oracle.c has the bounds.
 *  Source   FlashAttention-2, arXiv:2307.08691, algorithm 2 */
lora_status lora_attention_backward(lora_ctx *ctx, const lora_attention_shape *shape, const lora_segments *segments,
                                    const lora_attention_gradient *gradient, lora_error *err) LORA_MUST_CHECK;

typedef enum lora_activation { LORA_SILU, LORA_GELU_TANH, LORA_RELU, LORA_ACTIVATIONS } lora_activation;

/** h = activation(gate) * up, (M, inner), h or bfloat16; up absent: h = activation(gate). h may be gate or up.
 *  Source  GLU variants, arXiv:2002.05202; GELU, arXiv:1606.08415, section 2 */
lora_status lora_mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h,
                             lora_error *err) LORA_MUST_CHECK;
/** dgate, dup, either or bfloat16, from dh (up and dup absent together); dgate may be gate, dup may be up or dh. */
lora_status lora_mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate,
                              lora_mat dup, lora_error *err) LORA_MUST_CHECK;

/** y[m] = W[ids[m]], y (M, H), W (V, H) of any kind. ids outside 0 .. V-1 are refused by index (EINVAL). */
lora_status lora_embedding_forward(lora_ctx *ctx, const int32_t *ids, const lora_weight *w, lora_mat y, lora_error *err) LORA_MUST_CHECK;
/** dW[ids[m]] += dy[m], in the order of m; dy (M, H), dW (V, H). */
lora_status lora_embedding_backward(lora_ctx *ctx, const int32_t *ids, lora_mat dy, lora_mat dW, lora_error *err) LORA_MUST_CHECK;

/* What lies between x · W^T and the logits: first scale, then softcap * tanh(· / softcap). */
typedef struct lora_logit_map {
    float scale;   /* 1: none (Granite: 1 / logits_scaling) */
    float softcap; /* 0: none (Gemma 2) */
} lora_logit_map;

/* What a loss is made of, and where its sums go. */
typedef struct lora_loss {
    const int32_t *targets;   /* (M) */
    const float *loss_weight; /* (M); a target whose weight is 0 is not looked at */
    float grad_scale;
    double *loss_sum;  /* (1) */
    float *token_loss; /* (M), or NULL */
    lora_logit_map map;
} lora_loss;

/** Fused head and loss: logits = map(x · W^T) of rows with loss_weight != 0 exist in cache, a few rows and columns at a time.
 *  loss_sum   sum over m of loss_weight[m] * (logsumexp(logits[m]) - logits[m][targets[m]]), float64
 *  dx (M, H)  grad_scale * d loss_sum / dx, rows without weight are set to 0; absent: evaluation only
 *  dW (V, H)  added to; NULL: frozen head.   token_loss: the unweighted loss per token (0 where weight 0)
 *  targets outside 0 .. V-1 on weighted rows are refused by index. */
lora_status lora_linear_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, const lora_loss *loss, lora_mat dx, float *dW,
                                      lora_error *err) LORA_MUST_CHECK;

typedef enum lora_values_kind {
    LORA_VALUES_SQUARED_ERROR,  /* (y - v)^2 */
    LORA_VALUES_BINARY_ENTROPY, /* of a logit y and v from 0 to 1: -v log s(y) - (1 - v) log(1 - s(y)), s the logistic function */
} lora_values_kind;

/* What numbers are compared with, and where the sum goes. */
typedef struct lora_values {
    lora_values_kind kind;
    const float *values;      /* (M, N), contiguous */
    const float *loss_weight; /* (M); values of a row whose weight is 0 are not looked at */
    float grad_scale;
    double *loss_sum; /* (1) */
    float *row_loss;  /* (M), or NULL */
} lora_values;

/** The loss of numbers y (M, N) that are each compared with a value: a classifier's with more than one answer, or a regression's.
 *  loss_sum   sum over m of loss_weight[m] * the mean over n of kind(y[m][n], values[m][n]), float64
 *  dy (M, N)  grad_scale * d loss_sum / dy, rows without weight are set to 0; may be y; absent: evaluation only
 *  row_loss   the unweighted loss of each row (0 where weight 0)
 *  Numerics   formed in float64 and rounded once: |err| <= 2^-24 |dy| + 2^-149, of row_loss alike */
lora_status lora_values_loss(lora_ctx *ctx, lora_mat y, const lora_values *loss, lora_mat dy, lora_error *err) LORA_MUST_CHECK;

/* Which operands of products a weight is without being decoded. */
typedef enum lora_stored_kind {
    LORA_STORED_FLOAT32,
    LORA_STORED_BFLOAT16,
    LORA_STORED_PACKED, /* none */
    LORA_STORED_KINDS,
} lora_stored_kind;

/* The largest of what the operations of a training step work on; 0: there is none. */
typedef struct lora_scratch_shape {
    int64_t n_tokens, n_segments;
    int64_t widest; /* columns of the widest input of linear layers that share it */
    int64_t n_heads, n_kv_heads, head_dim;
    lora_weight head;             /* of a loss over its rows; the address of what it holds may be NULL */
    bool head_trains, head_alone; /* alone: nothing below it trains, so that its rows need no gradient */
    /* linear layers */
    int64_t weights[LORA_STORED_KINDS]; /* elements of the largest weight, with the rows or columns of its adapter */
    int64_t factor;                     /* elements of the largest A or B */
    int64_t rank, lent;                 /* the largest of adapters; the same where it is written behind rows of x and dy */
    int64_t x, dy;                      /* columns of the widest that is float32 */
    int64_t dropped;                    /* columns of the widest x with dropout */
    bool low_kept;                      /* s drop(x) A^T comes back in backward */
    int64_t dora;                       /* floats of a token: twice the outputs, with dropout four times the inputs */
    int64_t normed;                     /* elements of the largest weight with DoRA that is not float32 */
    int64_t summed;                     /* numbers of a row that are summed over the tokens */
    int64_t merged, merged_rank;        /* rows of an embedding or head whose adapter trains, and the rank of that */
} lora_scratch_shape;
/** Bytes that the operations of such a step work in. */
int64_t lora_scratch_bytes(const lora_ctx *ctx, const lora_scratch_shape *shape);

#ifdef __cplusplus
}
#endif
#endif
