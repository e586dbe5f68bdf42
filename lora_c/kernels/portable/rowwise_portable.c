/* Row-wise kernels in plain C. Reductions run in LANES independent sums, because a compiler may not reorder a float32
 * sum by itself; the lane loops are what it turns into vectors. */
#include <math.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/kernels/rowwise_kernels.h"
#include "lora_c/kernels/tmpl/exp_tmpl.h"

enum { LANES = 16, BLOCK = 4096 };

/* exp as in exp_tmpl.h. The range is handled on the bits, by masks: a compiler that honours floating-point traps keeps
 * float comparisons as branches, and a loop with branches does not become vector code. */
LORA_INLINE float exp_one(float x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: the sum has no room for a fraction, so it rounds */
    float t = x * LORA_EXP_LOG2E + round;
    float n = t - round;
    float r = (x - n * LORA_EXP_LN2_HI) - n * LORA_EXP_LN2_LO;
    float p = LORA_EXP_C6 * r + LORA_EXP_C5;
    p = p * r + LORA_EXP_C4;
    p = p * r + LORA_EXP_C3;
    p = p * r + LORA_EXP_C2;
    p = p * r + LORA_EXP_C1;
    p = (p * (r * r) + r) + 1.0f;

    enum { LOWEST = 0x42ae999a, HIGHEST = 0x42b17217, INFINITE = 0x7f800000 }; /* bits of 87.3, 88.7228, Inf */
    uint32_t input = lora_bits_f32(x), magnitude = input & 0x7fffffffu, negative = 0u - (input >> 31);
    uint32_t below = negative & (0u - (uint32_t)((int32_t)magnitude > LOWEST));
    uint32_t above = ~negative & (0u - (uint32_t)((int32_t)magnitude > HIGHEST));
    uint32_t nan = 0u - (uint32_t)((int32_t)magnitude > INFINITE);
    uint32_t y = lora_bits_f32(p) + (lora_bits_f32(t) << 23); /* the low bits of t hold n */
    y = (y & ~(below | above)) | (above & INFINITE);
    return lora_f32_bits((y & ~nan) | (input & nan));
}

LORA_INLINE float reduce(float *lane) {
    for (int w = LANES / 2; w; w /= 2)
        for (int l = 0; l < w; l++) lane[l] += lane[l + w];
    return lane[0];
}

