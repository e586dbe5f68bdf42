/* The matrix product against float64 loops: every rung and arithmetic, orientation and weight format. */
#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/ops/gemm.h"
#include "lora_c/ops/gemm_packed.h"
#include "lora_c/ops/gemm_right.h"
#include "tests/c/gemm_weight.h"
#include "tests/c/products.h"

/* op(b)[p, j] */
static double right(const weight_case *c, bool transposed, int64_t p, int64_t j) {
    return (double)c->dense[transposed ? j * c->w.cols + p : p * c->w.cols + j];
}

/* Largest |value| that shares a scale with op(b)[p, j]. Square blocks of 4-bit weights span 64 columns too. */
static double right_top(const weight_case *c, bool transposed, int64_t k, int64_t p, int64_t n, int64_t j) {
    bool square = c->w.kind == LORA_WEIGHT_NF4 && !transposed;
    int64_t p0 = p / 64 * 64, p1 = p0 + 64 < k ? p0 + 64 : k, j0 = square ? j / 64 * 64 : j,
            j1 = square ? (j0 + 64 < n ? j0 + 64 : n) : j + 1;
    double top = 0;
    for (int64_t q = p0; q < p1; q++)
        for (int64_t l = j0; l < j1; l++) top = larger(top, fabs(right(c, transposed, q, l)));
    return top;
}

/* What operands are rounded to: an arithmetic of the products, or */
enum { INT8 = LORA_GEMM_PATHS };

typedef struct bound {
    double error, magnitude;
} bound;

/* What rounding the operands may change in one product of x and y: to 8 significant bits, or to steps of top / 5792 or top / 127. */
static double operand_error(int path, double x, double y, double x_top, double y_top) {
    if (path == LORA_GEMM_EXACT) return 0;
    const double step = 0.5 / (path == INT8 ? 127 : 5792) + 0x1p-22;
    double ex = path == LORA_GEMM_BF16 ? fabs(x) * 0x1p-8 : x_top * step;
    double ey = path == LORA_GEMM_BF16 ? fabs(y) * 0x1p-8 : y_top * step;
    return fabs(x) * ey + fabs(y) * ex + ex * ey;
}

/* Any order of a float32 sum of k products, and the rounding of the result. */
static bool within(double got, double want, bound b, int64_t k) {
    return fabs(got - want) <= b.error + (double)(k + 4) * 0x1p-24 * (b.magnitude + b.error) + 0x1p-23 * fabs(want);
}

typedef struct product {
    int path;
    lora_gemm_args g;
    weight_case *c;
    float before; /* content of C */
} product;

static long count_wrong(const product *t) {
    const lora_gemm_args *g = &t->g;
    long wrong = 0;
    double *tops = calloc((size_t)(g->m * lora_div_up(g->k, 64)), sizeof *tops);
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t p = 0; p < g->k; p++) {
            double *top = tops + i * lora_div_up(g->k, 64) + p / 64;
            *top = larger(*top, fabs((double)g->a[i * g->a_row_stride + p * g->a_col_stride]));
        }
    const bool table = g->b_transposed && lora_gemm_packs_from_4_bits(&t->c->w);
    const double levels = table ? (double)lora_int8_table_levels(t->c->nf4.lut) : 127;
    for (int64_t j = 0; j < g->n; j++) {
        double *y = malloc((size_t)g->k * sizeof *y), *y_top = calloc((size_t)g->k, sizeof *y_top);
        for (int64_t p = 0; p < g->k; p++) {
            y[p] = right(t->c, g->b_transposed, p, j);
            if (t->path < LORA_GEMM_INT16) continue;
            y_top[p] = p % 64 ? y_top[p - 1] : right_top(t->c, g->b_transposed, g->k, p, g->n, j) * (t->path == INT8 ? 127 / levels : 1);
        }
        for (int64_t i = 0; i < g->m; i++) {
            double sum = 0;
            bound b = {.magnitude = 3};
            for (int64_t p = 0; p < g->k; p++) {
                double x = (double)g->a[i * g->a_row_stride + p * g->a_col_stride];
                sum += x * y[p];
                b.magnitude += fabs(x * y[p]);
                b.error += operand_error(t->path, x, y[p], tops[i * lora_div_up(g->k, 64) + p / 64], y_top[p]);
            }
            double want = (double)g->alpha * sum + (g->bias ? (double)g->bias[j] : 0) + (g->accumulate ? (double)t->before : 0);
            wrong += !within((double)g->c[i * g->ldc + j], want, b, g->k);
        }
        free(y);
        free(y_top);
    }
    free(tops);
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = g->n; j < g->ldc; j++) wrong += !isnan(g->c[i * g->ldc + j]);
    return wrong;
}

