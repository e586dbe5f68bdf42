/* Linear layers whose rows have adapters of their own: float64 loops, and the bits that each row gets alone with its adapter. */
#include "tests/c/check_backend.h"

enum { K = BACKEND_COLS, LAYERS = 3, ADAPTERS = 3, MOST_N = 70 };
static const int64_t N[LAYERS] = {MOST_N, 17, 33}, RANKS[ADAPTERS] = {16, 3, 40};

/* Layers of one x; adapters[i][a] is what layer i has of set a. */
typedef struct problem {
    int64_t M;
    float *x, *bias;
    backend_weight weights[LAYERS];
    lora_adapter adapters[LAYERS][ADAPTERS];
    float *dense[LAYERS];
} problem;

static op_run inputs; /* seeds of the weights */

static float *normals(int64_t n, uint64_t seed, float scale) {
    float *p = malloc((size_t)n * sizeof *p);
    check_normal(p, n, seed, scale);
    return p;
}

static problem make(lora_ctx *ctx, int kind, int64_t M) {
    problem p = {.M = M, .x = normals(M * K, 1, 1), .bias = normals(MOST_N, 2, 1)};
    inputs.ctx = ctx;
    for (int i = 0; i < LAYERS; i++) {
        p.weights[i] = backend_make_weight(&inputs, kind, N[i]);
        p.dense[i] = malloc((size_t)(N[i] * K) * sizeof(float));
        OK(lora_linear_merge(ctx, &p.weights[i].w, NULL, NULL, 1, p.dense[i], ERR));
        for (int a = 0; a < ADAPTERS; a++)
            p.adapters[i][a] = (lora_adapter){.rank = RANKS[a],
                                              .A = normals(RANKS[a] * K, (uint64_t)(10 * i + a + 3), 0.3f),
                                              .B = normals(N[i] * RANKS[a], (uint64_t)(10 * i + a + 40), 0.3f),
                                              .scale = 0.5f + (float)a};
    }
    return p;
}

static void release(problem *p) {
    free(p->x), free(p->bias);
    for (int i = 0; i < LAYERS; i++) {
        backend_free_weight(&p->weights[i]);
        free(p->dense[i]);
        for (int a = 0; a < ADAPTERS; a++) free((void *)p->adapters[i][a].A), free((void *)p->adapters[i][a].B);
    }
}

/* sets[m]: the adapter of row m, -1: none. Neighbours with the same one are a group. */
static int64_t groups_of(const problem *p, int layer, const int *sets, lora_adapter_rows *groups) {
    int64_t n = 0;
    for (int64_t m = 0; m < p->M; m++) {
        if (sets[m] < 0) continue;
        if (m == 0 || sets[m - 1] != sets[m]) groups[n++] = (lora_adapter_rows){.adapter = &p->adapters[layer][sets[m]], .first = m};
        groups[n - 1].rows++;
    }
    return n;
}

static double dot(const float *x, const float *w, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)w[i];
    return sum;
}

/* Row m of a layer with the adapter of a set. */
static void expected_row(const problem *p, int layer, int64_t m, int set, double *want) {
    const float *x = p->x + m * K;
    for (int64_t n = 0; n < N[layer]; n++) want[n] = dot(x, p->dense[layer] + n * K, K) + (layer == 1 ? (double)p->bias[n] : 0);
    if (set < 0) return;
    const lora_adapter *a = &p->adapters[layer][set];
    for (int64_t r = 0; r < a->rank; r++) {
        double low = (double)a->scale * dot(x, a->A + r * K, K);
        for (int64_t n = 0; n < N[layer]; n++) want[n] += low * (double)a->B[n * a->rank + r];
    }
}

/* The layer as a call has it; the second one has a bias, the third is added to what y holds. */
static lora_linear_layer layer_of(const problem *p, int i, float *y, int64_t rows) {
    return (lora_linear_layer){
        .w = &p->weights[i].w, .bias = i == 1 ? p->bias : NULL, .y = lora_mat_f32(y, rows, N[i], N[i]), .accumulate = i == 2};
}

