/* What lies between the projections of the feed-forward layer: an activation, with or without a gate.
 * Source   GLU variants, arXiv:2002.05202; GELU, arXiv:1606.08415, section 2 (its tanh form as x s(2 k (x + c x^3))) */
#include "lora_c/cuda/elements.cuh"
#include "lora_c/cuda/table.h"

namespace {

constexpr float GELU_2K = 1.5957691216057308f; /* 2 sqrt(2 / pi) */
constexpr float GELU_C = 0.044715f;
constexpr float GELU_FLAT = 12.0f; /* from here on the slope is 0 or 1 to the last bit */

/* f(g) and f'(g) */
struct activated {
    float value, slope;
};

/* 1 + exp(-z) is infinite where the value is below 2^-120 of its factors. */
template <int KIND> __device__ __forceinline__ activated activation_at(float g, bool with_slope) {
    activated a = {0, 0};
    if (KIND == LORA_RELU) {
        a.value = g < 0.0f ? 0.0f : g;
        a.slope = g > 0.0f ? 1.0f : 0.0f;
        return a;
    }
    float z = KIND == LORA_SILU ? g : GELU_2K * (g + GELU_C * g * g * g), e = 1.0f + expf(-z);
    a.value = g / e;
    if (!with_slope) return a;
    float s = 1.0f / e, rest = 1.0f - s;
    if (KIND == LORA_SILU)
        a.slope = s * (1.0f + g * rest);
    else
        a.slope = fabsf(g) > GELU_FLAT ? s : s + g * s * rest * (GELU_2K * (1.0f + 3.0f * GELU_C * g * g));
    return a;
}

/* m: gate, up, h of any type */
template <int KIND> struct forward {
    enum { WIDTH = 4 };
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> g = lora_get<W>(lora_at(m[0], row, col));
        for (int i = 0; i < W; i++) g.v[i] = activation_at<KIND>(g.v[i], false).value;
        if (m[1].data) {
            lora_floats<W> u = lora_get<W>(lora_at(m[1], row, col));
            for (int i = 0; i < W; i++) g.v[i] = u.v[i] * g.v[i];
        }
        lora_put_at<W>(m[2], row, col, g);
    }
};

/* m: dh, gate, up, dgate and dup of any type. All is read before anything is written: outputs may be inputs. */
template <int KIND> struct backward {
    enum { WIDTH = 4 };
    template <int W> __device__ __forceinline__ void at(const lora_mat *m, int64_t row, int64_t col) const {
        lora_floats<W> d = lora_get<W>(lora_at(m[0], row, col)), g = lora_get<W>(lora_at(m[1], row, col)), u, dgate;
        if (m[2].data) u = lora_get<W>(lora_at(m[2], row, col));
        for (int i = 0; i < W; i++) {
            activated a = activation_at<KIND>(g.v[i], true);
            float du = m[2].data ? d.v[i] * u.v[i] : d.v[i];
            dgate.v[i] = KIND == LORA_RELU ? (g.v[i] > 0.0f ? du : 0.0f) : du * a.slope;
            d.v[i] = d.v[i] * a.value; /* dup */
        }
        lora_put_at<W>(m[3], row, col, dgate);
        if (m[4].data) lora_put_at<W>(m[4], row, col, d);
    }
};

} // namespace

lora_status lora_cuda_mlp_forward(lora_ctx *ctx, lora_activation activation, lora_mat gate, lora_mat up, lora_mat h, lora_error *err) {
    const lora_mat m[3] = {gate, up, h};
    if (activation == LORA_SILU) return lora_cuda_each(ctx, "mlp_forward", forward<LORA_SILU>{}, m, true, true, err);
    if (activation == LORA_RELU) return lora_cuda_each(ctx, "mlp_forward", forward<LORA_RELU>{}, m, true, true, err);
    return lora_cuda_each(ctx, "mlp_forward", forward<LORA_GELU_TANH>{}, m, true, true, err);
}

lora_status lora_cuda_mlp_backward(lora_ctx *ctx, lora_activation activation, lora_mat dh, lora_mat gate, lora_mat up, lora_mat dgate,
                                   lora_mat dup, lora_error *err) {
    const lora_mat m[5] = {dh, gate, up, dgate, dup};
    if (activation == LORA_SILU) return lora_cuda_each(ctx, "mlp_backward", backward<LORA_SILU>{}, m, true, true, err);
    if (activation == LORA_RELU) return lora_cuda_each(ctx, "mlp_backward", backward<LORA_RELU>{}, m, true, true, err);
    return lora_cuda_each(ctx, "mlp_backward", backward<LORA_GELU_TANH>{}, m, true, true, err);
}
