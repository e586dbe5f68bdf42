/* LoRA's linear layer against float64 loops, with dropout masks recomputed from their definition. */
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/philox.h"
#include "tests/c/check.h"

typedef struct problem {
    int64_t M, K, N, R;
    float *x, *w, *bias, *A, *B, *dy;
    float scale, dropout;
} problem;

static float *normals(int64_t n, uint64_t seed) {
    float *p = malloc((size_t)n * sizeof *p);
    check_normal(p, n, seed, 1);
    return p;
}

static problem make(int64_t M, int64_t K, int64_t N, int64_t R, float dropout) {
    return (problem){.M = M,
                     .K = K,
                     .N = N,
                     .R = R,
                     .x = normals(M * K, 1),
                     .w = normals(N * K, 2),
                     .bias = normals(N, 3),
                     .A = normals(R * K, 4),
                     .B = normals(N * R, 5),
                     .dy = normals(M * N, 6),
                     .scale = 0.7f,
                     .dropout = dropout};
}

static void release(problem *p) {
    float *all[] = {p->x, p->w, p->bias, p->A, p->B, p->dy};
    for (int i = 0; i < 6; i++) free(all[i]);
}

static double dropped(const problem *p, int64_t m, int64_t k) { /* mask / (1 - p) */
    if (p->dropout == 0) return 1;
    return lora_philox_uniform(9, 4, (uint64_t)(m * p->K + k)) < p->dropout ? 0 : 1 / (1 - (double)p->dropout);
}

static double low(const problem *p, int64_t m, int64_t r) { /* (drop(x) A^T)[m, r] */
    double s = 0;
    for (int64_t k = 0; k < p->K; k++) s += (double)p->x[m * p->K + k] * dropped(p, m, k) * (double)p->A[r * p->K + k];
    return s;
}

static double back(const problem *p, int64_t m, int64_t r) { /* s (dy B)[m, r] */
    double s = 0;
    for (int64_t n = 0; n < p->N; n++) s += (double)p->dy[m * p->N + n] * (double)p->B[n * p->R + r];
    return (double)p->scale * s;
}

/* Sums of a few hundred products of N(0, 1): float32 rounding is far below 1e-4 of the largest entry, errors far above. With
 * operands of 8 bits the products are off by 2^-8, independently, so that a sum is off by a hundredth of its spread; some
 * results have been rounded three times. */
static double tolerance = 2e-5;

static void close_to(const char *what, lora_isa isa, const float *got, const double *want, int64_t n) {
    double worst = 0, top = 1e-6;
    for (int64_t i = 0; i < n; i++) {
        top = fmax(top, fabs(want[i]));
        worst = fmax(worst, fabs((double)got[i] - want[i]));
    }
    CHECK(worst <= tolerance * top, "%s on %s: off by %g of %g", what, lora_isa_name(isa), worst, top);
}

static lora_mat rows_of(const float *data, int64_t rows, int64_t cols) { return lora_mat_f32(data, rows, cols, cols); }

