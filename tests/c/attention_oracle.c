#include "attention_oracle.h"

#include <math.h>
#include <stdlib.h>

#include "lora_c/base/half.h"

/* Bounds. u = 2^-24, e the error of an operand. A score has error ((D + 4) u + 2 e) scale |q|.|k| plus a few u |score|, so a
 * probability has the relative error delta below, a weighted mean over n keys 2 delta + (n + 8) u + 2 e times the largest
 * value; the gradient carries the same through p * (dp - delta) with |dp|, |delta| <= A = max |dout|.|v|. */
static const double unit = 0x1p-24;

/* An operand of a product. */
static double operand(const attention_oracle *a, double x) { return a->bf16 ? (double)lora_bf16_to_f32(lora_f32_to_bf16((float)x)) : x; }

static double *array(int64_t n) { return calloc((size_t)n + 1, sizeof(double)); }

void attention_oracle_create(attention_oracle *a, int64_t T, int64_t past, int64_t H, int64_t KV, int64_t D, int64_t window, double scale) {
    int64_t q = T * H * D, k = (past + T) * KV * D;
    *a = (attention_oracle){.T = T, .past = past, .H = H, .KV = KV, .D = D, .window = window, .scale = scale};
    double **q_sized[] = {&a->q, &a->dout, &a->o, &a->dq, &a->lse, &a->tol_o, &a->tol_lse, &a->tol_dq};
    double **k_sized[] = {&a->k, &a->v, &a->dk, &a->dv, &a->tol_dk, &a->tol_dv};
    for (int i = 0; i < 8; i++) *q_sized[i] = array(q);
    for (int i = 0; i < 6; i++) *k_sized[i] = array(k);
}

void attention_oracle_destroy(attention_oracle *a) {
    double *all[] = {a->q, a->dout, a->o, a->dq, a->lse, a->tol_o, a->tol_lse, a->tol_dq, a->k, a->v, a->dk, a->dv, a->tol_dk, a->tol_dv};
    for (int i = 0; i < 14; i++) free(all[i]);
}

static double dot(int64_t D, const double *x, const double *y) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += x[d] * y[d];
    return sum;
}

static double product(const attention_oracle *a, const double *x, const double *y) {
    double sum = 0;
    for (int64_t d = 0; d < a->D; d++) sum += operand(a, x[d]) * operand(a, y[d]);
    return sum;
}

static double dot_abs(int64_t D, const double *x, const double *y) {
    double sum = 0;
    for (int64_t d = 0; d < D; d++) sum += fabs(x[d] * y[d]);
    return sum;
}

static double max_abs(int64_t D, const double *x) {
    double m = 0;
    for (int64_t d = 0; d < D; d++) m = fmax(m, fabs(x[d]));
    return m;
}

/* The keys that query i sees are first .. past + i. */
static int64_t first_key(const attention_oracle *a, int64_t i) {
    int64_t first = a->window > 0 ? a->past + i - a->window + 1 : 0;
    return first > 0 ? first : 0;
}

/* The offset of row i, head h of q; of key j, head h / group of k. */
static int64_t at_q(const attention_oracle *a, int64_t i, int64_t h) { return (i * a->H + h) * a->D; }
static int64_t at_k(const attention_oracle *a, int64_t j, int64_t h) { return (j * a->KV + h / (a->H / a->KV)) * a->D; }

/* The score of a query and a key; *slope: its derivative by scale * dot. */
static double score(const attention_oracle *a, const double *q, const double *k, double *slope) {
    double s = a->scale * product(a, q, k), t = a->softcap > 0 ? tanh(s / a->softcap) : 0;
    *slope = 1 - t * t;
    return a->softcap > 0 ? a->softcap * t : s;
}

