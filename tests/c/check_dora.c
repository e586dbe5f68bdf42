/* DoRA's layer against float64 loops over the explicit matrix V = W + s B A, with and without dropout. */
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/philox.h"
#include "tests/c/check.h"

enum { X, W, BIAS, A, B, MAGNITUDE, DY, INPUTS };

typedef struct problem {
    int64_t M, K, N, R;
    float *in[INPUTS];
    float scale, dropout;
    double *v, *z, *drop; /* V (N, K); z = W d + s B A d (M, N); mask / (1 - p) (M, K) */
    float *norm;          /* (N), as the library computes it */
} problem;

/* float64 results and how the largest of them compares */
static void close_to(const char *what, lora_isa isa, const float *got, const double *want, int64_t n) {
    double worst = 0, top = 1e-6;
    for (int64_t i = 0; i < n; i++) {
        top = fmax(top, fabs(want[i]));
        worst = fmax(worst, fabs((double)got[i] - want[i]));
    }
    CHECK(worst <= 2e-5 * top, "%s on %s: off by %g of %g", what, lora_isa_name(isa), worst, top);
}

static double x_at(const problem *p, int64_t m, int64_t k) { return (double)p->in[X][m * p->K + k]; }
static double kept(const problem *p, int64_t m, int64_t k) { return x_at(p, m, k) * p->drop[m * p->K + k]; }
static double w_at(const problem *p, int64_t n, int64_t k) { return (double)p->in[W][n * p->K + k]; }
static double gain(const problem *p, int64_t n) {
    double s = 0;
    for (int64_t k = 0; k < p->K; k++) s += p->v[n * p->K + k] * p->v[n * p->K + k];
    return s > 0 ? (double)p->in[MAGNITUDE][n] / sqrt(s) : 0;
}
/* s (g dy) B at [m, r] */
static double back(const problem *p, int64_t m, int64_t r) {
    double s = 0;
    for (int64_t n = 0; n < p->N; n++) s += gain(p, n) * (double)p->in[DY][m * p->N + n] * (double)p->in[B][n * p->R + r];
    return (double)p->scale * s;
}

static void fill(problem *p) {
    const int64_t sizes[INPUTS] = {p->M * p->K, p->N * p->K, p->N, p->R * p->K, p->N * p->R, p->N, p->M * p->N};
    for (int i = 0; i < INPUTS; i++) {
        p->in[i] = malloc((size_t)sizes[i] * sizeof(float));
        check_normal(p->in[i], sizes[i], (uint64_t)i + 1, 1);
    }
    if (p->N > 2) { /* a row without direction */
        memset(p->in[W] + p->K, 0, (size_t)p->K * sizeof(float));
        memset(p->in[B] + p->R, 0, (size_t)p->R * sizeof(float));
    }
    p->v = malloc((size_t)(p->N * p->K + p->M * p->N + p->M * p->K) * sizeof(double));
    p->z = p->v + p->N * p->K;
    p->drop = p->z + p->M * p->N;
    p->norm = malloc((size_t)p->N * sizeof(float));
    for (int64_t n = 0; n < p->N; n++)
        for (int64_t k = 0; k < p->K; k++) {
            double s = 0;
            for (int64_t r = 0; r < p->R; r++) s += (double)p->in[B][n * p->R + r] * (double)p->in[A][r * p->K + k];
            p->v[n * p->K + k] = w_at(p, n, k) + (double)p->scale * s;
        }
    for (int64_t i = 0; i < p->M * p->K; i++)
        p->drop[i] = p->dropout == 0 ? 1 : lora_philox_uniform(9, 4, (uint64_t)i) < p->dropout ? 0 : 1 / (1 - (double)p->dropout);
    for (int64_t m = 0; m < p->M; m++)
        for (int64_t n = 0; n < p->N; n++) {
            double s = 0;
            for (int64_t k = 0; k < p->K; k++) s += p->v[n * p->K + k] * kept(p, m, k);
            p->z[m * p->N + n] = s;
        }
}

static void release(problem *p) {
    for (int i = 0; i < INPUTS; i++) free(p->in[i]);
    free(p->v);
    free(p->norm);
}