static int arithmetic_of(const lora_ctx *ctx) {
    if (ctx->view.precision == LORA_PRECISION_INT8) return INT8;
    return ctx->view.precision == LORA_PRECISION_FAST ? (int)ctx->engine->kernels.gemm.fast : LORA_GEMM_EXACT;
}

static void set_arithmetic(lora_ctx *ctx, int path) {
    ctx->view.precision = path == LORA_GEMM_EXACT ? LORA_PRECISION_EXACT : path == INT8 ? LORA_PRECISION_INT8 : LORA_PRECISION_FAST;
    if (path != INT8) ctx->engine->kernels.gemm.fast = (lora_gemm_arithmetic)path;
}

/* As lora_gemm with a weight of a layer, but packed however few the rows are. */
static lora_status packed_gemm(lora_ctx *ctx, const lora_gemm_args *g, lora_error *err) {
    const lora_gemm_path *path = lora_gemm_base_path_of(ctx);
    if (g->m > LORA_GEMM_CHUNK) {
        lora_gemm_args first = *g, rest = *g;
        first.m = LORA_GEMM_CHUNK;
        rest.m -= first.m;
        rest.a += first.m * g->a_row_stride;
        rest.c += first.m * g->ldc;
        LORA_TRY(packed_gemm(ctx, &first, err));
        return packed_gemm(ctx, &rest, err);
    }
    void *words;
    LORA_TRY(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_A, (size_t)lora_gemm_left_words(path, g->m, g->k) * sizeof(float), &words, err));
    lora_gemm_left left;
    lora_gemm_pack_left(ctx, path, g->m, g->k, g->a, g->a_row_stride, g->a_col_stride, words, &left);
    lora_gemm_output o = {.n = g->n,
                          .alpha = g->alpha,
                          .n_terms = 1,
                          .terms = {{.left = &left, .b = g->b, .b_transposed = g->b_transposed}},
                          .c = g->c,
                          .ldc = g->ldc,
                          .accumulate = g->accumulate,
                          .bias = g->bias};
    return lora_gemm_run(ctx, &o, 1, err);
}

static bool always_packed(const lora_ctx *ctx, int variant) { return variant & ACCUMULATE || ctx->view.precision == LORA_PRECISION_INT8; }

static void compare(lora_ctx *ctx, lora_weight_kind kind, int64_t m, int64_t rows, int64_t cols, bool transposed, int variant) {
    if (ctx->view.precision == LORA_PRECISION_INT8) variant &= ~A_TRANSPOSED; /* layers have none */
    weight_case *c = make_weight(ctx, kind, rows, cols, variant);
    int64_t n = transposed ? rows : cols, k = transposed ? cols : rows, lda = (variant & A_TRANSPOSED ? m : k) + 3, ldc = n + 5;
    int64_t a_floats = (variant & A_TRANSPOSED ? k : m) * lda;
    float *a = malloc((size_t)a_floats * sizeof(float)), *bias = malloc((size_t)n * sizeof(float));
    check_normal(a, a_floats, 5, 1);
    check_normal(bias, n, 6, 1);
    if (variant & ROUGH) roughen(a, a_floats);
    guarded out = guarded_new(m * ldc, variant & SHORT_BLOCKS);
    product t = {.path = arithmetic_of(ctx),
                 .g = {.m = m,
                       .n = n,
                       .k = k,
                       .alpha = 0.5f,
                       .a = a,
                       .a_row_stride = variant & A_TRANSPOSED ? 1 : lda,
                       .a_col_stride = variant & A_TRANSPOSED ? lda : 1,
                       .b = &c->w,
                       .b_transposed = transposed,
                       .c = out.data,
                       .ldc = ldc,
                       .accumulate = variant & ACCUMULATE,
                       .bias = variant & SHORT_BLOCKS ? bias : NULL},
                 .c = c,
                 .before = 0.25f};
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) out.data[i * ldc + j] = t.before;
    OK((always_packed(ctx, variant) ? packed_gemm : lora_gemm)(ctx, &t.g, ERR));
    long wrong = count_wrong(&t);
    CHECK(wrong == 0 && guarded_ok(&out), "%s, operands %s, kind %d m %lld rows %lld cols %lld transposed %d variant %d: %ld wrong",
          lora_isa_name(lora_ctx_isa(ctx)), lora_ctx_operands(ctx), kind, (long long)m, (long long)rows, (long long)cols, transposed,
          variant, wrong);
    guarded_free(&out);
    free(a);
    free(bias);
    free_weight(c);
}

