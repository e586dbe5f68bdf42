/* LoRA's linear layer against the float64 loops of linear_problem.c, and what must not change a single bit of it. */
#include <stdlib.h>
#include <string.h>

#include "tests/c/linear_problem.h"

/* Sums of a few hundred products of N(0, 1): float32 rounding is far below 1e-4 of the largest entry, errors far above. With
 * operands of 8 bits the products are off by 2^-8, independently, so that a sum is off by a hundredth of its spread; some
 * results have been rounded three times. */
static double tolerance = 2e-5;

static void close_enough(const char *what, const lora_ctx *ctx, const float *got, const double *want, int64_t n) {
    arrays_close(what, ctx, got, want, n, tolerance);
}

static void check_case(lora_ctx *ctx, const linear_problem *p) {
    int64_t M = p->M, K = p->K, N = p->N, R = p->R;
    lora_weight w = lora_weight_f32(p->w, N, K, K);
    guarded y = guarded_new(M * N, 1), dx = guarded_new(M * K, 0), dA = guarded_new(R * K, 1), dB = guarded_new(N * R, 0);
    guarded dW = guarded_new(N * K, 0), db = guarded_new(N, 1);
    guarded *grads[] = {&dA, &dB, &dW, &db};
    for (int g = 0; g < 4; g++) memset(grads[g]->data, 0, (size_t)grads[g]->n * sizeof(float));
    lora_adapter a = linear_problem_adapter(p, dA.data, dB.data);
    lora_adapter_pass pass = linear_problem_pass(p);
    lora_linear_layer layer = {.w = &w, .bias = p->bias, .adapter = &a, .pass = pass, .y = rows_of(y.data, M, N)};
    lora_linear_gradient gradient = {.dy = rows_of(p->dy, M, N), .w = &w, .adapter = &a, .pass = pass, .dW = dW.data, .dbias = db.data};
    OK(lora_linear_forward(ctx, rows_of(p->x, M, K), 1, &layer, ERR));
    OK(lora_linear_backward(ctx, rows_of(p->x, M, K), 1, &gradient, rows_of(dx.data, M, K), false, ERR));
    double *want = malloc((size_t)(M * N) * sizeof *want);
    linear_oracle_forward(p, want);
    linear_gradients g = linear_oracle_backward(p);
    close_enough("y", ctx, y.data, want, M * N);
    close_enough("dx", ctx, dx.data, g.dx, M * K);
    close_enough("dA", ctx, dA.data, g.dA, R * K);
    close_enough("dB", ctx, dB.data, g.dB, N * R);
    close_enough("dW", ctx, dW.data, g.dW, N * K);
    close_enough("dbias", ctx, db.data, g.dbias, N);
    CHECK(guarded_ok(&y) && guarded_ok(&dx) && guarded_ok(&dA) && guarded_ok(&dB) && guarded_ok(&dW) && guarded_ok(&db), "guard bands");
    free(want);
    linear_gradients_free(&g);
    guarded *all[] = {&y, &dx, &dA, &dB, &dW, &db};
    for (int i = 0; i < 6; i++) guarded_free(all[i]);
}

enum { GROUP_K = 96, GROUP = 3 };

typedef struct group {
    int64_t N[GROUP];
    linear_problem p[GROUP];
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
        g->p[i] = linear_problem_new(M, GROUP_K, g->N[i], R, i == 2 ? 0.25f : 0);
        g->w[i] = lora_weight_f32(g->p[i].w, g->N[i], GROUP_K, GROUP_K);
        g->y[i] = calloc((size_t)(M * g->N[i]), sizeof(float));
        g->dA[i] = calloc((size_t)(R * GROUP_K), sizeof(float));
        g->dB[i] = calloc((size_t)(g->N[i] * R), sizeof(float));
        g->a[i] = linear_problem_adapter(&g->p[i], g->dA[i], g->dB[i]);
        const lora_adapter *a = i == 1 ? NULL : &g->a[i];
        lora_adapter_pass pass = linear_problem_pass(&g->p[i]);
        g->outputs[i] =
            (lora_linear_layer){.w = &g->w[i], .bias = g->p[i].bias, .adapter = a, .pass = pass, .y = rows_of(g->y[i], M, g->N[i])};
        g->gradients[i] = (lora_linear_gradient){.dy = rows_of(g->p[i].dy, M, g->N[i]), .w = &g->w[i], .adapter = a, .pass = pass};
    }
}