static void check_case(lora_ctx *ctx, problem p) {
    lora_isa isa = lora_ctx_isa(ctx);
    lora_error err;
    int64_t M = p.M, K = p.K, N = p.N, R = p.R;
    lora_weight w = lora_weight_f32(p.w, N, K, K);
    guarded y = guarded_new(M * N, 1), dx = guarded_new(M * K, 0), dA = guarded_new(R * K, 1), dB = guarded_new(N * R, 0);
    guarded dW = guarded_new(N * K, 0), db = guarded_new(N, 1);
    guarded *grads[] = {&dA, &dB, &dW, &db};
    for (int g = 0; g < 4; g++) memset(grads[g]->data, 0, (size_t)grads[g]->n * sizeof(float));
    lora_adapter a = {
        .rank = R, .A = p.A, .B = p.B, .dA = dA.data, .dB = dB.data, .scale = p.scale, .dropout = p.dropout, .dropout_seed = 9};
    lora_adapter_pass pass = {.dropout = p.dropout, .dropout_stream = 4};
    lora_linear_layer layer = {.w = &w, .bias = p.bias, .adapter = &a, .pass = pass, .y = rows_of(y.data, M, N)};
    lora_linear_gradient gradient = {.dy = rows_of(p.dy, M, N), .w = &w, .adapter = &a, .pass = pass, .dW = dW.data, .dbias = db.data};
    CHECK(lora_linear_forward(ctx, rows_of(p.x, M, K), 1, &layer, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_linear_backward(ctx, rows_of(p.x, M, K), 1, &gradient, rows_of(dx.data, M, K), false, &err) == LORA_OK, "%s", err.message);
    double *want = malloc((size_t)(M * N + M * K + R * K + N * R + N * K + N) * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double s = p.bias[n];
            for (int64_t k = 0; k < K; k++) s += (double)p.x[m * K + k] * (double)p.w[n * K + k];
            for (int64_t r = 0; r < R; r++) s += (double)p.scale * low(&p, m, r) * (double)p.B[n * R + r];
            want[m * N + n] = s;
        }
    close_to("y", isa, y.data, want, M * N);
    for (int64_t m = 0; m < M; m++)
        for (int64_t k = 0; k < K; k++) {
            double s = 0;
            for (int64_t n = 0; n < N; n++) s += (double)p.dy[m * N + n] * (double)p.w[n * K + k];
            for (int64_t r = 0; r < R; r++) s += back(&p, m, r) * (double)p.A[r * K + k] * dropped(&p, m, k);
            want[m * K + k] = s;
        }
    close_to("dx", isa, dx.data, want, M * K);
    memset(want, 0, (size_t)(R * K) * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t r = 0; r < R; r++)
            for (int64_t k = 0; k < K; k++) want[r * K + k] += back(&p, m, r) * (double)p.x[m * K + k] * dropped(&p, m, k);
    close_to("dA", isa, dA.data, want, R * K);
    memset(want, 0, (size_t)(N * R) * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t r = 0; r < R; r++)
            for (int64_t n = 0; n < N; n++) want[n * R + r] += (double)p.scale * (double)p.dy[m * N + n] * low(&p, m, r);
    close_to("dB", isa, dB.data, want, N * R);
    memset(want, 0, (size_t)(N * K + N) * sizeof *want);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            for (int64_t k = 0; k < K; k++) want[n * K + k] += (double)p.dy[m * N + n] * (double)p.x[m * K + k];
            want[N * K + n] += (double)p.dy[m * N + n];
        }
    close_to("dW", isa, dW.data, want, N * K);
    close_to("dbias", isa, db.data, want + N * K, N);
    CHECK(guarded_ok(&y) && guarded_ok(&dx) && guarded_ok(&dA) && guarded_ok(&dB) && guarded_ok(&dW) && guarded_ok(&db), "guard bands");
    free(want);
    guarded *all[] = {&y, &dx, &dA, &dB, &dW, &db};
    for (int g = 0; g < 6; g++) guarded_free(all[g]);
}

enum { GROUP_K = 96, GROUP = 3 };

typedef struct group {
    int64_t N[GROUP];
    problem p[GROUP];
    lora_weight w[GROUP];
    lora_adapter a[GROUP];
    float *y[GROUP], *dA[GROUP], *dB[GROUP];
    lora_linear_layer outputs[GROUP];
    lora_linear_gradient gradients[GROUP];
} group;

/* Ranks 5, none, and 3 with dropout. */
static void make_group(group *g, int64_t M) {
    *g = (group){.N = {40, 33, 17}};
    for (int i = 0; i < GROUP; i++) {
        int64_t R = i == 2 ? 3 : 5;
        g->p[i] = make(M, GROUP_K, g->N[i], R, i == 2 ? 0.25f : 0);
        g->w[i] = lora_weight_f32(g->p[i].w, g->N[i], GROUP_K, GROUP_K);
        g->y[i] = calloc((size_t)(M * g->N[i]), sizeof(float));
        g->dA[i] = calloc((size_t)(R * GROUP_K), sizeof(float));
        g->dB[i] = calloc((size_t)(g->N[i] * R), sizeof(float));
        g->a[i] = (lora_adapter){.rank = R,
                                 .A = g->p[i].A,
                                 .B = g->p[i].B,
                                 .dA = g->dA[i],
                                 .dB = g->dB[i],
                                 .scale = 0.7f,
                                 .dropout = g->p[i].dropout,
                                 .dropout_seed = 9};
        const lora_adapter *a = i == 1 ? NULL : &g->a[i];
        lora_adapter_pass pass = {.dropout = g->a[i].dropout, .dropout_stream = 4};
        g->outputs[i] =
            (lora_linear_layer){.w = &g->w[i], .bias = g->p[i].bias, .adapter = a, .pass = pass, .y = rows_of(g->y[i], M, g->N[i])};
        g->gradients[i] = (lora_linear_gradient){.dy = rows_of(g->p[i].dy, M, g->N[i]), .w = &g->w[i], .adapter = a, .pass = pass};
    }
}