static void sizes(lora_ctx *ctx) {
    static const int64_t ms[] = {1, 2, 3, 4, 5, 7, 8, 13, 15, 17, 29, 33, 65},
                         ks[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 172};
    const size_t n_m = sizeof ms / sizeof *ms, n_k = sizeof ks / sizeof *ks;
    for (int kind = LORA_WEIGHT_F32; kind <= LORA_WEIGHT_NF4; kind++)
        for (size_t i = 0; i < n_k; i++)
            for (size_t j = 0; j < n_k; j += 1 + i % 3) {
                int variant = (int)((i * 7 + j * 3 + (size_t)kind) % VARIANTS);
                compare(ctx, (lora_weight_kind)kind, ms[(i + j) % n_m], ks[j], ks[i], true, variant);
                compare(ctx, (lora_weight_kind)kind, ms[(i + 2 * j) % n_m], ks[j], ks[i], false, variant);
            }
}

/* Shapes whose weights are packed from 4 bits directly, ragged in every other direction. */
static void four_bits(lora_ctx *ctx) {
    static const int64_t rows[] = {1, 31, 33, 61, 64, 97, 130}, cols[] = {64, 128, 192, 320};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t j = 0; j < sizeof cols / sizeof *cols; j++) {
            int variant = (int)(4 * i + 8 * j) % VARIANTS & ~SHORT_BLOCKS;
            compare(ctx, LORA_WEIGHT_NF4, 19, rows[i], cols[j], true, variant);
            compare(ctx, LORA_WEIGHT_NF4, 19, rows[i], cols[j], false, variant ^ DOUBLE_QUANT);
        }
}

static void big(lora_ctx *ctx) {
    compare(ctx, LORA_WEIGHT_NF4, 1100, 129, 320, true, 0);           /* two chunks of A */
    compare(ctx, LORA_WEIGHT_NF4, 33, 161, 2112, true, DOUBLE_QUANT); /* several k blocks, ragged columns */
    compare(ctx, LORA_WEIGHT_NF4, 20, 1090, 192, false, ACCUMULATE);  /* the same, k along the rows */
    compare(ctx, LORA_WEIGHT_F32, 40, 16, 2100, true, ROUGH);         /* LoRA's low rank: few columns */
    compare(ctx, LORA_WEIGHT_F32, 16, 900, 131, false, A_TRANSPOSED); /* the shape of dA: k long, m small */
}

/* Two products summed into two outputs at once: y and z = x W^T + t B^T, and twice that. With int8 t is that of an adapter. */
static void sums_of_products(lora_ctx *ctx) {
    enum { M = 45, N = 130, K = 192, R = 5 };
    const lora_gemm_path *path = lora_gemm_path_of(ctx, ctx->view.precision), *base = lora_gemm_base_path_of(ctx);
    weight_case *w = make_weight(ctx, LORA_WEIGHT_NF4, N, K, 0), *b = make_weight(ctx, LORA_WEIGHT_F32, N, R, 0);
    float *x = malloc(M * K * sizeof *x), *t = malloc(M * R * sizeof *t);
    check_normal(x, M * K, 1, 1);
    check_normal(t, M * R, 2, 1);
    guarded y = guarded_new(M * N, 0), z = guarded_new(M * N, 1);
    int64_t x_words = lora_gemm_left_words(base, M, K);
    lora_error err;
    void *words;
    CHECK(lora_ctx_scratch(ctx, LORA_SCRATCH_GEMM_A, (size_t)(x_words + lora_gemm_left_words(path, M, R)) * 4, &words, &err) == LORA_OK,
          "%s", err.message);
    lora_gemm_left left_x, left_t;
    lora_gemm_pack_left(ctx, base, M, K, x, K, 1, words, &left_x);
    lora_gemm_pack_left(ctx, path, M, R, t, R, 1, (float *)words + x_words, &left_t);
    lora_gemm_output outputs[2];
    for (int i = 0; i < 2; i++)
        outputs[i] = (lora_gemm_output){
            .n = N,
            .alpha = (float)(1 + i),
            .n_terms = 2,
            .c = i ? z.data : y.data,
            .ldc = N,
            .terms = {{.left = &left_x, .b = &w->w, .b_transposed = true}, {.left = &left_t, .b = &b->w, .b_transposed = true}}};
    OK(lora_gemm_run(ctx, outputs, 2, ERR));
    const double tolerances[] = {(K + R) * 0x1p-24, 0x1p-7, 0x1p-6}; /* of two operands of 8 bits, relative and absolute ones */
    const double tolerance = tolerances[ctx->view.precision];
    long wrong = 0;
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) {
            double sum = 0, magnitude = 0;
            for (int64_t k = 0; k < K + R; k++) {
                double product = k < K ? (double)x[i * K + k] * right(w, true, k, j) : (double)t[i * R + k - K] * right(b, true, k - K, j);
                sum += product;
                magnitude += fabs(product);
            }
            wrong += !(fabs((double)y.data[i * N + j] - sum) <= tolerance * magnitude) || z.data[i * N + j] != 2 * y.data[i * N + j];
        }
    CHECK(wrong == 0 && guarded_ok(&y) && guarded_ok(&z), "%s, operands %s: %ld wrong", lora_isa_name(lora_ctx_isa(ctx)),
          lora_ctx_operands(ctx), wrong);
    guarded_free(&y);
    guarded_free(&z);
    free(x);
    free(t);
    free_weight(w);
    free_weight(b);
}