static lora_adapter adapter_of(const problem *p, float *dA, float *dB, float *dm) {
    return (lora_adapter){.rank = p->R,
                          .A = p->in[A],
                          .B = p->in[B],
                          .dA = dA,
                          .dB = dB,
                          .scale = p->scale,
                          .dropout = p->dropout,
                          .dropout_seed = 9,
                          .magnitude = p->in[MAGNITUDE],
                          .dmagnitude = dm};
}

static lora_adapter_pass pass_of(const problem *p) {
    return (lora_adapter_pass){.dropout = p->dropout, .dropout_stream = 4, .norm = p->norm};
}

static lora_weight base_of(const problem *p) { return lora_weight_f32(p->in[W], p->N, p->K, p->K); }

/* y = W x + b + g z - W d, on top of what y holds */
static void check_forward(lora_ctx *ctx, const problem *p, bool accumulate) {
    int64_t M = p->M, K = p->K, N = p->N;
    lora_adapter a = adapter_of(p, NULL, NULL, NULL);
    lora_weight w = base_of(p);
    lora_error err;
    guarded y = guarded_new(M * N, 1);
    double *want = malloc((size_t)(M * N) * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double s = (double)p->in[BIAS][n] + gain(p, n) * p->z[m * N + n] + (accumulate ? 0.5 : 0);
            for (int64_t k = 0; k < K; k++) s += w_at(p, n, k) * (x_at(p, m, k) - kept(p, m, k));
            want[m * N + n] = s;
            y.data[m * N + n] = 0.5f;
        }
    lora_linear_layer layer = {
        .w = &w, .bias = p->in[BIAS], .adapter = &a, .pass = pass_of(p), .y = lora_mat_f32(y.data, M, N, N), .accumulate = accumulate};
    CHECK(lora_linear_forward(ctx, lora_mat_f32(p->in[X], M, K, K), 1, &layer, &err) == LORA_OK, "%s", err.message);
    close_to(accumulate ? "y +=" : "y", lora_ctx_isa(ctx), y.data, want, M * N);
    CHECK(guarded_ok(&y), "guard bands of y");
    guarded_free(&y);
    free(want);
}

static void check_backward(lora_ctx *ctx, const problem *p) {
    lora_isa isa = lora_ctx_isa(ctx);
    int64_t M = p->M, K = p->K, N = p->N, R = p->R;
    const float *dy = p->in[DY];
    guarded dx = guarded_new(M * K, 0), dA = guarded_new(R * K, 1), dB = guarded_new(N * R, 0), dm = guarded_new(N, 1),
            db = guarded_new(N, 0);
    guarded dW = guarded_new(N * K, 1);
    guarded *all[] = {&dx, &dA, &dB, &dm, &db, &dW};
    for (int g = 0; g < 6; g++) memset(all[g]->data, 0, (size_t)all[g]->n * sizeof(float));
    lora_adapter a = adapter_of(p, dA.data, dB.data, dm.data);
    lora_weight w = base_of(p);
    lora_error err;
    lora_linear_gradient gradient = {
        .dy = lora_mat_f32(dy, M, N, N), .w = &w, .adapter = &a, .pass = pass_of(p), .dW = dW.data, .dbias = db.data};
    CHECK(lora_linear_backward(ctx, lora_mat_f32(p->in[X], M, K, K), 1, &gradient, lora_mat_f32(dx.data, M, K, K), false, &err) == LORA_OK,
          "%s", err.message);
    int64_t most = M * K + R * K + N * R + 2 * N + N * K;
    double *want = calloc((size_t)most, sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t k = 0; k < K; k++) {
            double plain = 0, scaled = 0;
            for (int64_t n = 0; n < N; n++) {
                plain += (double)dy[m * N + n] * w_at(p, n, k);
                scaled += gain(p, n) * (double)dy[m * N + n] * p->v[n * K + k];
            }
            want[m * K + k] = plain + p->drop[m * K + k] * (scaled - plain);
        }
    close_to("dx", isa, dx.data, want, M * K);
    memset(want, 0, (size_t)most * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t r = 0; r < R; r++) {
            double low = 0, u = back(p, m, r);
            for (int64_t k = 0; k < K; k++) {
                low += kept(p, m, k) * (double)p->in[A][r * K + k];
                want[r * K + k] += u * kept(p, m, k);
            }
            for (int64_t n = 0; n < N; n++) want[R * K + n * R + r] += gain(p, n) * (double)(p->scale * dy[m * N + n]) * low;
        }
    close_to("dA", isa, dA.data, want, R * K);
    close_to("dB", isa, dB.data, want + R * K, N * R);
    memset(want, 0, (size_t)most * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double d = (double)dy[m * N + n], g = gain(p, n);
            if (g != 0) want[n] += d * p->z[m * N + n] * g / (double)p->in[MAGNITUDE][n];
            want[N + n] += d;
            for (int64_t k = 0; k < K; k++) want[2 * N + n * K + k] += d * (x_at(p, m, k) + (g - 1) * kept(p, m, k));
        }
    close_to("dmagnitude", isa, dm.data, want, N);
    close_to("dbias", isa, db.data, want + N, N);
    close_to("dW", isa, dW.data, want + 2 * N, N * K);
    free(want);
    for (int g = 0; g < 6; g++) {
        CHECK(guarded_ok(all[g]), "guard band %d", g);
        guarded_free(all[g]);
    }
}