static void free_group(group *g) {
    for (int i = 0; i < GROUP; i++) {
        release(&g->p[i]);
        free(g->y[i]);
        free(g->dA[i]);
        free(g->dB[i]);
    }
}

/* Layers of one x together: the outputs and gradients of each alone, bit by bit; dx is the sum. */
static void check_group(lora_ctx *ctx, int64_t M) {
    lora_isa isa = lora_ctx_isa(ctx);
    lora_error err;
    group together, alone;
    make_group(&together, M);
    make_group(&alone, M);
    lora_mat x = rows_of(together.p[0].x, M, GROUP_K);
    float *dx = calloc((size_t)(M * GROUP_K), sizeof *dx), *part = calloc((size_t)(M * GROUP_K), sizeof *part);
    double *want = calloc((size_t)(M * GROUP_K), sizeof *want);
    for (int i = 0; i < GROUP; i++) {
        CHECK(lora_linear_forward(ctx, x, 1, &alone.outputs[i], &err) == LORA_OK, "%s", err.message);
        CHECK(lora_linear_backward(ctx, x, 1, &alone.gradients[i], rows_of(part, M, GROUP_K), false, &err) == LORA_OK, "%s", err.message);
        for (int64_t j = 0; j < M * GROUP_K; j++) want[j] += (double)part[j];
    }
    CHECK(lora_linear_forward(ctx, x, GROUP, together.outputs, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_linear_backward(ctx, x, GROUP, together.gradients, rows_of(dx, M, GROUP_K), false, &err) == LORA_OK, "%s", err.message);
    close_to("dx of a group", isa, dx, want, M * GROUP_K);
    for (int i = 0; i < GROUP; i++) {
        size_t R = (size_t)together.a[i].rank, N = (size_t)together.N[i];
        CHECK(memcmp(together.y[i], alone.y[i], (size_t)M * N * sizeof(float)) == 0 &&
                  memcmp(together.dA[i], alone.dA[i], R * GROUP_K * sizeof(float)) == 0 &&
                  memcmp(together.dB[i], alone.dB[i], N * R * sizeof(float)) == 0,
              "%s, operands %s: layer %d of a group has other bits", lora_isa_name(isa), lora_ctx_operands(ctx), i);
    }
    CHECK(lora_linear_forward(ctx, x, 0, together.outputs, &err) == LORA_EINVAL, "no layers");
    CHECK(lora_linear_forward(ctx, x, LORA_LINEAR_LAYERS + 1, together.outputs, &err) == LORA_EINVAL, "too many layers");
    free(dx);
    free(part);
    free(want);
    free_group(&together);
    free_group(&alone);
}

static void check_refusals(lora_ctx *ctx) {
    problem p = make(2, 8, 4, 2, 0);
    lora_weight w = lora_weight_f32(p.w, 4, 8, 8);
    lora_error err;
    lora_linear_layer l = {.w = &w, .y = rows_of(p.dy, 2, 4)}, over_x = {.w = &w, .y = rows_of(p.x, 2, 4)};
    lora_mat x = rows_of(p.x, 2, 8), half = x;
    half.dtype = LORA_BF16;
    CHECK(lora_linear_forward(ctx, lora_mat_f32(p.x, 2, 8, 7), 1, &l, &err) == LORA_ESHAPE, "rows of x closer than their length");
    CHECK(lora_linear_forward(ctx, rows_of(p.x, 2, 7), 1, &l, &err) == LORA_ESHAPE, "short rows of x");
    CHECK(lora_linear_forward(ctx, rows_of(p.x, 1, 8), 1, &l, &err) == LORA_ESHAPE, "fewer rows of x than of y");
    CHECK(lora_linear_forward(ctx, half, 1, &l, &err) == LORA_EDTYPE, "x in bfloat16");
    CHECK(lora_linear_forward(ctx, x, 1, &over_x, &err) == LORA_EINVAL, "y over x");
    CHECK(lora_linear_forward(ctx, rows_of(p.x, 0, 8), 1, &l, &err) == LORA_ESHAPE, "no rows");
    lora_linear_gradient g = {.dy = rows_of(p.dy, 2, 4), .w = &w, .dbias = p.bias}, trained = g;
    trained.dW = p.w;
    CHECK(lora_linear_backward(ctx, lora_mat_none(), 1, &trained, lora_mat_none(), false, &err) == LORA_EINVAL,
          "a gradient of W without x");
    CHECK(lora_linear_backward(ctx, x, 1, &g, x, false, &err) == LORA_EINVAL, "dx over x");
    CHECK(lora_linear_backward(ctx, lora_mat_none(), 1, &g, rows_of(p.x, 2, 7), false, &err) == LORA_ESHAPE, "short rows of dx");
    CHECK(lora_linear_backward(ctx, lora_mat_none(), 1, &g, lora_mat_none(), false, &err) == LORA_OK, "%s", err.message);
    lora_mat both = rows_of(p.dy, 1, 8); /* x and y behind each other in a row, or across each other */
    lora_weight narrow = lora_weight_f32(p.w, 4, 4, 4);
    lora_linear_layer beside = {.w = &narrow, .y = lora_mat_cols(both, 4, 4)}, across = {.w = &narrow, .y = lora_mat_cols(both, 3, 4)};
    CHECK(lora_linear_forward(ctx, lora_mat_cols(both, 0, 4), 1, &beside, &err) == LORA_OK, "%s", err.message);
    CHECK(lora_linear_forward(ctx, lora_mat_cols(both, 0, 4), 1, &across, &err) == LORA_EINVAL, "y across x");
    release(&p);
}

/* The low-rank products that forward leaves: the gradients have the bits that they have without. */
static void check_kept_low(lora_ctx *ctx) {
    enum { M = 40, K = 96, N = 33, R = 5 };
    static float low[M * R], y[M * N];
    lora_error err;
    float dB[2][N * R] = {0}, dA[2][R * K] = {0};
    problem p = make(M, K, N, R, 0);
    lora_weight w = lora_weight_f32(p.w, N, K, K);
    for (int kept = 0; kept < 2; kept++) {
        lora_adapter a = {.rank = R, .A = p.A, .B = p.B, .dA = dA[kept], .dB = dB[kept], .scale = p.scale};
        CHECK(lora_linear_keeps_low(ctx, M, &a) && !lora_linear_keeps_low(ctx, 1, &a), "where low-rank products are kept");
        lora_adapter_pass pass = {.low = kept ? low : NULL};
        lora_linear_layer layer = {.w = &w, .adapter = &a, .pass = pass, .y = rows_of(y, M, N)};
        lora_linear_gradient gradient = {.dy = rows_of(p.dy, M, N), .w = &w, .adapter = &a, .pass = pass};
        CHECK(lora_linear_forward(ctx, rows_of(p.x, M, K), 1, &layer, &err) == LORA_OK, "%s", err.message);
        CHECK(lora_linear_backward(ctx, rows_of(p.x, M, K), 1, &gradient, lora_mat_none(), false, &err) == LORA_OK, "%s", err.message);
    }
    CHECK(low[0] != 0 && memcmp(dA[0], dA[1], sizeof dA[0]) == 0 && memcmp(dB[0], dB[1], sizeof dB[0]) == 0,
          "%s: kept low-rank products change the gradients", lora_isa_name(lora_ctx_isa(ctx)));
    release(&p);
}

/* dB = s G A^T, dA = s B^T G, on top of what they hold. */
static void check_merge_backward(lora_ctx *ctx) {
    enum { N = 37, K = 65, R = 4 };
    lora_isa isa = lora_ctx_isa(ctx);
    lora_error err;
    float dB[N * R], dA[R * K];
    double want_dB[N * R], want_dA[R * K];
    problem p = make(1, K, N, R, 0); /* w is the gradient */
    lora_adapter a = {.rank = R, .A = p.A, .B = p.B, .dA = dA, .dB = dB, .scale = p.scale}, dora = a;
    for (int i = 0; i < N * R; i++) dB[i] = 1, want_dB[i] = 1;
    for (int i = 0; i < R * K; i++) dA[i] = -1, want_dA[i] = -1;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++)
            for (int r = 0; r < R; r++) {
                want_dB[n * R + r] += (double)p.scale * (double)p.w[n * K + k] * (double)p.A[r * K + k];
                want_dA[r * K + k] += (double)p.scale * (double)p.w[n * K + k] * (double)p.B[n * R + r];
            }
    CHECK(lora_linear_merge_backward(ctx, &a, rows_of(p.w, N, K), &err) == LORA_OK, "%s", err.message);
    close_to("dB of a matrix", isa, dB, want_dB, N * R);
    close_to("dA of a matrix", isa, dA, want_dA, R * K);
    a.dB = NULL;
    dora.magnitude = p.bias;
    CHECK(lora_linear_merge_backward(ctx, &a, rows_of(p.w, N, K), &err) == LORA_OK, "%s", err.message);
    CHECK(lora_linear_merge_backward(ctx, &dora, rows_of(p.w, N, K), &err) == LORA_EINVAL, "DoRA");
    CHECK(lora_linear_merge_backward(ctx, &a, lora_mat_none(), &err) == LORA_ESHAPE, "no gradient");
    release(&p);
}