static void check_rows(lora_ctx *alone, const problem *p, const int *sets, int i, const float *y, double tolerance) {
    float row[MOST_N];
    double worst = 0, top = 1e-6, want[MOST_N];
    for (int64_t m = 0; m < p->M; m++) {
        memset(row, 0, sizeof row);
        lora_linear_layer one = layer_of(p, i, row, 1);
        if (sets[m] >= 0) one.adapter = &p->adapters[i][sets[m]];
        OK(lora_linear_forward(alone, lora_mat_f32(p->x + m * K, 1, K, K), 1, &one, ERR));
        CHECK(memcmp(row, y + m * N[i], (size_t)N[i] * sizeof *row) == 0, "%s, %s, %s: row %lld of %lld differs from itself alone",
              lora_isa_name(lora_ctx_isa(alone)), lora_ctx_operands(alone), p->weights[i].name, (long long)m, (long long)p->M);
        expected_row(p, i, m, sets[m], want);
        for (int64_t n = 0; n < N[i]; n++) {
            top = larger(top, fabs(want[n]));
            worst = worse(worst, fabs((double)row[n] - want[n]));
        }
    }
    CHECK(worst <= tolerance * top, "%s, %s, %s: off by %g of %g", lora_isa_name(lora_ctx_isa(alone)), lora_ctx_operands(alone),
          p->weights[i].name, worst, top);
}

static void check_mixed(lora_ctx *ctx, lora_ctx *alone, const problem *p, const int *sets) {
    lora_adapter_rows groups[LAYERS][LORA_DECODE_BATCH] = {0};
    lora_linear_layer layers[LAYERS];
    guarded y[LAYERS];
    double tolerance = strcmp(lora_ctx_operands(ctx), "float32") == 0 ? 2e-5 : 1e-2; /* as of the layers with one adapter */
    for (int i = 0; i < LAYERS; i++) {
        y[i] = guarded_new(p->M * N[i], i);
        memset(y[i].data, 0, (size_t)(p->M * N[i]) * sizeof(float));
        layers[i] = layer_of(p, i, y[i].data, p->M);
        layers[i].n_groups = groups_of(p, i, sets, groups[i]);
        layers[i].groups = groups[i];
    }
    OK(lora_linear_forward(ctx, lora_mat_f32(p->x, p->M, K, K), LAYERS, layers, ERR));
    for (int i = 0; i < LAYERS; i++) {
        check_rows(alone, p, sets, i, y[i].data, tolerance);
        CHECK(guarded_ok(&y[i]), "layer %d: written outside", i);
        guarded_free(&y[i]);
    }
}

static void check_kind(lora_ctx *ctx, lora_ctx *alone, int kind) {
    static const int chosen[][LORA_DECODE_BATCH] = {{0},
                                                    {-1, 2},
                                                    {0, 0, 1, 1, 2, 2, -1, -1},
                                                    {2, -1, 2, 1, 1, 1, -1, 0, 0, 0, 0, 0, 2, 2, 1, -1},
                                                    {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1}};
    static const int64_t tokens[] = {1, 2, 8, LORA_DECODE_BATCH, LORA_DECODE_BATCH};
    for (int i = 0; i < 5; i++) {
        problem p = make(alone, kind, tokens[i]);
        check_mixed(ctx, alone, &p, chosen[i]);
        release(&p);
    }
}

/* One layer has an adapter with DoRA for all rows, the other groups: each takes its own way. */
static void check_beside_dora(lora_ctx *ctx) {
    problem p = make(ctx, 0, 4);
    const int sets[] = {0, 1, 1, -1};
    float norm[MOST_N], y[2][4 * MOST_N], want[2][4 * MOST_N];
    lora_adapter_rows groups[LORA_DECODE_BATCH] = {0};
    lora_adapter dora = p.adapters[0][0];
    dora.magnitude = p.bias;
    OK(lora_dora_norm(ctx, &p.weights[0].w, &dora, norm, ERR));
    lora_linear_layer layers[] = {layer_of(&p, 0, y[0], 4), layer_of(&p, 1, y[1], 4)};
    layers[0].adapter = &dora;
    layers[0].pass.norm = norm;
    layers[1].n_groups = groups_of(&p, 1, sets, groups);
    layers[1].groups = groups;
    lora_mat x = lora_mat_f32(p.x, 4, K, K);
    OK(lora_linear_forward(ctx, x, 2, layers, ERR));
    for (int i = 0; i < 2; i++) {
        layers[i].y.data = want[i];
        OK(lora_linear_forward(ctx, x, 1, &layers[i], ERR));
        CHECK(memcmp(y[i], want[i], (size_t)(4 * N[i]) * sizeof(float)) == 0, "layer %d beside another", i);
    }
    release(&p);
}