static void check_merge(lora_ctx *ctx, const problem *p) {
    int64_t N = p->N, K = p->K;
    lora_adapter a = adapter_of(p, NULL, NULL, NULL);
    lora_weight w = base_of(p);
    lora_error err;
    guarded merged = guarded_new(N * K, 1);
    double *want = malloc((size_t)(N * K) * sizeof *want);
    CHECK(lora_linear_merge(ctx, &w, &a, p->norm, 1, merged.data, &err) == LORA_OK, "%s", err.message);
    for (int64_t i = 0; i < N * K; i++) want[i] = gain(p, i / K) * p->v[i];
    close_to("merged", lora_ctx_isa(ctx), merged.data, want, N * K);
    CHECK(guarded_ok(&merged), "guard bands of the merge");
    CHECK(lora_linear_merge(ctx, &w, &a, p->norm, -1, merged.data, &err) == LORA_EINVAL, "sign -1");
    guarded_free(&merged);
    free(want);
}

static void check_case(lora_ctx *ctx, problem p) {
    fill(&p);
    lora_error err;
    lora_weight w = base_of(&p);
    lora_adapter a = adapter_of(&p, NULL, NULL, NULL);
    lora_linear_layer without_norm = {.w = &w, .adapter = &a, .y = lora_mat_f32(p.in[DY], p.M, p.N, p.N)};
    CHECK(lora_linear_forward(ctx, lora_mat_f32(p.in[X], p.M, p.K, p.K), 1, &without_norm, &err) == LORA_EINVAL, "no norm");
    CHECK(lora_dora_norm(ctx, &w, &a, p.norm, &err) == LORA_OK, "%s", err.message);
    double *want = malloc((size_t)p.N * sizeof *want);
    for (int64_t n = 0; n < p.N; n++) {
        double s = 0;
        for (int64_t k = 0; k < p.K; k++) s += p.v[n * p.K + k] * p.v[n * p.K + k];
        want[n] = sqrt(s);
    }
    close_to("norm", lora_ctx_isa(ctx), p.norm, want, p.N);
    free(want);
    check_forward(ctx, &p, false);
    check_forward(ctx, &p, true);
    check_backward(ctx, &p);
    check_merge(ctx, &p);
    release(&p);
}

void check_dora(void) {
    static const int64_t cases[][4] = {{1, 3, 1, 1}, {2, 5, 2, 2}, {3, 64, 17, 4}, {7, 65, 33, 8}, {17, 127, 67, 3}, {40, 100, 64, 8}};
    FOR_EACH_ISA(isa) {
        lora_ctx *ctx = check_ctx(isa, 2);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            for (int d = 0; d < 2; d++)
                check_case(
                    ctx,
                    (problem){
                        .M = cases[i][0], .K = cases[i][1], .N = cases[i][2], .R = cases[i][3], .scale = 0.7f, .dropout = d ? 0.3f : 0});
        lora_ctx_destroy(ctx);
    }
}
