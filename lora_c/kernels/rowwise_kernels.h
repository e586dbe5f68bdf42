/* Row-wise kernels: normalisation, rotary embedding, SwiGLU, sums of exponentials, AdamW and the small vector helpers.
 * Every slot works on one row (or one flat range) of float32 with unit stride, any length n >= 0, no alignment needed,
 * and touches nothing outside its n elements. All bits depend on n, the data and the rung only.
 * u = 2^-24. Errors are relative to the exact result on the same float32 inputs. */
#ifndef LORA_ROWWISE_KERNELS_H
#define LORA_ROWWISE_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "lora_c/base/util.h"
#include "lora_c/isa.h"

/* The constants of one AdamW call, computed once in float64 and rounded once. */
typedef struct lora_adamw_constants {
    float grad_scale;
    float decay; /* 1 - lr * weight_decay */
    float beta1, one_minus_beta1;
    float beta2, one_minus_beta2;
    float step_size;  /* lr / (1 - beta1^step) */
    float sqrt_bias2; /* sqrt(1 - beta2^step) */
    float eps;
} lora_adamw_constants;

typedef struct lora_rowwise_kernels {
    /** y[i] = x[i] * r * w[i], w = offset + weight, r = 1/sqrt(mean(x^2) + eps); returns r. n >= 1. An offset of 0 leaves
     *  the weight as it is; 1 is Gemma's.
     *  Alias     y may be x.        Numerics  |err| <= (n/8 + 12) u |y| (a sum in at least 8 lanes) */
    float (*rmsnorm_forward)(int64_t n, const float *x, const float *weight, float offset, float eps, float *y);

    /** c = mean(dy * w * x) * rstd^2;   dx[i] = rstd * (dy[i] * w[i] - c * x[i])   (added to when accumulate)
     *  dweight[i] += dy[i] * x[i] * rstd.    dx or dweight may be NULL.
     *  Alias     dx may be dy or x.
     *  Numerics  |err| <= 8 u rstd |dy w| + (n/8 + 12) u rstd^3 mean|dy w x| |x|; dweight 4 u rstd |dy x|;
     *            where it is added to: + 2 u |before| */
    void (*rmsnorm_backward)(int64_t n, const float *dy, const float *x, const float *weight, float offset, float rstd, float *dx,
                             bool accumulate, float *dweight);

    /** y[i] = (x[i] - mean) * r * weight[i] + bias[i], r = 1/sqrt(mean((x - mean)^2) + eps); returns r. n >= 1.
     *  Alias     y may be x.        Numerics  |err| <= (n/8 + 12) u (2 |y - bias| + max|x| r |weight|) + u |y| */
    float (*layernorm_forward)(int64_t n, const float *x, const float *weight, const float *bias, float eps, float *y, float *mean);

    /** z = (x - mean) * rstd, g = dy * weight;   dx = rstd * (g - mean(g) - z mean(g z))   (added to when accumulate)
     *  dweight[i] += dy[i] * z[i];   dbias[i] += dy[i].    dx, dweight or dbias may be NULL.
     *  Alias     dx may be dy or x.
     *  Numerics  |err| <= (n/8 + 12) u rstd (|g| + mean|g| + |z| mean|g z|); dweight 6 u |dy z|, dbias 2 u |dy|;
     *            where it is added to: + 2 u |before| */
    void (*layernorm_backward)(int64_t n, const float *dy, const float *x, const float *weight, float mean, float rstd, float *dx,
                               bool accumulate, float *dweight, float *dbias);

    /** The start of one head in place: (a, b) = (x[i], x[i + half]);  x[i] = a cos[i] - s b sin[i];  x[i + half] = b cos[i] + s a sin[i].
     *  s is sign: 1 forward, -1 backward. cos and sin have half elements.      Numerics  |err| <= 3 u (|a| + |b|) */
    void (*rope)(int64_t half, float *x, const float *cos, const float *sin, float sign);

    /** h[i] = up[i] * gate[i] / (1 + exp(-gate[i])). up NULL: without it.
     *  Alias     h may be gate or up.      Numerics  |err| <= 8 u |h| + 2^-120 |up| */
    void (*swiglu_forward)(int64_t n, const float *gate, const float *up, float *h);

    /** s = sigmoid(gate);   dgate = dh up s (1 + gate (1 - s));   dup = dh gate s. up and dup NULL: dgate without up.
     *  Alias     dgate may be gate; dup may be up or dh; without up, dgate may be dh.      Numerics  |err| <= 16 u (1 + |gate|) |dh up|, 8
     * u |dup| + 2^-120 |dh| */
    void (*swiglu_backward)(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup);

    /** h[i] = up[i] * gelu(gate[i]), gelu(x) = x s(x) with s = 1 / (1 + exp(-2 k (x + 0.044715 x^3))), k = sqrt(2/pi): the
     *  tanh form of GELU (arXiv:1606.08415, section 2). up NULL: h = gelu(gate).
     *  Alias     h may be gate or up.      Numerics  |err| <= (16 + 4 gate^2) u |h| + 2^-120 |up|, gate^2 at most 144 */
    void (*geglu_forward)(int64_t n, const float *gate, const float *up, float *h);

    /** dgate = dh up (s + gate s'), dup = dh gate s, with s as above. up and dup NULL: dgate = dh gelu'(gate).
     *  Alias     dgate may be gate; dup may be up or dh.
     *  Numerics  |err| <= (32 + 16 gate^2) u |dh up|, (16 + 4 gate^2) u |dup| + 2^-118 |dh|, gate^2 at most 144 */
    void (*geglu_backward)(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup);

    /** h[i] = up[i] * max(gate[i], 0). up NULL: without it.
     *  Alias     h may be gate or up.      Numerics  |err| <= u |h| */
    void (*reglu_forward)(int64_t n, const float *gate, const float *up, float *h);

    /** dgate = dh up where gate > 0, else 0;   dup = dh max(gate, 0). up and dup NULL: dgate without up.
     *  Alias     dgate may be gate; dup may be up or dh; without up, dgate may be dh.      Numerics  |err| <= u |result| */
    void (*reglu_backward)(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup);

    /** x[i] = cap * tanh(x[i] / cap), cap > 0.      Numerics  |err| <= 8 u |x| */
    void (*softcap_forward)(int64_t n, float cap, float *x);

    /** d[i] *= 1 - (y[i] / cap)^2, y a result of softcap_forward.      Numerics  |err| <= 4 u |d before| */
    void (*softcap_backward)(int64_t n, float cap, const float *y, float *d);

    /** The largest of n >= 1 values. A NaN may be passed over. */
    float (*max)(int64_t n, const float *x);

    /** x[i] = exp(x[i] - shift); returns their sum, which a NaN makes NaN.
     *  Numerics  |err| <= (4 + 2 |x - shift|) u exp(x - shift), + 100 u of the sum */
    double (*exp_sum)(int64_t n, float shift, float *x);

    /** g *= grad_scale;  p *= decay;  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;
     *  p -= step_size * m / (sqrt(v) / sqrt_bias2 + eps). Elementwise, no fused multiply-add, so that the portable and
     *  the SIMD rungs give the same bits. p, m, v and g do not overlap. */
    void (*adamw)(int64_t n, float *p, const float *g, float *m, float *v, const lora_adamw_constants *c);

    /** Sum of g[i]^2 in float64: 16 lanes (lane = i mod 16), then lanes l += l+8, l+4, l+2, l+1. A float32 square is exact in
     *  float64, so all rungs but the oracle give the same bits. */
    double (*sum_of_squares)(int64_t n, const float *g);

    /** y[i] += a * x[i]. The product is rounded once or not at all.      Alias     y may be x. */
    void (*axpy)(int64_t n, float a, const float *x, float *y);

    /** y[i] = a * x[i].      Alias     y may be x. */
    void (*scale)(int64_t n, float a, const float *x, float *y);

    /** y[i] = a[i] * x[i].      Alias     y may be a or x.      Numerics  rounded once */
    void (*multiply)(int64_t n, const float *a, const float *x, float *y);

    /** y[i] += a[i] * x[i]. The product is rounded once or not at all. */
    void (*multiply_add)(int64_t n, const float *a, const float *x, float *y);

    /** y[i] = exp(x[i]); 0 below -87.3, +Inf above 88.72, exactly 1 at 0, NaN kept.
     *  Alias     y may be x.      Numerics  at most 1.1 ulp from the exact value (measured) */
    void (*exp)(int64_t n, const float *x, float *y);
} lora_rowwise_kernels;