static void forward_row(attention_oracle *a, int64_t i, int64_t h) {
    const double *q = a->q + at_q(a, i, h);
    double max = -INFINITY, slope, sum = 0, products = 0, scores = 0, v_max = 0, *o = a->o + at_q(a, i, h);
    int64_t first = first_key(a, i), last = a->past + i;
    for (int64_t j = first; j <= last; j++) {
        double s = score(a, q, a->k + at_k(a, j, h), &slope);
        max = fmax(max, s);
        scores = fmax(scores, fabs(s));
        products = fmax(products, dot_abs(a->D, q, a->k + at_k(a, j, h)));
        v_max = fmax(v_max, max_abs(a->D, a->v + at_k(a, j, h)));
    }
    for (int64_t d = 0; d < a->D; d++) o[d] = 0;
    for (int64_t j = first; j <= last; j++) {
        double p = exp(score(a, q, a->k + at_k(a, j, h), &slope) - max);
        sum += p;
        for (int64_t d = 0; d < a->D; d++) o[d] += operand(a, p) * operand(a, a->v[at_k(a, j, h) + d]);
    }
    for (int64_t d = 0; d < a->D; d++) o[d] /= sum;
    double n = (double)(last - first + 1);
    double delta =
        expm1(((double)(a->D + 4) * unit + 2 * a->operand) * fabs(a->scale) * products + unit * ((a->softcap > 0 ? 16 : 6) * scores + 16));
    a->lse[i * a->H + h] = max + log(sum);
    a->tol_o[i * a->H + h] = v_max * (2 * delta + (n + 8) * unit + 2 * a->operand);
    a->tol_lse[i * a->H + h] = delta + n * unit + 4 * unit * fabs(max + log(sum));
}

static void backward_row(attention_oracle *a, int64_t i, int64_t h) {
    const double *q = a->q + at_q(a, i, h), *dout = a->dout + at_q(a, i, h);
    double *dq = a->dq + at_q(a, i, h), D = (double)a->D, scale = fabs(a->scale);
    double delta = dot(a->D, dout, a->o + at_q(a, i, h)), lse = a->lse[i * a->H + h];
    double weight = 0, k_max = 0, dout_sum = 0;
    int64_t first = first_key(a, i), last = a->past + i;
    for (int64_t j = first; j <= last; j++) {
        weight = fmax(weight, dot_abs(a->D, dout, a->v + at_k(a, j, h)));
        k_max = fmax(k_max, max_abs(a->D, a->k + at_k(a, j, h)));
    }
    for (int64_t d = 0; d < a->D; d++) dout_sum += fabs(dout[d]);
    /* the error of ds relative to p, and of sums over at most all rows of the group */
    double p_error = 2 * a->tol_lse[i * a->H + h] + 4 * unit;
    double ds_error = scale * (2 * weight * p_error + ((2 * D + 8) * unit + 2 * a->operand) * weight + dout_sum * a->tol_o[i * a->H + h]);
    double sums = (double)((a->past + a->T) * a->H / a->KV + 4) * unit + 2 * a->operand;
    if (a->softcap > 0) /* the error of 1 - tanh^2 */
        ds_error += scale * 2 * weight * (2 * a->tol_lse[i * a->H + h] / a->softcap + 8 * unit);
    double each = ds_error + sums * scale * 2 * weight;
    a->tol_dq[i * a->H + h] = k_max * each;
    for (int64_t j = first; j <= last; j++) {
        int64_t kj = at_k(a, j, h);
        double slope, p = exp(score(a, q, a->k + kj, &slope) - lse);
        double ds = operand(a, a->scale * slope * p * (product(a, dout, a->v + kj) - delta)), rounded = operand(a, p);
        for (int64_t d = 0; d < a->D; d++) {
            dq[d] += ds * operand(a, a->k[kj + d]);
            a->dk[kj + d] += ds * operand(a, q[d]);
            a->dv[kj + d] += rounded * operand(a, dout[d]);
        }
        a->tol_dk[kj / a->D] += p * each * max_abs(a->D, q);
        a->tol_dv[kj / a->D] += p * (p_error + sums) * max_abs(a->D, dout);
    }
}

void attention_oracle_forward(attention_oracle *a) {
    for (int64_t i = 0; i < a->T; i++)
        for (int64_t h = 0; h < a->H; h++) forward_row(a, i, h);
}

void attention_oracle_backward(attention_oracle *a) {
    for (int64_t n = 0; n < (a->past + a->T) * a->KV * a->D; n++) a->dk[n] = a->dv[n] = a->tol_dk[n] = a->tol_dv[n] = 0;
    for (int64_t n = 0; n < a->T * a->H * a->D; n++) a->dq[n] = 0;
    for (int64_t i = 0; i < a->T; i++)
        for (int64_t h = 0; h < a->H; h++) backward_row(a, i, h);
}