/* Layers in one call, each with what it may have, against one call each on one thread. */
static void many_equals_one_by_one(lora_isa isa, int threads, int64_t M) {
    enum { K = 96, LAYERS = 3 };
    static const int64_t N[LAYERS] = {130, 40, 700};
    lora_ctx *ctx = check_ctx(isa, threads), *alone = check_ctx(isa, 1);
    lora_error err;
    problem p[LAYERS];
    lora_weight w[LAYERS];
    lora_adapter a[LAYERS];
    lora_linear_layer layers[LAYERS];
    float *y[LAYERS], *want = malloc((size_t)(M * 700) * sizeof *want);
    for (int i = 0; i < LAYERS; i++) {
        p[i] = make(M, K, N[i], 5, 0);
        w[i] = lora_weight_f32(p[i].w, N[i], K, K);
        a[i] = (lora_adapter){.rank = 5, .A = p[i].A, .B = p[i].B, .scale = p[i].scale};
        y[i] = normals(M * N[i], 8);
        layers[i] = (lora_linear_layer){.w = &w[i],
                                        .bias = i == 0 ? p[i].bias : NULL,
                                        .adapter = i == 1 ? NULL : &a[i],
                                        .y = rows_of(y[i], M, N[i]),
                                        .accumulate = i == 2};
    }
    lora_mat x = rows_of(p[0].x, M, K);
    CHECK(lora_linear_forward(ctx, x, LAYERS, layers, &err) == LORA_OK, "%s", err.message);
    for (int i = 0; i < LAYERS; i++) {
        check_normal(want, M * N[i], 8, 1);
        lora_linear_layer one = layers[i];
        one.y = rows_of(want, M, N[i]);
        CHECK(lora_linear_forward(alone, x, 1, &one, &err) == LORA_OK, "%s", err.message);
        CHECK(memcmp(want, y[i], (size_t)(M * N[i]) * sizeof *want) == 0, "%s %d threads M %lld: layer %d differs", lora_isa_name(isa),
              threads, (long long)M, i);
    }
    w[1].cols = K - 1;
    CHECK(lora_linear_forward(ctx, x, LAYERS, layers, &err) == LORA_ESHAPE, "layers of different K were taken");
    for (int i = 0; i < LAYERS; i++) free(y[i]), release(&p[i]);
    free(want);
    lora_ctx_destroy(ctx);
    lora_ctx_destroy(alone);
}

