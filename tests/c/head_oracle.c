#include "tests/c/head_oracle.h"

#include <math.h>
#include <stdlib.h>

/* logits (V) and their slopes by the plain product. */
static void logits_of(const head_problem *p, const float *x, double *logits, double *slope) {
    for (int64_t v = 0; v < p->V; v++) {
        double s = 0, cap = (double)p->map.softcap, scale = (double)p->map.scale;
        for (int64_t i = 0; i < p->H; i++) s += scale * (double)x[i] * (double)p->w[v * p->H + i];
        logits[v] = cap > 0 ? cap * tanh(s / cap) : s;
        slope[v] = scale * (cap > 0 ? 1 - pow(logits[v] / cap, 2) : 1);
    }
}

/* logits become their gradients; returns the loss of the token. */
static double softmax_loss(const head_problem *p, int64_t m, double *logits, const double *slope) {
    double max = -INFINITY, sum = 0;
    for (int64_t v = 0; v < p->V; v++) max = fmax(max, logits[v]);
    for (int64_t v = 0; v < p->V; v++) sum += exp(logits[v] - max);
    double loss = log(sum) + max - logits[p->targets[m]], factor = (double)p->grad_scale * (double)p->weight[m];
    for (int64_t v = 0; v < p->V; v++) logits[v] = slope[v] * factor * (exp(logits[v] - max) / sum - (v == p->targets[m]));
    return loss;
}

head_results head_oracle(const head_problem *p) {
    int64_t M = p->M, V = p->V, H = p->H;
    head_results r = {.token_loss = calloc((size_t)(M + M * H + V * H), sizeof(double))};
    r.dx = r.token_loss + M, r.dW = r.dx + M * H;
    double *logits = malloc((size_t)(2 * V) * sizeof *logits), *slope = logits + V;
    for (int64_t m = 0; m < M; m++) {
        if (p->weight[m] == 0) continue;
        const float *x = p->x + m * p->ldx;
        logits_of(p, x, logits, slope);
        r.token_loss[m] = softmax_loss(p, m, logits, slope);
        r.loss_sum += (double)p->weight[m] * r.token_loss[m];
        for (int64_t v = 0; v < V; v++)
            for (int64_t i = 0; i < H; i++) {
                r.dx[m * H + i] += logits[v] * (double)p->w[v * H + i];
                r.dW[v * H + i] += logits[v] * (double)x[i];
            }
    }
    free(logits);
    return r;
}

void head_results_free(head_results *r) { free(r->token_loss); }