/* A value that is not finite reaches the outputs that it has a part in, and no others. */
static void not_finite(lora_ctx *ctx) {
    enum { M = 20, N = 40, K = 128 };
    for (int i = 0; i < 2; i++) {
        weight_case *c = make_weight(ctx, LORA_WEIGHT_F32, N, K, 0);
        float *a = malloc(M * K * sizeof *a), *out = malloc(M * N * sizeof *out);
        check_normal(a, M * K, 1, 1);
        a[3 * K + 70] = i ? NAN : INFINITY;
        lora_gemm_args g = product_of(M, a, &c->w, true, out);
        OK(packed_gemm(ctx, &g, ERR));
        long wrong = 0;
        for (int64_t j = 0; j < M * N; j++) wrong += (bool)isfinite(out[j]) == (j / N == 3);
        CHECK(wrong == 0, "operands %s, not finite: %ld wrong", lora_ctx_operands(ctx), wrong);
        free(a);
        free(out);
        free_weight(c);
    }
}

static void same_bits_for_any_threads(lora_isa isa, int path) {
    float *first = NULL;
    enum { M = 37, N = 200, K = 320 };
    for (int threads = 1; threads <= 8; threads = threads == 3 ? 8 : threads + 1) {
        lora_ctx *ctx = check_ctx(isa, threads);
        set_arithmetic(ctx, path);
        weight_case *c = make_weight(ctx, LORA_WEIGHT_NF4, N, K, 0);
        float *a = malloc(M * K * sizeof *a), *out = malloc(M * (N + K) * sizeof *out);
        check_normal(a, M * K, 1, 1);
        lora_gemm_args forward = product_of(M, a, &c->w, true, out);
        lora_gemm_args backward = product_of(M, out, &c->w, false, out + M * N);
        lora_error err;
        CHECK(packed_gemm(ctx, &forward, &err) == LORA_OK && packed_gemm(ctx, &backward, &err) == LORA_OK, "%s", err.message);
        if (first) CHECK(memcmp(first, out, M * (N + K) * sizeof *out) == 0, "%s: %d threads change bits", lora_isa_name(isa), threads);
        if (first)
            free(out);
        else
            first = out;
        free(a);
        free_weight(c);
        lora_ctx_destroy(ctx);
    }
    free(first);
}

void check_gemm(void) {
    FOR_EACH_ISA(isa) {
        lora_ctx *ctx = check_ctx(isa, 2);
        for (int path = LORA_GEMM_EXACT; path <= INT8; path++) {
            if (path < INT8 && !ctx->engine->kernels.gemm.paths[path].micro) continue;
            set_arithmetic(ctx, path);
            sizes(ctx);
            four_bits(ctx);
            big(ctx);
            sums_of_products(ctx);
            not_finite(ctx);
            same_bits_for_any_threads(isa, path);
        }
        lora_ctx_destroy(ctx);
    }
}