static void check_refusals(lora_ctx *ctx) {
    enum { M = 6 };
    problem p = make(ctx, 0, LORA_DECODE_BATCH + 1);
    float y[(LORA_DECODE_BATCH + 1) * MOST_N];
    const lora_adapter *a = &p.adapters[0][0];
    lora_adapter dora = *a, empty = *a;
    dora.magnitude = p.bias;
    empty.B = NULL;
    const lora_adapter_rows good[] = {{a, 0, 2}, {a, 2, 1}, {a, 5, 1}};
    lora_linear_layer l = layer_of(&p, 0, y, M), bad = l;
    lora_mat x = lora_mat_f32(p.x, M, K, K);
    l.groups = good;
    l.n_groups = 3;
    OK(lora_linear_forward(ctx, x, 1, &l, ERR));
    bad.n_groups = 1;
    REFUSED(LORA_EINVAL, "groups: expected an array of 1, got none", lora_linear_forward(ctx, x, 1, &bad, ERR));
    bad = l;
    bad.n_groups = -1;
    REFUSED(LORA_EINVAL, "groups: expected an array", lora_linear_forward(ctx, x, 1, &bad, ERR));
    bad = l;
    bad.adapter = a;
    REFUSED(LORA_EINVAL, "groups: expected no adapter", lora_linear_forward(ctx, x, 1, &bad, ERR));
    bad = l;
    bad.pass.dropout = 0.5f;
    REFUSED(LORA_EINVAL, "groups: expected no adapter and no dropout", lora_linear_forward(ctx, x, 1, &bad, ERR));
    bad = l;
    bad.y.rows = LORA_DECODE_BATCH + 1;
    REFUSED(LORA_EINVAL, "groups: expected at most 16 tokens, got 17",
            lora_linear_forward(ctx, lora_mat_f32(p.x, LORA_DECODE_BATCH + 1, K, K), 1, &bad, ERR));
    const struct {
        lora_adapter_rows groups[2];
        const char *text;
    } cases[] = {{{{a, 0, 2}, {NULL, 2, 1}}, "groups: expected adapters with A, B and r > 0"},
                 {{{a, 0, 2}, {&empty, 2, 1}}, "groups: expected adapters with A, B and r > 0"},
                 {{{a, 0, 2}, {&dora, 2, 1}}, "groups: expected adapters without DoRA"},
                 {{{a, 0, 2}, {a, 1, 1}}, "groups: expected rising runs of rows of 6, got 1 rows from row 1 behind row 2"},
                 {{{a, 0, 2}, {a, 2, 0}}, "groups: expected rising runs"},
                 {{{a, -1, 2}, {a, 2, 1}}, "groups: expected rising runs"},
                 {{{a, 0, 2}, {a, 5, 2}}, "groups: expected rising runs"},
                 {{{a, 0, 2}, {a, INT64_MAX, 1}}, "groups: expected rising runs"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bad = l;
        bad.groups = cases[i].groups;
        bad.n_groups = 2;
        REFUSED(LORA_EINVAL, cases[i].text, lora_linear_forward(ctx, x, 1, &bad, ERR));
    }
    release(&p);
}

void check_adapter_groups(void) {
    FOR_EACH_ISA(isa) {
        lora_ctx *alone = check_ctx(isa, 1);
        for (int threads = 1; threads <= 2; threads++) {
            lora_ctx *ctx = check_ctx(isa, threads);
            for (int precision = LORA_PRECISION_EXACT; precision <= LORA_PRECISION_FAST; precision++) {
                OK(lora_ctx_set_precision(ctx, (lora_precision)precision, ERR));
                OK(lora_ctx_set_precision(alone, (lora_precision)precision, ERR));
                for (int kind = 0; kind < backend_weights(); kind++) check_kind(ctx, alone, kind);
            }
            check_beside_dora(ctx);
            lora_ctx_destroy(ctx);
        }
        check_refusals(alone);
        lora_ctx_destroy(alone);
    }
}