void check_linear(void) {
    static const int64_t cases[][4] = {{1, 1, 1, 1},     {2, 3, 5, 2},      {3, 64, 17, 4},  {7, 65, 33, 8},
                                       {17, 127, 31, 3}, {29, 64, 128, 16}, {40, 172, 64, 8}};
    FOR_EACH_ISA(isa) {
        for (int threads = 1; threads <= 4; threads++)
            for (int64_t M = 1; M <= 61; M += 20) many_equals_one_by_one(isa, threads, M);
        lora_ctx *ctx = check_ctx(isa, 2);
        for (int precision = LORA_PRECISION_EXACT; precision <= LORA_PRECISION_FAST; precision++) {
            lora_error err;
            CHECK(lora_ctx_set_precision(ctx, (lora_precision)precision, &err) == LORA_OK, "%s", err.message);
            tolerance = strcmp(lora_ctx_operands(ctx), "float32") == 0 ? 2e-5 : 1e-2;
            for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
                for (int d = 0; d < 2; d++) {
                    problem p = make(cases[i][0], cases[i][1], cases[i][2], cases[i][3], d ? 0.3f : 0);
                    check_case(ctx, p);
                    release(&p);
                }
            check_kept_low(ctx);
            check_merge_backward(ctx);
            check_group(ctx, 7);    /* few enough for a way of their own, but for the layer with dropout */
            check_group(ctx, 1050); /* more rows than are packed at once */
        }
        check_refusals(ctx);
        lora_ctx_destroy(ctx);
    }
}