/* Every slot, and what each rung calls its function. */
#define LORA_ROWWISE_SLOTS(X)                                                                                                              \
    X(rmsnorm_forward, rmsnorm_forward)                                                                                                    \
    X(rmsnorm_backward, rmsnorm_backward)                                                                                                  \
    X(layernorm_forward, layernorm_forward)                                                                                                \
    X(layernorm_backward, layernorm_backward)                                                                                              \
    X(rope, rope)                                                                                                                          \
    X(swiglu_forward, swiglu_forward)                                                                                                      \
    X(swiglu_backward, swiglu_backward)                                                                                                    \
    X(geglu_forward, geglu_forward)                                                                                                        \
    X(geglu_backward, geglu_backward)                                                                                                      \
    X(reglu_forward, reglu_forward)                                                                                                        \
    X(reglu_backward, reglu_backward)                                                                                                      \
    X(softcap_forward, softcap_forward)                                                                                                    \
    X(softcap_backward, softcap_backward)                                                                                                  \
    X(max, row_max)                                                                                                                        \
    X(exp_sum, exp_sum)                                                                                                                    \
    X(adamw, adamw)                                                                                                                        \
    X(sum_of_squares, sum_of_squares)                                                                                                      \
    X(axpy, axpy)                                                                                                                          \
    X(scale, scale_row)                                                                                                                    \
    X(multiply, multiply)                                                                                                                  \
    X(multiply_add, multiply_add)                                                                                                          \
    X(exp, exp_row)

#define LORA_ROWWISE_ASSIGN(slot, function) k->slot = function;
#define LORA_ROWWISE_COUNT(slot, function) +1
_Static_assert(sizeof(lora_rowwise_kernels) == (LORA_ROWWISE_SLOTS(LORA_ROWWISE_COUNT)) * sizeof(void (*)(void)), "all slots are listed");

/** Fills every slot for the rung. */
void lora_rowwise_kernels_init(lora_rowwise_kernels *k, lora_isa isa);

/* Each rung fills what it has; implemented in ref/, portable/, x86/ and arm/. */
void lora_rowwise_fill_ref(lora_rowwise_kernels *k);
void lora_rowwise_fill_portable(lora_rowwise_kernels *k);
void lora_rowwise_fill_avx2(lora_rowwise_kernels *k);
void lora_rowwise_fill_avx512(lora_rowwise_kernels *k);
void lora_rowwise_fill_neon(lora_rowwise_kernels *k);

#endif