static void free_group(group *g) {
    for (int i = 0; i < GROUP; i++) {
        linear_problem_free(&g->p[i]);
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
        OK(lora_linear_forward(ctx, x, 1, &alone.outputs[i], ERR));
        OK(lora_linear_backward(ctx, x, 1, &alone.gradients[i], rows_of(part, M, GROUP_K), false, ERR));
        for (int64_t j = 0; j < M * GROUP_K; j++) want[j] += (double)part[j];
    }
    OK(lora_linear_forward(ctx, x, GROUP, together.outputs, ERR));
    OK(lora_linear_backward(ctx, x, GROUP, together.gradients, rows_of(dx, M, GROUP_K), false, ERR));
    close_enough("dx of a group", ctx, dx, want, M * GROUP_K);
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
    linear_problem p = linear_problem_new(2, 8, 4, 2, 0);
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
    OK(lora_linear_backward(ctx, lora_mat_none(), 1, &g, lora_mat_none(), false, ERR));
    lora_mat both = rows_of(p.dy, 1, 8); /* x and y behind each other in a row, or across each other */
    lora_weight narrow = lora_weight_f32(p.w, 4, 4, 4);
    lora_linear_layer beside = {.w = &narrow, .y = lora_mat_cols(both, 4, 4)}, across = {.w = &narrow, .y = lora_mat_cols(both, 3, 4)};
    OK(lora_linear_forward(ctx, lora_mat_cols(both, 0, 4), 1, &beside, ERR));
    CHECK(lora_linear_forward(ctx, lora_mat_cols(both, 0, 4), 1, &across, &err) == LORA_EINVAL, "y across x");
    linear_problem_free(&p);
}

/* The low-rank products that forward leaves: the gradients have the bits that they have without. */
static void check_kept_low(lora_ctx *ctx) {
    enum { M = 40, K = 96, N = 33, R = 5 };
    static float low[M * R], y[M * N];
    float dB[2][N * R] = {0}, dA[2][R * K] = {0};
    linear_problem p = linear_problem_new(M, K, N, R, 0);
    lora_weight w = lora_weight_f32(p.w, N, K, K);
    for (int kept = 0; kept < 2; kept++) {
        lora_adapter a = {.rank = R, .A = p.A, .B = p.B, .dA = dA[kept], .dB = dB[kept], .scale = p.scale};
        CHECK(lora_linear_keeps_low(ctx, M, &a) && !lora_linear_keeps_low(ctx, 1, &a), "where low-rank products are kept");
        lora_adapter_pass pass = {.low = kept ? low : NULL};
        lora_linear_layer layer = {.w = &w, .adapter = &a, .pass = pass, .y = rows_of(y, M, N)};
        lora_linear_gradient gradient = {.dy = rows_of(p.dy, M, N), .w = &w, .adapter = &a, .pass = pass};
        OK(lora_linear_forward(ctx, rows_of(p.x, M, K), 1, &layer, ERR));
        OK(lora_linear_backward(ctx, rows_of(p.x, M, K), 1, &gradient, lora_mat_none(), false, ERR));
    }
    CHECK(low[0] != 0 && memcmp(dA[0], dA[1], sizeof dA[0]) == 0 && memcmp(dB[0], dB[1], sizeof dB[0]) == 0,
          "%s: kept low-rank products change the gradients", lora_isa_name(lora_ctx_isa(ctx)));
    linear_problem_free(&p);
}