static float rmsnorm_forward(int64_t n, const float *x, const float *weight, float offset, float eps, float *y) {
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += x[i + l] * x[i + l];
    for (; i < n; i++) lane[i % LANES] += x[i] * x[i];
    float rstd = 1.0f / sqrtf(reduce(lane) / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = x[i] * rstd * (offset + weight[i]);
    return rstd;
}

static void rmsnorm_backward(int64_t n, const float *dy, const float *x, const float *weight, float offset, float rstd, float *dx,
                             bool accumulate, float *dweight) {
    if (dweight)
        for (int64_t i = 0; i < n; i++) dweight[i] += dy[i] * (x[i] * rstd);
    if (!dx) return;
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += dy[i + l] * (offset + weight[i + l]) * x[i + l];
    for (; i < n; i++) lane[i % LANES] += dy[i] * (offset + weight[i]) * x[i];
    float c = reduce(lane) / (float)n * rstd * rstd;
    if (accumulate)
        for (i = 0; i < n; i++) dx[i] += rstd * (dy[i] * (offset + weight[i]) - c * x[i]);
    else
        for (i = 0; i < n; i++) dx[i] = rstd * (dy[i] * (offset + weight[i]) - c * x[i]);
}

static float layernorm_forward(int64_t n, const float *x, const float *weight, const float *bias, float eps, float *y, float *mean) {
    float sum[LANES] = {0}, square[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) sum[l] += x[i + l];
    for (; i < n; i++) sum[i % LANES] += x[i];
    float m = reduce(sum) / (float)n;
    for (i = 0; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) square[l] += (x[i + l] - m) * (x[i + l] - m);
    for (; i < n; i++) square[i % LANES] += (x[i] - m) * (x[i] - m);
    float rstd = 1.0f / sqrtf(reduce(square) / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = (x[i] - m) * rstd * weight[i] + bias[i];
    *mean = m;
    return rstd;
}

static void layernorm_backward(int64_t n, const float *dy, const float *x, const float *weight, float mean, float rstd, float *dx,
                               bool accumulate, float *dweight, float *dbias) {
    if (dweight)
        for (int64_t i = 0; i < n; i++) dweight[i] += dy[i] * ((x[i] - mean) * rstd);
    if (dbias)
        for (int64_t i = 0; i < n; i++) dbias[i] += dy[i];
    if (!dx) return;
    float sum[LANES] = {0}, dot[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            float g = dy[i + l] * weight[i + l];
            sum[l] += g;
            dot[l] += g * ((x[i + l] - mean) * rstd);
        }
    for (; i < n; i++) {
        float g = dy[i] * weight[i];
        sum[i % LANES] += g;
        dot[i % LANES] += g * ((x[i] - mean) * rstd);
    }
    float s = reduce(sum) / (float)n, d = reduce(dot) / (float)n;
    for (i = 0; i < n; i++) {
        float change = rstd * (dy[i] * weight[i] - s - (x[i] - mean) * rstd * d);
        dx[i] = accumulate ? dx[i] + change : change;
    }
}

static void rope(int64_t half, float *x, const float *cosine, const float *sine, float sign) {
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half], c = cosine[i], s = sign * sine[i];
        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

static void swiglu_forward(int64_t n, const float *gate, const float *up, float *h) {
    if (up)
        for (int64_t i = 0; i < n; i++) h[i] = up[i] * (gate[i] / (1.0f + exp_one(-gate[i])));
    else
        for (int64_t i = 0; i < n; i++) h[i] = gate[i] / (1.0f + exp_one(-gate[i]));
}

static void swiglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
    for (int64_t i = 0; i < n; i++) {
        float d = dh[i], g = gate[i], u = up ? up[i] : 1.0f, s = 1.0f / (1.0f + exp_one(-g));
        dgate[i] = d * u * (s * (1.0f + g * (1.0f - s)));
        if (dup) dup[i] = d * (g * s);
    }
}

/* exp(-2 k (x + 0.044715 x^3)): 1 + it is the denominator of the tanh form of GELU. */
LORA_INLINE float gelu_exp(float x) { return exp_one(x * (x * x * (-2.0f * LORA_GELU_K * 0.044715f) - 2.0f * LORA_GELU_K)); }

static void geglu_forward(int64_t n, const float *gate, const float *up, float *h) {
    if (up)
        for (int64_t i = 0; i < n; i++) h[i] = up[i] * (gate[i] / (1.0f + gelu_exp(gate[i])));
    else
        for (int64_t i = 0; i < n; i++) h[i] = gate[i] / (1.0f + gelu_exp(gate[i]));
}

static void geglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
    for (int64_t i = 0; i < n; i++) {
        float d = dh[i], g = gate[i], u = up ? up[i] : 1.0f, s = 1.0f / (1.0f + gelu_exp(g));
        float near = fabsf(g) < 64.0f ? g : 64.0f; /* beyond, s (1 - s) is 0 and the factor must stay finite */
        float inner = near * near * (6.0f * LORA_GELU_K * 0.044715f) + 2.0f * LORA_GELU_K;
        dgate[i] = d * u * (g * s * (1.0f - s) * inner + s);
        if (dup) dup[i] = d * (g * s);
    }
}

/* All bits where x > 0 (or a NaN without a sign), else none. */
LORA_INLINE uint32_t positive(float x) { return 0u - (uint32_t)((int32_t)lora_bits_f32(x) > 0); }

static void reglu_forward(int64_t n, const float *gate, const float *up, float *h) {
    for (int64_t i = 0; i < n; i++) {
        float g = gate[i], kept = g < 0.0f ? 0.0f : g; /* a NaN is kept */
        h[i] = up ? up[i] * kept : kept;
    }
}

static void reglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
    for (int64_t i = 0; i < n; i++) {
        float d = dh[i], g = gate[i], slope = up ? d * up[i] : d;
        if (dup) dup[i] = d * (g < 0.0f ? 0.0f : g);
        dgate[i] = lora_f32_bits(lora_bits_f32(slope) & positive(g));
    }
}

