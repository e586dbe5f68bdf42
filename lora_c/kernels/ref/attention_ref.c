/* Attention tiles with float64 accumulation: the oracle of the other rungs. Two passes over the keys, no tiling. */
#include "lora_c/kernels/attention_kernels.h"

#include <math.h>

#include "lora_c/base/util.h"

static double dot(int64_t D, const float *a, const float *b) {
    double sum = 0.0;
    for (int64_t d = 0; d < D; d++) sum += (double)a[d] * b[d];
    return sum;
}

/* The score of a query and a key: scale * dot, then the soft cap; *slope: its derivative by scale * dot. */
static double score(float scale, float softcap, int64_t D, const float *q, const float *k, double *slope) {
    double x = scale * dot(D, q, k);
    if (slope) *slope = 1.0;
    if (!(softcap > 0)) return x;
    double t = tanh(x / softcap);
    if (slope) *slope = 1.0 - t * t;
    return softcap * t;
}

static int64_t first_key(int64_t last, int64_t window) { return window > 0 ? lora_max_i64(last - window + 1, 0) : 0; }

static void attention_forward_ref(const lora_attention_forward_tile *t) {
    /* the scratch is floats; D doubles fit twice over in what the contract asks for */
    double *out = (double *)(void *)t->scratch;
    for (int64_t i = 0; i < t->n_queries; i++) {
        int64_t last = t->last + i, first = first_key(last, t->window);
        for (int64_t h = 0; h < t->group; h++) {
            const float *q = t->q + i * t->ldq + h * t->D;
            double max = -INFINITY, sum = 0.0;
            for (int64_t j = first; j <= last; j++) max = fmax(max, score(t->scale, t->softcap, t->D, q, t->k + j * t->ldk, NULL));
            for (int64_t d = 0; d < t->D; d++) out[d] = 0.0;
            for (int64_t j = first; j <= last; j++) {
                double p = exp(score(t->scale, t->softcap, t->D, q, t->k + j * t->ldk, NULL) - max);
                sum += p;
                for (int64_t d = 0; d < t->D; d++) out[d] += p * t->v[j * t->ldv + d];
            }
            for (int64_t d = 0; d < t->D; d++) t->o[i * t->ldo + h * t->D + d] = (float)(out[d] / sum);
            if (t->lse) t->lse[i * t->ld_lse + h] = (float)(max + log(sum));
        }
    }
}

static void attention_delta_ref(int64_t M, int64_t n_heads, int64_t D, const float *dout, int64_t lddo, const float *o, int64_t ldo,
                                float *delta) {
    for (int64_t m = 0; m < M; m++)
        for (int64_t h = 0; h < n_heads; h++) delta[m * n_heads + h] = (float)dot(D, dout + m * lddo + h * D, o + m * ldo + h * D);
}

/* The scores of query i, head h against key j: p and scale * ds; false when the key is not seen. */
static bool probability(const lora_attention_backward_tile *t, int64_t i, int64_t h, int64_t j, double *p, double *ds) {
    int64_t last = t->last + i;
    if (j > last || j < first_key(last, t->window)) return false;
    double slope, s = score(t->scale, t->softcap, t->D, t->q + i * t->ldq + h * t->D, t->k + j * t->ldk, &slope);
    *p = exp(s - t->lse[i * t->ld_lse + h]);
    double dp = dot(t->D, t->dout + i * t->lddo + h * t->D, t->v + j * t->ldv);
    *ds = t->scale * slope * *p * (dp - t->delta[i * t->group + h]);
    return true;
}

static void add_scaled(int64_t D, double a, const float *x, double *y) {
    for (int64_t d = 0; d < D; d++) y[d] += a * x[d];
}

static void write_row(int64_t D, const double *x, bool accumulate, float *y) {
    for (int64_t d = 0; d < D; d++) y[d] = (float)(x[d] + (accumulate ? (double)y[d] : 0.0));
}

static void clear(int64_t n, double *x) {
    for (int64_t i = 0; i < n; i++) x[i] = 0.0;
}

static void attention_backward_ref(const lora_attention_backward_tile *t) {
    double *a = (double *)(void *)t->scratch, *b = a + t->D, p, ds;
    for (int64_t i = 0; i < t->n_queries; i++) {
        for (int64_t h = 0; h < t->group; h++) {
            clear(t->D, a);
            for (int64_t j = 0; j < t->n_keys; j++)
                if (probability(t, i, h, j, &p, &ds)) add_scaled(t->D, ds, t->k + j * t->ldk, a);
            write_row(t->D, a, t->accumulate_dq, t->dq + i * t->lddq + h * t->D);
        }
    }
    for (int64_t j = 0; j < t->n_keys; j++) {
        clear(2 * t->D, a);
        for (int64_t i = 0; i < t->n_queries; i++) {
            for (int64_t h = 0; h < t->group; h++) {
                if (!probability(t, i, h, j, &p, &ds)) continue;
                add_scaled(t->D, ds, t->q + i * t->ldq + h * t->D, a);
                add_scaled(t->D, p, t->dout + i * t->lddo + h * t->D, b);
            }
        }
        write_row(t->D, a, t->accumulate_keys, t->dk + j * t->lddk);
        write_row(t->D, b, t->accumulate_keys, t->dv + j * t->lddv);
    }
}

void lora_attention_init_ref(lora_attention_kernels *k) {
    k->forward = attention_forward_ref;
    k->delta = attention_delta_ref;
    k->backward = attention_backward_ref;
}