/* dB = s G A^T, dA = s B^T G, on top of what they hold. */
static void check_merge_backward(lora_ctx *ctx) {
    enum { N = 37, K = 65, R = 4 };
    lora_error err;
    float dB[N * R], dA[R * K];
    double want_dB[N * R], want_dA[R * K];
    linear_problem p = linear_problem_new(1, K, N, R, 0); /* w is the gradient */
    lora_adapter a = {.rank = R, .A = p.A, .B = p.B, .dA = dA, .dB = dB, .scale = p.scale}, dora = a;
    for (int i = 0; i < N * R; i++) dB[i] = 1, want_dB[i] = 1;
    for (int i = 0; i < R * K; i++) dA[i] = -1, want_dA[i] = -1;
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++)
            for (int r = 0; r < R; r++) {
                want_dB[n * R + r] += (double)p.scale * (double)p.w[n * K + k] * (double)p.A[r * K + k];
                want_dA[r * K + k] += (double)p.scale * (double)p.w[n * K + k] * (double)p.B[n * R + r];
            }
    OK(lora_linear_merge_backward(ctx, &a, rows_of(p.w, N, K), ERR));
    close_enough("dB of a matrix", ctx, dB, want_dB, N * R);
    close_enough("dA of a matrix", ctx, dA, want_dA, R * K);
    a.dB = NULL;
    dora.magnitude = p.bias;
    OK(lora_linear_merge_backward(ctx, &a, rows_of(p.w, N, K), ERR));
    CHECK(lora_linear_merge_backward(ctx, &dora, rows_of(p.w, N, K), &err) == LORA_EINVAL, "DoRA");
    CHECK(lora_linear_merge_backward(ctx, &a, lora_mat_none(), &err) == LORA_ESHAPE, "no gradient");
    linear_problem_free(&p);
}

/* Layers in one call, each with what it may have, against one call each on one thread. */
static void many_equals_one_by_one(lora_isa isa, int threads, int64_t M) {
    enum { K = 96, LAYERS = 3 };
    static const int64_t N[LAYERS] = {130, 40, 700};
    lora_ctx *ctx = check_ctx(isa, threads), *alone = check_ctx(isa, 1);
    lora_error err;
    linear_problem p[LAYERS];
    lora_weight w[LAYERS];
    lora_adapter a[LAYERS];
    lora_linear_layer layers[LAYERS];
    float *y[LAYERS], *want = malloc((size_t)(M * 700) * sizeof *want);
    for (int i = 0; i < LAYERS; i++) {
        p[i] = linear_problem_new(M, K, N[i], 5, 0);
        w[i] = lora_weight_f32(p[i].w, N[i], K, K);
        a[i] = (lora_adapter){.rank = 5, .A = p[i].A, .B = p[i].B, .scale = p[i].scale};
        y[i] = malloc((size_t)(M * N[i]) * sizeof(float));
        check_normal(y[i], M * N[i], 8, 1);
        layers[i] = (lora_linear_layer){.w = &w[i],
                                        .bias = i == 0 ? p[i].bias : NULL,
                                        .adapter = i == 1 ? NULL : &a[i],
                                        .y = rows_of(y[i], M, N[i]),
                                        .accumulate = i == 2};
    }
    lora_mat x = rows_of(p[0].x, M, K);
    OK(lora_linear_forward(ctx, x, LAYERS, layers, ERR));
    for (int i = 0; i < LAYERS; i++) {
        check_normal(want, M * N[i], 8, 1);
        lora_linear_layer one = layers[i];
        one.y = rows_of(want, M, N[i]);
        OK(lora_linear_forward(alone, x, 1, &one, ERR));
        CHECK(memcmp(want, y[i], (size_t)(M * N[i]) * sizeof *want) == 0, "%s %d threads M %lld: layer %d differs", lora_isa_name(isa),
              threads, (long long)M, i);
    }
    w[1].cols = K - 1;
    CHECK(lora_linear_forward(ctx, x, LAYERS, layers, &err) == LORA_ESHAPE, "layers of different K were taken");
    for (int i = 0; i < LAYERS; i++) free(y[i]), linear_problem_free(&p[i]);
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
        for (int precision = LORA_PRECISION_EXACT; precision <= LORA_PRECISION_INT8; precision++) {
            OK(lora_ctx_set_precision(ctx, (lora_precision)precision, ERR));
            tolerance = strcmp(lora_ctx_operands(ctx), "float32") == 0 ? 2e-5 : precision == LORA_PRECISION_INT8 ? 2e-2 : 1e-2;
            for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
                for (int d = 0; d < 2; d++) {
                    linear_problem p = linear_problem_new(cases[i][0], cases[i][1], cases[i][2], cases[i][3], d ? 0.3f : 0);
                    check_case(ctx, &p);
                    linear_problem_free(&p);
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
