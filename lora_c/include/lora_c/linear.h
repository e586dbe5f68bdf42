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

/** y[M,N] = x[M,K] · W[N,K]^T + bias + s · (drop(x) · A^T) · B^T       (added to y when accumulate)
 *  Shapes   x (M, K) with ldx >= K; y (M, N) with ldy >= N; bias (N) or NULL; adapter or NULL
 *  Types    float32 activations; W float32, bfloat16, NF4 or GGUF blocks (decoded while packing); float32 accumulation
 *  Alias    y may not overlap x, W, A, B or bias (EINVAL)
 *  Numerics |err| <= c · (K + R) · 2^-24 · |x|·|W|; order of sums fixed by the shape, same bits for any thread count
 *  Errors   ESHAPE, EINVAL, ENOMEM (scratch)
 *  Source   LoRA arXiv:2106.09685 eq. 3; QLoRA arXiv:2305.14314 eq. 5 */
lora_status lora_linear_forward(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, const lora_weight *w,
                                const float *bias, const lora_adapter *adapter, float *y, int64_t ldy,
                                bool accumulate, lora_error *err) LORA_MUST_CHECK;

enum {
    LORA_LINEAR_LAYERS = 4,
    LORA_SMALL_M = 24, /* tokens: up to here rows of W are read as they are, beyond they are packed */
};

/* One of several layers that read the same x; the fields are the arguments of lora_linear_forward. */
typedef struct lora_linear_layer {
    const lora_weight *w;
    const float *bias;
    const lora_adapter *adapter;
    float *y;
    int64_t ldy;
    bool accumulate;
} lora_linear_layer;

/** lora_linear_forward for each of n <= LORA_LINEAR_LAYERS layers, with the same bits. x is packed once for all; with few
 *  tokens (decoding) they and their adapters share one parallel region, so that small matrices cost no waiting. */
lora_status lora_linear_forward_many(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int64_t n,
                                     const lora_linear_layer *layers, lora_error *err) LORA_MUST_CHECK;

/** dx[M,K] = dy[M,N] · W[N,K] + s · drop'((dy · B) · A)      (added to dx when accumulate_dx; skipped when dx is NULL)
 *  dA += s · (dy · B)^T · drop(x)      dB += s · dy^T · (drop(x) · A^T)      dW += dy^T · x      dbias += sum over M of dy
 *  dW (N, K) contiguous and dbias (N) may be NULL (frozen). No activation is kept between forward and backward:
 *  x is given again and x · A^T is computed again. */
lora_status lora_linear_backward(lora_ctx *ctx, int64_t M, const float *dy, int64_t lddy, const float *x, int64_t ldx,
                                 const lora_weight *w, const lora_adapter *adapter, float *dx, int64_t lddx,
                                 bool accumulate_dx, float *dW, float *dbias, lora_error *err) LORA_MUST_CHECK;

/** norm[n] = ||W_n + s B_n A||, the row lengths that DoRA divides by (float32; sums in float64). Costs N · K · R; no (N, K)
 *  matrix is stored. A pass with DoRA reads them from adapter->norm and treats them as constants, as PEFT does:
 *      g = magnitude / norm (0 where norm is 0)      y = W x + (g - 1) W d + g s B A d + bias,  d = drop(x)
 *      dmagnitude += sum over M of dy · (W d + s B A d) / norm
 *  Source   DoRA, arXiv:2402.09353, eq. 5; norms outside the gradient, section 4.3. */
lora_status lora_dora_norm(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float *norm,
                           lora_error *err) LORA_MUST_CHECK;

/* One of several layers that read the same x, in the backward pass: the arguments of lora_linear_backward. */
typedef struct lora_linear_gradient {
    const float *dy;
    int64_t lddy;
    const lora_weight *w;
    const lora_adapter *adapter;
    float *dW, *dbias;
} lora_linear_gradient;

/** lora_linear_backward for n <= LORA_LINEAR_LAYERS layers of one x: dx (+)= the sum of their gradients, formed as one product. */
lora_status lora_linear_backward_many(lora_ctx *ctx, int64_t M, const float *x, int64_t ldx, int64_t n, const lora_linear_gradient *gradients,
                                      float *dx, int64_t lddx, bool accumulate_dx, lora_error *err) LORA_MUST_CHECK;

/** merged[N,K] (float32, contiguous) = W + sign · s · B · A; the product is rounded once per element. With DoRA it is
 *  g · (W + s B A), and sign must be 1. */
lora_status lora_linear_merge(lora_ctx *ctx, const lora_weight *w, const lora_adapter *adapter, float sign,
                              float *merged, lora_error *err) LORA_MUST_CHECK;

/** A[R,K] uniform in [-1/sqrt(K), 1/sqrt(K)), the Kaiming bound with a = sqrt 5 that PEFT uses; a function of seed only.
 *  B starts at zero, so a fresh adapter changes nothing.   Source  LoRA, arXiv:2106.09685, section 4.1 */
void lora_adapter_init(int64_t rank, int64_t in_features, uint64_t seed, float *A);

#ifdef __cplusplus
}
#endif
#endif