/* tanh: an odd polynomial near 0, where 1 - 2 / (exp(2x) + 1) would cancel (Cephes tanhf). */
LORA_INLINE float tanh_one(float x) {
    float z = x * x, p = LORA_TANH_C4;
    p = p * z + LORA_TANH_C3;
    p = p * z + LORA_TANH_C2;
    p = p * z + LORA_TANH_C1;
    p = p * z + LORA_TANH_C0;
    float large = 1.0f - 2.0f / (exp_one(x + x) + 1.0f);
    return fabsf(x) < LORA_TANH_SMALL ? p * z * x + x : large;
}

static void softcap_forward(int64_t n, float cap, float *x) {
    float inverse = 1.0f / cap;
    for (int64_t i = 0; i < n; i++) x[i] = cap * tanh_one(x[i] * inverse);
}

static void softcap_backward(int64_t n, float cap, const float *y, float *d) {
    float inverse = 1.0f / cap;
    for (int64_t i = 0; i < n; i++) {
        float t = y[i] * inverse;
        d[i] *= 1.0f - t * t;
    }
}

/* Integers in the order of the floats whose bits they come from; its own inverse. */
LORA_INLINE int32_t ordered(int32_t bits) { return bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1); }

static float row_max(int64_t n, const float *x) {
    int32_t top[LANES];
    for (int l = 0; l < LANES; l++) top[l] = INT32_MIN;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            int32_t key = ordered((int32_t)lora_bits_f32(x[i + l]));
            top[l] = key > top[l] ? key : top[l];
        }
    for (; i < n; i++) {
        int32_t key = ordered((int32_t)lora_bits_f32(x[i]));
        top[i % LANES] = key > top[i % LANES] ? key : top[i % LANES];
    }
    int32_t max = top[0];
    for (int l = 1; l < LANES; l++) max = top[l] > max ? top[l] : max;
    return lora_f32_bits((uint32_t)ordered(max));
}

static double exp_sum(int64_t n, float shift, float *x) {
    double total = 0.0; /* float32 inside a block, float64 between blocks: the error does not grow with n */
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        int64_t end = lora_min_i64(n, begin + BLOCK), i = begin;
        float lane[LANES] = {0};
        for (; i + LANES <= end; i += LANES) {
            for (int l = 0; l < LANES; l++) x[i + l] = exp_one(x[i + l] - shift);
            for (int l = 0; l < LANES; l++) lane[l] += x[i + l];
        }
        for (; i < end; i++) lane[i % LANES] += x[i] = exp_one(x[i] - shift);
        total += reduce(lane);
    }
    return total;
}

static void adamw(int64_t n, float *LORA_RESTRICT p, const float *LORA_RESTRICT g, float *LORA_RESTRICT m, float *LORA_RESTRICT v,
                  const lora_adamw_constants *constants) {
    lora_adamw_constants c = *constants;
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * c.grad_scale;
        m[i] = m[i] * c.beta1 + grad * c.one_minus_beta1;
        v[i] = v[i] * c.beta2 + grad * grad * c.one_minus_beta2;
        p[i] = p[i] * c.decay - c.step_size * m[i] / (sqrtf(v[i]) / c.sqrt_bias2 + c.eps);
    }
}

static double sum_of_squares(int64_t n, const float *g) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)g[i + l] * (double)g[i + l];
    for (; i < n; i++) lane[i % LANES] += (double)g[i] * (double)g[i];
    for (int w = LANES / 2; w; w /= 2)
        for (int l = 0; l < w; l++) lane[l] += lane[l + w];
    return lane[0];
}

static void axpy(int64_t n, float a, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void scale_row(int64_t n, float a, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = a * x[i];
}

static void multiply(int64_t n, const float *a, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = a[i] * x[i];
}

static void multiply_add(int64_t n, const float *a, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] += a[i] * x[i];
}

static void exp_row(int64_t n, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = exp_one(x[i]);
}

void lora_rowwise_fill_portable(lora_rowwise_kernels *k) { LORA_ROWWISE_SLOTS(LORA_ROWWISE_ASSIGN) }
