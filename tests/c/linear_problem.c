#include "tests/c/linear_problem.h"

#include "lora_c/base/philox.h"

enum { SEED = 9, STREAM = 4 };

static float *normals(int64_t n, uint64_t seed) {
    float *p = malloc((size_t)n * sizeof *p);
    check_normal(p, n, seed, 1);
    return p;
}

static double dropped(const linear_problem *p, int64_t i) {
    if (p->dropout == 0) return 1;
    return lora_philox_uniform(SEED, STREAM, (uint64_t)i) < p->dropout ? 0 : 1 / (1 - (double)p->dropout);
}

linear_problem linear_problem_new(int64_t M, int64_t K, int64_t N, int64_t R, float dropout) {
    linear_problem p = {.M = M,
                        .K = K,
                        .N = N,
                        .R = R,
                        .x = normals(M * K, 1),
                        .w = normals(N * K, 2),
                        .bias = normals(N, 3),
                        .A = normals(R * K, 4),
                        .B = normals(N * R, 5),
                        .dy = normals(M * N, 6),
                        .magnitude = normals(N, 7),
                        .scale = 0.7f,
                        .dropout = dropout,
                        .drop = malloc((size_t)(M * K) * sizeof(double))};
    for (int64_t i = 0; i < M * K; i++) p.drop[i] = dropped(&p, i);
    return p;
}

void linear_problem_free(linear_problem *p) {
    float *all[] = {p->x, p->w, p->bias, p->A, p->B, p->dy, p->magnitude};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(p->drop);
}

lora_adapter linear_problem_adapter(const linear_problem *p, float *dA, float *dB) {
    return (lora_adapter){
        .rank = p->R, .A = p->A, .B = p->B, .dA = dA, .dB = dB, .scale = p->scale, .dropout = p->dropout, .dropout_seed = SEED};
}

lora_adapter_pass linear_problem_pass(const linear_problem *p) {
    return (lora_adapter_pass){.dropout = p->dropout, .dropout_stream = STREAM};
}

/* --- the oracle --- */

static double kept(const linear_problem *p, int64_t m, int64_t k) { return (double)p->x[m * p->K + k] * p->drop[m * p->K + k]; }

static double low(const linear_problem *p, int64_t m, int64_t r) { /* (drop(x) A^T)[m, r] */
    double s = 0;
    for (int64_t k = 0; k < p->K; k++) s += kept(p, m, k) * (double)p->A[r * p->K + k];
    return s;
}

static double back(const linear_problem *p, int64_t m, int64_t r) { /* s (dy B)[m, r] */
    double s = 0;
    for (int64_t n = 0; n < p->N; n++) s += (double)p->dy[m * p->N + n] * (double)p->B[n * p->R + r];
    return (double)p->scale * s;
}

void linear_oracle_forward(const linear_problem *p, double *y) {
    for (int64_t m = 0; m < p->M; m++)
        for (int64_t n = 0; n < p->N; n++) {
            double s = p->bias[n];
            for (int64_t k = 0; k < p->K; k++) s += (double)p->x[m * p->K + k] * (double)p->w[n * p->K + k];
            for (int64_t r = 0; r < p->R; r++) s += (double)p->scale * low(p, m, r) * (double)p->B[n * p->R + r];
            y[m * p->N + n] = s;
        }
}

/* What one token adds to the gradients of A and B, and the part of A in its dx. */
static void low_rank_of_token(const linear_problem *p, int64_t m, const linear_gradients *g) {
    int64_t K = p->K, N = p->N, R = p->R;
    for (int64_t r = 0; r < R; r++) {
        double u = back(p, m, r), t = low(p, m, r);
        for (int64_t k = 0; k < K; k++) {
            g->dA[r * K + k] += u * kept(p, m, k);
            g->dx[m * K + k] += u * (double)p->A[r * K + k] * p->drop[m * K + k];
        }
        for (int64_t n = 0; n < N; n++) g->dB[n * R + r] += (double)p->scale * (double)p->dy[m * N + n] * t;
    }
}

linear_gradients linear_oracle_backward(const linear_problem *p) {
    int64_t M = p->M, K = p->K, N = p->N, R = p->R;
    linear_gradients g = {.dx = calloc((size_t)(M * K + R * K + N * R + N * K + N), sizeof(double))};
    g.dA = g.dx + M * K, g.dB = g.dA + R * K, g.dW = g.dB + N * R, g.dbias = g.dW + N * K;
    for (int64_t m = 0; m < M; m++) {
        for (int64_t n = 0; n < N; n++) {
            double d = (double)p->dy[m * N + n];
            for (int64_t k = 0; k < K; k++) {
                g.dx[m * K + k] += d * (double)p->w[n * K + k];
                g.dW[n * K + k] += d * (double)p->x[m * K + k];
            }
            g.dbias[n] += d;
        }
        low_rank_of_token(p, m, &g);
    }
    return g;
}

void linear_gradients_free(linear_gradients *g) { free(g->dx); }
