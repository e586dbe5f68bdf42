/* The linear layer of LoRA and QLoRA.
 * Letters  M tokens, K in_features, N out_features, R rank. */
#ifndef LORA_C_LINEAR_H
#define LORA_C_LINEAR_H

#include <stdbool.h>

#include "lora_c/context.h"
#include "lora_c/types.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LORA_LINEAR_LAYERS = 4, /* of one call */
    /* Tokens: up to here rows of W are read as they are, beyond they are packed. NF4 of 2048 x 2048 on one core of an AMD EPYC
     * (Zen 4, AVX-512): packing from 17 tokens on is 1.2 (exact) to 1.4 times (bfloat16) as fast at 18 to 24 tokens; reading up
     * to 64 is 0.8 and 0.65 times as fast at 28 to 48. Another limit gives other bits. */
    LORA_SMALL_M = 24,
    LORA_DECODE_BATCH = 16, /* tokens: up to here the result of each has the bits that it gets alone */
};

/* Rows of x with an adapter of their own. */
typedef struct lora_adapter_rows {
    const lora_adapter *adapter;
    int64_t first, rows;
} lora_adapter_rows;

/* One of the layers that read the same x. */
typedef struct lora_linear_layer {
    const lora_weight *w;
    const float *bias;           /* (N) or NULL */
    const lora_adapter *adapter; /* or NULL */
    lora_adapter_pass pass;
    lora_mat y;      /* (M, N) */
    bool accumulate; /* added to y */
    /* Instead of adapter, with up to LORA_DECODE_BATCH tokens: (n_groups) runs of rows, rising and apart, no DoRA, no dropout.
     * Rows in none have no adapter; each has the bits that it gets alone. */
    const lora_adapter_rows *groups;
    int64_t n_groups;
} lora_linear_layer;

/** y_i[M,N_i] = x[M,K] · W_i[N_i,K]^T + bias_i + s_i · (drop_i(x) · A_i^T) · B_i^T  for each of n <= LORA_LINEAR_LAYERS layers
 *  Types    x float32 or bfloat16 (as in nn.h), y float32; W float32, bfloat16, NF4 or GGUF blocks (decoded while packing); float32
 *           accumulation
 *  Lent     of an x or dy of 16 bits the rest of each row, from its last column to ld: a device may write there
 *  Alias    no y may overlap x, W, A, B or a bias (EINVAL for x); column blocks of one buffer, side by side, are apart
 *  Numerics |err| <= (2 K + R + 16) 2^-24 S + e (S + T), T = |s| |drop(x)| |A|^T |B|^T, S = |x| |W|^T + T + |bias|. e is 0 with float32
 *           operands, 2^-7 + 2^-14 with bfloat16, 2^-12 with int16 (where the largest of 64 values stands for each in S and T).
 *           The order of sums is fixed by the shape: the same bits for any thread count and whichever layers share the call. x
 *           is packed once for all; with few tokens (decoding) the layers and their adapters share one parallel region, so
 *           that small matrices cost no waiting
 *  Errors   ESHAPE, EDTYPE, EINVAL, ENOMEM (scratch)
 *  Source   LoRA arXiv:2106.09685 eq. 3; QLoRA arXiv:2305.14314 eq. 5 */
lora_status lora_linear_forward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_layer *layers, lora_error *err) LORA_MUST_CHECK;

/* One of the layers that read the same x, in the backward pass. */
typedef struct lora_linear_gradient {
    lora_mat dy; /* (M, N), or bfloat16 */
    const lora_weight *w;
    const lora_adapter *adapter; /* or NULL */
    lora_adapter_pass pass;      /* as in forward */
    float *dW, *dbias;           /* (N, K) contiguous, (N): added to; NULL: frozen */
} lora_linear_gradient;

/** dx[M,K] = sum over i of dy_i[M,N_i] · W_i[N_i,K] + s_i · drop_i'((dy_i · B_i) · A_i)     (added to dx when accumulate_dx)
 *  dA += s · (dy · B)^T · drop(x)      dB += s · dy^T · (drop(x) · A^T)      dW += dy^T · x      dbias += sum over M of dy
 *  dx may be absent: not wanted; x may be absent where nothing above needs it. No activation is kept between forward and
 *  backward: x, float32 or bfloat16, is given again and x · A^T is computed again, unless pass.low has it.
 *  Alias    dx may not overlap x or a dy (EINVAL)      Errors  as lora_linear_forward */
lora_status lora_linear_backward(lora_ctx *ctx, lora_mat x, int64_t n, const lora_linear_gradient *gradients, lora_mat dx,
                                 bool accumulate_dx, lora_error *err) LORA_MUST_CHECK;

/** Whether lora_linear_forward of M tokens leaves drop(x) A^T of an adapter in pass.low, and the backward pass has use for it. */
bool lora_linear_keeps_low(const lora_ctx *ctx, int64_t M, const lora_adapter *adapter);

/** What x and dy of linear layers of M tokens are rounded to in the precision of ctx, where a caller may round them himself: bfloat16, and
 *  with it in x and dy the products have the same bits. Float32 elsewhere: the CPU's kernels round as they pack, and few tokens are read
 *  as they are. */
lora_dtype lora_linear_operand(const lora_ctx *ctx, int64_t M);

/** norm[n] = ||W_n + s B_n A||, the row lengths that DoRA divides by. Costs N · K · R; no (N, K) matrix is stored.
 *  Numerics |err| <= (R + 3) 2^-24 || |W_n| + |s| |B_n| |A| || (rows in float32, the sum of squares in float64).
 *  A pass with DoRA reads them from pass.norm and treats them as constants, as PEFT does:
 *      g = magnitude / norm (0 where norm is 0)      y = W x + (g - 1) W d + g s B A d + bias,  d = drop(x)
 *      dmagnitude += sum over M of dy · (W d + s B A d) / norm
 *  Source   DoRA, arXiv:2402.09353, eq. 5; norms outside the gradient, section 4.3. */
lora_status lora_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm, lora_error *err) LORA_MUST_CHECK;

/** merged[N,K] (float32, contiguous) = W + sign · s · B · A. With DoRA it is g · (W + s B A), and sign must be 1; norm is that of
 *  lora_dora_norm, and not read without DoRA. adapter NULL: W.
 *  Numerics |err| <= (R + 2) 2^-24 |s| |B| |A| + 2^-24 |merged| in every precision (without DoRA). With the other sign it comes out
 *           again: W up to 2^-24 (|merged| + |W|). */
lora_status lora_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, const float *norm, float sign,
                              float *merged, lora_error *err) LORA_MUST_CHECK;

/** The gradient dmerged (N, K) of W + s B A goes on to the adapter (no DoRA):
 *  dB += s · dmerged · A^T      dA += s · B^T · dmerged      (either may be NULL)
 *  Source   LoRA, arXiv:2106.09685, eq. 3, differentiated.   Errors  ESHAPE, EDTYPE, EINVAL, ENOMEM (scratch) */
lora_status lora_linear_merge_backward(lora_ctx *ctx, const lora_adapter *adapter, lora_mat dmerged, lora_error *err) LORA_MUST_CHECK;

/** A[R,K] uniform in [-1/sqrt(K), 1/sqrt(K)), the Kaiming bound with a = sqrt 5 that PEFT uses; a function of seed only.
 *  B starts at zero, so a fresh adapter changes nothing.   Source  LoRA, arXiv:2106.09685, section 4.1 */
void lora_adapter_init(int64_t rank, int64_t in_features, uint64_t seed, float *A);

#ifdef __cplusplus
}
#endif
#endif
