/* Float64 oracle of the row-wise kernels: the formulas of rowwise_kernels.h, one rounding at the end. */
#include <math.h>

#include "lora_c/kernels/rowwise_kernels.h"

static float rmsnorm_forward(int64_t n, const float *x, const float *weight, float offset, float eps, float *y) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    double rstd = 1.0 / sqrt(sum / (double)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = (float)(x[i] * rstd * ((double)offset + weight[i]));
    return (float)rstd;
}

static void rmsnorm_backward(int64_t n, const float *dy, const float *x, const float *weight, float offset, float rstd, float *dx,
                             bool accumulate, float *dweight) {
    double r = rstd, sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)dy[i] * ((double)offset + weight[i]) * x[i];
    double c = sum / (double)n * r * r;
    for (int64_t i = 0; i < n; i++) {
        double g = dy[i], v = x[i];
        if (dweight) dweight[i] = (float)(dweight[i] + g * v * r);
        if (dx) dx[i] = (float)((accumulate ? (double)dx[i] : 0.0) + r * (g * ((double)offset + weight[i]) - c * v));
    }
}

static float layernorm_forward(int64_t n, const float *x, const float *weight, const float *bias, float eps, float *y, float *mean) {
    double sum = 0.0, square = 0.0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    double m = sum / (double)n;
    for (int64_t i = 0; i < n; i++) square += (x[i] - m) * (x[i] - m);
    double rstd = 1.0 / sqrt(square / (double)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = (float)((x[i] - m) * rstd * weight[i] + bias[i]);
    *mean = (float)m;
    return (float)rstd;
}

static void layernorm_backward(int64_t n, const float *dy, const float *x, const float *weight, float mean, float rstd, float *dx,
                               bool accumulate, float *dweight, float *dbias) {
    double r = rstd, sum = 0.0, dot = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double g = (double)dy[i] * weight[i];
        sum += g / (double)n;
        dot += g * ((double)x[i] - mean) * r / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        double d = dy[i], z = ((double)x[i] - mean) * r;
        if (dweight) dweight[i] = (float)(dweight[i] + d * z);
        if (dbias) dbias[i] = (float)(dbias[i] + d);
        if (dx) dx[i] = (float)((accumulate ? (double)dx[i] : 0.0) + r * (d * weight[i] - sum - z * dot));
    }
}

static void rope(int64_t half, float *x, const float *cosine, const float *sine, float sign) {
    for (int64_t i = 0; i < half; i++) {
        double a = x[i], b = x[i + half], c = cosine[i], s = (double)sign * sine[i];
        x[i] = (float)(a * c - b * s);
        x[i + half] = (float)(b * c + a * s);
    }
}

static void swiglu_forward(int64_t n, const float *gate, const float *up, float *h) {
    for (int64_t i = 0; i < n; i++) {
        double g = gate[i];
        h[i] = (float)((up ? up[i] : 1.0) * (g / (1.0 + exp(-g))));
    }
}

static void swiglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
    for (int64_t i = 0; i < n; i++) {
        double d = dh[i], g = gate[i], u = up ? up[i] : 1.0, s = 1.0 / (1.0 + exp(-g));
        if (dup) dup[i] = (float)(d * g * s);
        dgate[i] = (float)(d * u * s * (1.0 + g * (1.0 - s)));
    }
}

static const double GELU_K = 0.79788456080286535588; /* sqrt(2 / pi) */

static void geglu_forward(int64_t n, const float *gate, const float *up, float *h) {
    for (int64_t i = 0; i < n; i++) {
        double g = gate[i], s = 1.0 / (1.0 + exp(-2.0 * GELU_K * (g + 0.044715 * g * g * g)));
        h[i] = (float)((up ? up[i] : 1.0) * (g * s));
    }
}

static void geglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
    for (int64_t i = 0; i < n; i++) {
        double d = dh[i], g = gate[i], u = up ? up[i] : 1.0;
        double e = exp(-2.0 * GELU_K * (g + 0.044715 * g * g * g)), s = 1.0 / (1.0 + e);
        double slope = isinf(e) ? 0.0 : g * e * s * s * (2.0 * GELU_K) * (1.0 + 3.0 * 0.044715 * g * g);
        if (dup) dup[i] = (float)(d * g * s);
        dgate[i] = (float)(d * u * (s + slope));
    }
}

static void reglu_forward(int64_t n, const float *gate, const float *up, float *h) {
    for (int64_t i = 0; i < n; i++) h[i] = (float)((up ? up[i] : 1.0) * (gate[i] < 0.0f ? 0.0 : gate[i]));
}

static void reglu_backward(int64_t n, const float *dh, const float *gate, const float *up, float *dgate, float *dup) {
    for (int64_t i = 0; i < n; i++) {
        double d = dh[i], u = up ? up[i] : 1.0, g = gate[i];
        if (dup) dup[i] = (float)(d * (g < 0.0 ? 0.0 : g));
        dgate[i] = (float)(g > 0.0 ? d * u : 0.0);
    }
}

static void softcap_forward(int64_t n, float cap, float *x) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)(cap * tanh((double)x[i] / cap));
}

static void softcap_backward(int64_t n, float cap, const float *y, float *d) {
    for (int64_t i = 0; i < n; i++) {
        double t = (double)y[i] / cap;
        d[i] = (float)(d[i] * (1.0 - t * t));
    }
}

static float row_max(int64_t n, const float *x) {
    float max = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (x[i] > max) max = x[i];
    return max;
}

static double exp_sum(int64_t n, float shift, float *x) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double e = exp((double)x[i] - shift);
        sum += e;
        x[i] = (float)e;
    }
    return sum;
}

static void adamw(int64_t n, float *p, const float *g, float *m, float *v, const lora_adamw_constants *c) {
    for (int64_t i = 0; i < n; i++) {
        double grad = (double)g[i] * c->grad_scale;
        double m1 = (double)m[i] * c->beta1 + grad * c->one_minus_beta1;
        double v1 = (double)v[i] * c->beta2 + grad * grad * c->one_minus_beta2;
        p[i] = (float)((double)p[i] * c->decay - c->step_size * m1 / (sqrt(v1) / c->sqrt_bias2 + c->eps));
        m[i] = (float)m1;
        v[i] = (float)v1;
    }
}

static double sum_of_squares(int64_t n, const float *g) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += (double)g[i] * g[i];
    return sum;
}

static void axpy(int64_t n, float a, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = (float)((double)a * x[i] + y[i]);
}

static void scale_row(int64_t n, float a, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = a * x[i];
}

static void multiply(int64_t n, const float *a, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = a[i] * x[i];
}

static void multiply_add(int64_t n, const float *a, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = (float)((double)a[i] * x[i] + y[i]);
}

static void exp_row(int64_t n, const float *x, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = x[i] < -87.3f ? 0.0f : (float)exp(x[i]);
}

void lora_rowwise_fill_ref(lora_rowwise_kernels *k) { LORA_ROWWISE_SLOTS(LORA_ROWWISE_ASSIGN) }
