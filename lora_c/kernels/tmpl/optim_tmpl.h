/* The optimizers' kernels in plain C, for every rung: loops that a compiler turns into vectors of the width that it is allowed. The
 * including file gives RUNG, what stands before each function. */
#include <float.h>
#include <math.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/kernels/optim_kernels.h"

enum { LANES = 16 };

RUNG static void dynamic_decode(int64_t n, const uint8_t *codes, const float *map, float absmax, float *x) {
    for (int64_t i = 0; i < n; i++) x[i] = map[codes[i]] * absmax;
}

/* On the bits: magnitudes order as whole numbers, and such a loop becomes vectors. */
RUNG static float largest_magnitude(int64_t n, const float *x) {
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = lora_bits_f32(x[i]) & 0x7fffffffu;
        top = magnitude > top ? magnitude : top;
    }
    return top < 0x7f800000u ? lora_f32_bits(top) : FLT_MAX;
}

/* Loops of their own, so that they become vectors with gathers. */
RUNG static void dynamic_codes(int64_t n, const float *LORA_RESTRICT y, const lora_dynamic_search *LORA_RESTRICT s,
                               int32_t *LORA_RESTRICT code) {
    for (int64_t i = 0; i < n; i++) {
        int32_t bits = (int32_t)lora_bits_f32(y[i]), key = ((bits & 0x7fffffff) >> 18) - LORA_DYNAMIC_LOW_KEY;
        key = key < 0 ? 0 : key;
        key = key > LORA_DYNAMIC_BUCKETS - 1 ? LORA_DYNAMIC_BUCKETS - 1 : key;
        code[i] = s->base[key + (bits < 0 ? LORA_DYNAMIC_BUCKETS : 0)];
    }
    for (int step = 0; step < LORA_DYNAMIC_PER_BUCKET; step++)
        for (int64_t i = 0; i < n; i++) code[i] += y[i] >= s->first[code[i] + 1] ? 1 : 0;
}

RUNG static void dynamic_scaled(int64_t n, const float *LORA_RESTRICT x, float absmax, float *LORA_RESTRICT y) {
    float scale = absmax > 0 ? 1.0f / absmax : 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float scaled = x[i] * scale;
        scaled = scaled > 1.0f ? 1.0f : scaled;
        y[i] = scaled < -1.0f ? -1.0f : scaled;
    }
}

RUNG static float dynamic_encode(int64_t n, const float *x, const lora_dynamic_search *search, uint8_t *codes) {
    enum { PIECE = 256 };
    float absmax = largest_magnitude(n, x), y[PIECE];
    int32_t code[PIECE];
    for (int64_t first = 0; first < n; first += PIECE) {
        int64_t count = lora_min_i64(PIECE, n - first);
        dynamic_scaled(count, x + first, absmax, y);
        dynamic_codes(count, y, search, code);
        for (int64_t i = 0; i < count; i++) codes[first + i] = (uint8_t)code[i];
    }
    return absmax;
}

RUNG static void sgd(int64_t n, float *LORA_RESTRICT p, const float *LORA_RESTRICT g, float *LORA_RESTRICT m,
                     const lora_sgd_constants *constants) {
    lora_sgd_constants c = *constants;
    if (!m) {
        for (int64_t i = 0; i < n; i++) p[i] -= c.lr * (g[i] * c.grad_scale + c.weight_decay * p[i]);
        return;
    }
    float keep = c.first ? 0.0f : c.momentum, take = c.first ? 1.0f : c.one_minus_dampening;
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * c.grad_scale + c.weight_decay * p[i];
        m[i] = m[i] * keep + grad * take;
        p[i] -= c.lr * (c.nesterov ? grad + c.momentum * m[i] : m[i]);
    }
}

RUNG static void lion(int64_t n, float *LORA_RESTRICT p, const float *LORA_RESTRICT g, float *LORA_RESTRICT m,
                      const lora_lion_constants *constants) {
    lora_lion_constants c = *constants;
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * c.grad_scale, mixed = m[i] * c.beta1 + grad * c.one_minus_beta1;
        float sign = (float)((mixed > 0.0f) - (mixed < 0.0f));
        p[i] = p[i] * c.decay - c.lr * sign;
        m[i] = m[i] * c.beta2 + grad * c.one_minus_beta2;
    }
}

LORA_INLINE double add_lanes(double *lane) {
    for (int w = LANES / 2; w; w /= 2)
        for (int l = 0; l < w; l++) lane[l] += lane[l + w];
    return lane[0];
}

RUNG static double shifted_squares(int64_t n, const float *g, float scale, double add) {
    double lane[LANES] = {0}, s = scale;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)g[i + l] * s * ((double)g[i + l] * s) + add;
    for (; i < n; i++) lane[i % LANES] += (double)g[i] * s * ((double)g[i] * s) + add;
    return add_lanes(lane);
}

RUNG static void add_shifted_squares(int64_t n, const float *LORA_RESTRICT g, float scale, double add, double *LORA_RESTRICT sums) {
    double s = scale;
    for (int64_t i = 0; i < n; i++) sums[i] += (double)g[i] * s * ((double)g[i] * s) + add;
}

RUNG static double adafactor_squares(int64_t n, const float *g, float row, const float *col) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            double u = g[i + l] * row * col[i + l];
            lane[l] += u * u;
        }
    for (; i < n; i++) {
        double u = g[i] * row * col[i];
        lane[i % LANES] += u * u;
    }
    return add_lanes(lane);
}

RUNG static void adafactor(int64_t n, float *LORA_RESTRICT p, const float *LORA_RESTRICT g, float *LORA_RESTRICT m,
                           const float *LORA_RESTRICT col, const lora_adafactor_constants *constants) {
    lora_adafactor_constants c = *constants;
    if (!m) {
        for (int64_t i = 0; i < n; i++) p[i] = p[i] * c.decay - g[i] * c.row * col[i] * c.lr;
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        m[i] = m[i] * c.beta1 + g[i] * c.row * col[i] * c.lr * c.one_minus_beta1;
        p[i] = p[i] * c.decay - m[i];
    }
}

RUNG static void muon_momentum(int64_t n, const float *LORA_RESTRICT g, float *LORA_RESTRICT m, float *LORA_RESTRICT out,
                               const lora_muon_constants *constants) {
    lora_muon_constants c = *constants;
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * c.grad_scale * c.one_minus_momentum;
        m[i] = m[i] * c.momentum + grad;
        out[i] = c.nesterov ? m[i] * c.momentum + grad : m[i];
    }
}

RUNG static void decayed_step(int64_t n, float *LORA_RESTRICT p, const float *LORA_RESTRICT o, float decay, float lr) {
    for (int64_t i = 0; i < n; i++) p[i] = p[i] * decay - lr * o[i];
}
