/* DoRA's layer against float64 loops over the explicit matrix V = W + s B A, with and without dropout. */
#include <stdlib.h>
#include <string.h>

#include "tests/c/linear_problem.h"

typedef struct problem {
    linear_problem in;
    double *v, *z; /* V (N, K); z = W d + s B A d (M, N) */
    float *norm;   /* (N), as the library computes it */
} problem;

static double x_at(const problem *p, int64_t m, int64_t k) { return (double)p->in.x[m * p->in.K + k]; }
static double kept(const problem *p, int64_t m, int64_t k) { return x_at(p, m, k) * p->in.drop[m * p->in.K + k]; }
static double w_at(const problem *p, int64_t n, int64_t k) { return (double)p->in.w[n * p->in.K + k]; }
static double gain(const problem *p, int64_t n) {
    double s = 0;
    for (int64_t k = 0; k < p->in.K; k++) s += p->v[n * p->in.K + k] * p->v[n * p->in.K + k];
    return s > 0 ? (double)p->in.magnitude[n] / sqrt(s) : 0;
}
/* s (g dy) B at [m, r] */
static double back(const problem *p, int64_t m, int64_t r) {
    double s = 0;
    for (int64_t n = 0; n < p->in.N; n++) s += gain(p, n) * (double)p->in.dy[m * p->in.N + n] * (double)p->in.B[n * p->in.R + r];
    return (double)p->in.scale * s;
}

static problem make(int64_t M, int64_t K, int64_t N, int64_t R, float dropout) {
    problem made = {.in = linear_problem_new(M, K, N, R, dropout)}, *p = &made;
    if (N > 2) { /* a row without direction */
        memset(p->in.w + K, 0, (size_t)K * sizeof(float));
        memset(p->in.B + R, 0, (size_t)R * sizeof(float));
    }
    p->v = malloc((size_t)(N * K + M * N) * sizeof(double));
    p->z = p->v + N * K;
    p->norm = malloc((size_t)N * sizeof(float));
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++) {
            double s = 0;
            for (int64_t r = 0; r < R; r++) s += (double)p->in.B[n * R + r] * (double)p->in.A[r * K + k];
            p->v[n * K + k] = w_at(p, n, k) + (double)p->in.scale * s;
        }
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double s = 0;
            for (int64_t k = 0; k < K; k++) s += p->v[n * K + k] * kept(p, m, k);
            p->z[m * N + n] = s;
        }
    return made;
}

static void release(problem *p) {
    linear_problem_free(&p->in);
    free(p->v);
    free(p->norm);
}

static lora_adapter adapter_of(const problem *p, float *dA, float *dB, float *dm) {
    lora_adapter a = linear_problem_adapter(&p->in, dA, dB);
    a.magnitude = p->in.magnitude;
    a.dmagnitude = dm;
    return a;
}

static lora_adapter_pass pass_of(const problem *p) {
    lora_adapter_pass pass = linear_problem_pass(&p->in);
    pass.norm = p->norm;
    return pass;
}

static void near(const char *what, const lora_ctx *ctx, const float *got, const double *want, int64_t n) {
    arrays_close(what, ctx, got, want, n, 2e-5);
}

static lora_weight base_of(const problem *p) { return lora_weight_f32(p->in.w, p->in.N, p->in.K, p->in.K); }

/* y = W x + b + g z - W d, on top of what y holds */
static void check_forward(lora_ctx *ctx, const problem *p, bool accumulate) {
    int64_t M = p->in.M, K = p->in.K, N = p->in.N;
    lora_adapter a = adapter_of(p, NULL, NULL, NULL);
    lora_weight w = base_of(p);
    guarded y = guarded_new(M * N, 1);
    double *want = malloc((size_t)(M * N) * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double s = (double)p->in.bias[n] + gain(p, n) * p->z[m * N + n] + (accumulate ? 0.5 : 0);
            for (int64_t k = 0; k < K; k++) s += w_at(p, n, k) * (x_at(p, m, k) - kept(p, m, k));
            want[m * N + n] = s;
            y.data[m * N + n] = 0.5f;
        }
    lora_linear_layer layer = {
        .w = &w, .bias = p->in.bias, .adapter = &a, .pass = pass_of(p), .y = lora_mat_f32(y.data, M, N, N), .accumulate = accumulate};
    OK(lora_linear_forward(ctx, lora_mat_f32(p->in.x, M, K, K), 1, &layer, ERR));
    near(accumulate ? "y +=" : "y", ctx, y.data, want, M * N);
    CHECK(guarded_ok(&y), "guard bands of y");
    guarded_free(&y);
    free(want);
}

