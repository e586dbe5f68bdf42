/* Float64 oracle of the optimizers' kernels: the formulas of optim_kernels.h, one rounding at the end. */
#include <float.h>
#include <math.h>

#include "lora_c/kernels/optim_kernels.h"

static void dynamic_decode(int64_t n, const uint8_t *codes, const float *map, float absmax, float *x) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)((double)map[codes[i]] * absmax);
}

/* The scale and the distances are float32 by the contract; all 256 values are tried. */
static float dynamic_encode(int64_t n, const float *x, const lora_dynamic_search *search, uint8_t *codes) {
    float absmax = 0;
    for (int64_t i = 0; i < n; i++) absmax = fabsf(x[i]) > absmax ? fabsf(x[i]) : absmax;
    if (isinf(absmax)) absmax = FLT_MAX;
    for (int64_t i = 0; i < n; i++) {
        float y = absmax > 0 ? fminf(1.0f, fmaxf(-1.0f, x[i] * (1.0f / absmax))) : 0.0f;
        int nearest = 0;
        for (int c = 1; c < 256; c++)
            if (fabsf(y - search->map[c]) < fabsf(y - search->map[nearest])) nearest = c;
        codes[i] = (uint8_t)nearest;
    }
    return absmax;
}

static void sgd(int64_t n, float *p, const float *g, float *m, const lora_sgd_constants *c) {
    for (int64_t i = 0; i < n; i++) {
        double grad = (double)g[i] * c->grad_scale + (double)c->weight_decay * p[i], step = grad;
        if (m) {
            double momentum = c->first ? grad : (double)m[i] * c->momentum + c->one_minus_dampening * grad;
            step = c->nesterov ? grad + c->momentum * momentum : momentum;
            m[i] = (float)momentum;
        }
        p[i] = (float)(p[i] - c->lr * step);
    }
}

static void lion(int64_t n, float *p, const float *g, float *m, const lora_lion_constants *c) {
    for (int64_t i = 0; i < n; i++) {
        double grad = (double)g[i] * c->grad_scale, mixed = (double)m[i] * c->beta1 + c->one_minus_beta1 * grad;
        double sign = (double)((mixed > 0) - (mixed < 0));
        p[i] = (float)((double)p[i] * c->decay - c->lr * sign);
        m[i] = (float)((double)m[i] * c->beta2 + c->one_minus_beta2 * grad);
    }
}

static double shifted_squares(int64_t n, const float *g, float scale, double add) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)g[i] * scale) * ((double)g[i] * scale) + add;
    return sum;
}

static void add_shifted_squares(int64_t n, const float *g, float scale, double add, double *sums) {
    for (int64_t i = 0; i < n; i++) sums[i] += ((double)g[i] * scale) * ((double)g[i] * scale) + add;
}

static double adafactor_squares(int64_t n, const float *g, float row, const float *col) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double u = (double)g[i] * row * col[i];
        sum += u * u;
    }
    return sum;
}

static void adafactor(int64_t n, float *p, const float *g, float *m, const float *col, const lora_adafactor_constants *c) {
    for (int64_t i = 0; i < n; i++) {
        double u = (double)g[i] * c->row * col[i] * c->lr;
        if (m) {
            u = (double)m[i] * c->beta1 + c->one_minus_beta1 * u;
            m[i] = (float)u;
        }
        p[i] = (float)((double)p[i] * c->decay - u);
    }
}

static void muon_momentum(int64_t n, const float *g, float *m, float *out, const lora_muon_constants *c) {
    for (int64_t i = 0; i < n; i++) {
        double grad = (double)g[i] * c->grad_scale * c->one_minus_momentum;
        double m1 = (double)c->momentum * m[i] + grad;
        out[i] = (float)(c->nesterov ? c->momentum * m1 + grad : m1);
        m[i] = (float)m1;
    }
}

static void decayed_step(int64_t n, float *p, const float *o, float decay, float lr) {
    for (int64_t i = 0; i < n; i++) p[i] = (float)((double)p[i] * decay - (double)lr * o[i]);
}

void lora_optim_fill_ref(lora_optim_kernels *k) { LORA_OPTIM_SLOTS(LORA_OPTIM_ASSIGN) }