static void check_backward(lora_ctx *ctx, const problem *p) {
    int64_t M = p->in.M, K = p->in.K, N = p->in.N, R = p->in.R;
    const float *dy = p->in.dy;
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
    CHECK(lora_linear_backward(ctx, lora_mat_f32(p->in.x, M, K, K), 1, &gradient, lora_mat_f32(dx.data, M, K, K), false, &err) == LORA_OK,
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
            want[m * K + k] = plain + p->in.drop[m * K + k] * (scaled - plain);
        }
    near("dx", ctx, dx.data, want, M * K);
    memset(want, 0, (size_t)most * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t r = 0; r < R; r++) {
            double low = 0, u = back(p, m, r);
            for (int64_t k = 0; k < K; k++) {
                low += kept(p, m, k) * (double)p->in.A[r * K + k];
                want[r * K + k] += u * kept(p, m, k);
            }
            for (int64_t n = 0; n < N; n++) want[R * K + n * R + r] += gain(p, n) * (double)(p->in.scale * dy[m * N + n]) * low;
        }
    near("dA", ctx, dA.data, want, R * K);
    near("dB", ctx, dB.data, want + R * K, N * R);
    memset(want, 0, (size_t)most * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double d = (double)dy[m * N + n], g = gain(p, n);
            if (g != 0) want[n] += d * p->z[m * N + n] * g / (double)p->in.magnitude[n];
            want[N + n] += d;
            for (int64_t k = 0; k < K; k++) want[2 * N + n * K + k] += d * (x_at(p, m, k) + (g - 1) * kept(p, m, k));
        }
    near("dmagnitude", ctx, dm.data, want, N);
    near("dbias", ctx, db.data, want + N, N);
    near("dW", ctx, dW.data, want + 2 * N, N * K);
    free(want);
    for (int g = 0; g < 6; g++) {
        CHECK(guarded_ok(all[g]), "guard band %d", g);
        guarded_free(all[g]);
    }
}

static void check_merge(lora_ctx *ctx, const problem *p) {
    int64_t N = p->in.N, K = p->in.K;
    lora_adapter a = adapter_of(p, NULL, NULL, NULL);
    lora_weight w = base_of(p);
    lora_error err;
    guarded merged = guarded_new(N * K, 1);
    double *want = malloc((size_t)(N * K) * sizeof *want);
    OK(lora_linear_merge(ctx, &w, &a, p->norm, 1, merged.data, ERR));
    for (int64_t i = 0; i < N * K; i++) want[i] = gain(p, i / K) * p->v[i];
    near("merged", ctx, merged.data, want, N * K);
    CHECK(guarded_ok(&merged), "guard bands of the merge");
    CHECK(lora_linear_merge(ctx, &w, &a, p->norm, -1, merged.data, &err) == LORA_EINVAL, "sign -1");
    guarded_free(&merged);
    free(want);
}

static void check_case(lora_ctx *ctx, problem p) {
    lora_error err;
    lora_weight w = base_of(&p);
    lora_adapter a = adapter_of(&p, NULL, NULL, NULL);
    lora_linear_layer without_norm = {.w = &w, .adapter = &a, .y = lora_mat_f32(p.in.dy, p.in.M, p.in.N, p.in.N)};
    CHECK(lora_linear_forward(ctx, lora_mat_f32(p.in.x, p.in.M, p.in.K, p.in.K), 1, &without_norm, &err) == LORA_EINVAL, "no norm");
    OK(lora_dora_norm(ctx, &w, &a, p.norm, ERR));
    double *want = malloc((size_t)p.in.N * sizeof *want);
    for (int64_t n = 0; n < p.in.N; n++) {
        double s = 0;
        for (int64_t k = 0; k < p.in.K; k++) s += p.v[n * p.in.K + k] * p.v[n * p.in.K + k];
        want[n] = sqrt(s);
    }
    near("norm", ctx, p.norm, want, p.in.N);
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
            for (int d = 0; d < 2; d++) check_case(ctx, make(cases[i][0], cases[i][1], cases[i][2], cases[i][3], d ? 0.3f : 0));
        lora_ctx_destroy(ctx);
    }
}
