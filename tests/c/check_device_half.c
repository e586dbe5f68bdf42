/* GPUs whose tensor cores take float16 alone (compute capability 7.5; the shim says so when asked): gradients and activations of any size
 * come through, as close to the CPU's float32 as operands of 11 bits allow; zeros stay zeros, what is not finite stays so and by itself. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "lora_c/base/half.h"
#include "tests/c/children.h"
#include "tests/c/op_run.h"

/* Of arrays, by length: three roundings to 11 bits in a row. Bfloat16's 8 bits are not in it, nor float16 below its normal numbers. */
static const double BOUND = 2 * 0x1p-11;

static op_run cpu, gpu;

static double length_of(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static double distance(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += pow((double)a[i] - (double)b[i], 2);
    return sqrt(sum);
}

static void forget(op_run *r) {
    for (int i = 0; i < r->n_arrays; i++) lora_ctx_free(r->ctx, r->arrays[i]);
    for (int i = 0; i < r->n_results; i++) free(r->results[i].data);
    r->n_arrays = r->n_results = 0;
    r->seed = 700;
}

static void compare(const char *name) {
    for (int i = 0; i < cpu.n_results; i++) {
        const op_values *want = &cpu.results[i], *got = &gpu.results[i];
        double off = distance(got->data, want->data, want->n), length = length_of(want->data, want->n);
        CHECK(length > 0 && off <= BOUND * length, "%s, %s: off by %g of %g", name, want->what, off, length);
    }
    forget(&cpu), forget(&gpu);
}

static lora_mat mat(op_run *r, int64_t rows, int64_t cols, float scale) {
    return lora_mat_f32(op_floats(r, rows * cols, scale), rows, cols, cols);
}

/* --- linear layers --- */

/* Sizes of the numbers in x, W, A and B, and dy. */
typedef struct linear_case {
    const char *name;
    float x, w, adapter, dy;
    int64_t M, K, N, R;
    float dropout;
    bool dora, bf16;
} linear_case;

static lora_weight make_weight(op_run *r, const linear_case *c) {
    int64_t n = c->N * c->K;
    if (!c->bf16) return lora_weight_f32(op_floats(r, n, c->w), c->N, c->K, c->K);
    float *host = malloc((size_t)n * sizeof *host);
    uint16_t *narrow = malloc((size_t)n * sizeof *narrow);
    check_normal(host, n, ++r->seed, c->w);
    for (int64_t i = 0; i < n; i++) narrow[i] = lora_f32_to_bf16(host[i]);
    lora_weight w = lora_weight_bf16(op_send(r, narrow, (size_t)n * sizeof *narrow), c->N, c->K, c->K);
    free(host), free(narrow);
    return w;
}

static void run_linear(op_run *r, const linear_case *c) {
    lora_weight w = make_weight(r, c);
    lora_mat x = mat(r, c->M, c->K, c->x), dy = mat(r, c->M, c->N, c->dy), y = mat(r, c->M, c->N, 0), dx = mat(r, c->M, c->K, 0);
    lora_adapter a = {.rank = c->R, .scale = 0.7f, .dropout_seed = 9};
    a.A = op_floats(r, c->R * c->K, c->adapter), a.B = op_floats(r, c->N * c->R, c->adapter);
    a.dA = op_floats(r, c->R * c->K, 0), a.dB = op_floats(r, c->N * c->R, 0);
    float *norm = op_floats(r, c->N, 1), *dW = op_floats(r, c->N * c->K, 0);
    if (c->dora) a.magnitude = op_floats(r, c->N, 1), a.dmagnitude = op_floats(r, c->N, 0);
    if (c->dora) OK(lora_dora_norm(r->ctx, &w, &a, norm, ERR));
    lora_adapter_pass pass = {.dropout = c->dropout, .dropout_stream = 4, .norm = norm};
    lora_linear_layer layer = {.w = &w, .adapter = &a, .pass = pass, .y = y};
    lora_linear_gradient g = {.dy = dy, .w = &w, .adapter = &a, .pass = pass, .dW = dW};
    OK(lora_linear_forward(r->ctx, x, 1, &layer, ERR));
    OK(lora_linear_backward(r->ctx, x, 1, &g, dx, false, ERR));
    op_keep_mat(r, "y", y);
    op_keep_mat(r, "dx", dx);
    op_keep(r, "dA", a.dA, c->R * c->K, VALUES_F32);
    op_keep(r, "dB", a.dB, c->N * c->R, VALUES_F32);
    op_keep(r, "dW", dW, c->N * c->K, VALUES_F32);
    if (c->dora) op_keep(r, "dmagnitude", a.dmagnitude, c->N, VALUES_F32);
}

static void check_linears(void) {
    static const linear_case of[] = {
        {.name = "plain", .x = 1, .w = 0.3f, .adapter = 0.3f, .dy = 1, .M = 40, .K = 48, .N = 24, .R = 8},
        {.name = "dy of 1e-8", .x = 1, .w = 0.3f, .adapter = 0.3f, .dy = 1e-8f, .M = 40, .K = 48, .N = 24, .R = 8},
        {.name = "dy of 1e-12",
         .x = 1,
         .w = 0.3f,
         .adapter = 0.3f,
         .dy = 1e-12f,
         .M = 70,
         .K = 256,
         .N = 24,
         .R = 8}, /* the largest of more than one block */
        {.name = "dy of 1e4", .x = 1, .w = 0.3f, .adapter = 0.3f, .dy = 1e4f, .M = 40, .K = 48, .N = 24, .R = 8},
        {.name = "dy of 1e9", .x = 1, .w = 0.3f, .adapter = 0.3f, .dy = 1e9f, .M = 21, .K = 37, .N = 11, .R = 3},
        {.name = "x of 1e6", .x = 1e6f, .w = 0.3f, .adapter = 0.3f, .dy = 1e-8f, .M = 40, .K = 48, .N = 24, .R = 8},
        {.name = "weights of 1e-9", .x = 1, .w = 1e-9f, .adapter = 1e-5f, .dy = 1e-8f, .M = 40, .K = 48, .N = 24, .R = 8},
        {.name = "weights of 1e6, bfloat16",
         .x = 1e-6f,
         .w = 1e6f,
         .adapter = 1e3f,
         .dy = 1e-8f,
         .M = 40,
         .K = 48,
         .N = 24,
         .R = 8,
         .bf16 = true},
        {.name = "dropout", .x = 1e6f, .w = 0.3f, .adapter = 0.3f, .dy = 1e-8f, .M = 33, .K = 45, .N = 13, .R = 3, .dropout = 0.3f},
        {.name = "DoRA", .x = 1, .w = 0.3f, .adapter = 0.3f, .dy = 1e-10f, .M = 40, .K = 48, .N = 24, .R = 8, .dora = true},
        {.name = "DoRA with dropout",
         .x = 1,
         .w = 0.3f,
         .adapter = 0.3f,
         .dy = 1e-10f,
         .M = 40,
         .K = 48,
         .N = 24,
         .R = 8,
         .dropout = 0.3f,
         .dora = true},
    };
    for (int i = 0; i < (int)(sizeof of / sizeof *of); i++) {
        run_linear(&cpu, &of[i]), run_linear(&gpu, &of[i]);
        compare(of[i].name);
    }
}

static void run_merge(op_run *r) {
    enum { N = 24, K = 48, R = 8 };
    lora_adapter a = {.rank = R, .scale = 0.7f, .A = op_floats(r, R * K, 0.3f), .B = op_floats(r, N * R, 1e-6f)};
    a.dA = op_floats(r, R * K, 0), a.dB = op_floats(r, N * R, 0);
    OK(lora_linear_merge_backward(r->ctx, &a, mat(r, N, K, 1e-10f), ERR));
    op_keep(r, "dA", a.dA, R * K, VALUES_F32);
    op_keep(r, "dB", a.dB, N * R, VALUES_F32);
}

/* y of x and the unit matrix is the operand that x became, divided by its power of two. Numbers of x go from size down to 2^-40 of it. */
static void check_bound(float size) {
    enum { M = 20, K = 16, N = M * K };
    float x[N], unit[K * K] = {0}, y[N], top = 0;
    check_normal(x, N, 5, size);
    for (int i = 0; i < N; i++) x[i] = ldexpf(x[i], -(i % 41)), top = fmaxf(top, fabsf(x[i]));
    for (int k = 0; k < K; k++) unit[k * K + k] = 1;
    lora_weight w = lora_weight_f32(op_send(&gpu, unit, sizeof unit), K, K, K);
    lora_linear_layer layer = {.w = &w, .y = mat(&gpu, M, K, 1)};
    OK(lora_linear_forward(gpu.ctx, lora_mat_f32(op_send(&gpu, x, sizeof x), M, K, K), 1, &layer, ERR));
    OK(lora_download(gpu.ctx, y, layer.y.data, sizeof y, ERR));
    OK(lora_sync(gpu.ctx, ERR));
    bool rounded = false;
    for (int i = 0; i < N; i++) {
        double err = fabs((double)y[i] - (double)x[i]);
        CHECK(err <= 0x1p-11 * fabs((double)x[i]) + 0x1p-39 * (double)top, "%g of at most %g: off by %g", (double)x[i], (double)top, err);
        rounded = rounded || err > 0x1p-13 * fabs((double)x[i]);
    }
    CHECK(rounded, "operands of %g are not of 11 bits", (double)size);
    forget(&gpu);
}

static void check_bounds(void) {
    static const float sizes[] = {1e-24f, 1e-18f, 1e-12f, 1e-6f, 1, 4e3f, 1e5f, 1e20f, 1e37f};
    for (int i = 0; i < (int)(sizeof sizes / sizeof *sizes); i++) check_bound(sizes[i]);
}

/* --- zeros, and what is not finite --- */

enum { ROWS = 20, IN = 48, OUT = 24, BAD = 17 /* of another warp than the first */ };

/* y and dx of x and dy that are as they were made but for one element of row BAD; scale 0: all zeros. */
static void run_bad(op_run *r, float scale, float in_x, float in_dy) {
    float x[ROWS * IN], dy[ROWS * OUT];
    check_normal(x, ROWS * IN, ++r->seed, scale);
    check_normal(dy, ROWS * OUT, ++r->seed, scale * 1e-9f);
    x[BAD * IN + 5] += in_x, dy[BAD * OUT + 7] += in_dy;
    linear_case c = {.w = 0.3f, .N = OUT, .K = IN};
    lora_weight w = make_weight(r, &c);
    lora_mat y = mat(r, ROWS, OUT, 1), dx = mat(r, ROWS, IN, 1), sent = lora_mat_f32(op_send(r, x, sizeof x), ROWS, IN, IN);
    lora_adapter a = {.rank = 8, .scale = 0.7f, .A = op_floats(r, 8 * IN, 0.3f), .B = op_floats(r, OUT * 8, 0.3f)};
    lora_linear_layer layer = {.w = &w, .adapter = &a, .y = y};
    lora_linear_gradient g = {.dy = lora_mat_f32(op_send(r, dy, sizeof dy), ROWS, OUT, OUT), .w = &w, .adapter = &a};
    OK(lora_linear_forward(r->ctx, sent, 1, &layer, ERR));
    OK(lora_linear_backward(r->ctx, sent, 1, &g, dx, false, ERR));
    op_keep_mat(r, "y", y);
    op_keep_mat(r, "dx", dx);
}

/* Row BAD, taken out of both, has no finite number where it is to have none. */
static void take_row(int result, int64_t cols, bool bad) {
    float *want = (float *)cpu.results[result].data + BAD * cols, *got = (float *)gpu.results[result].data + BAD * cols;
    for (int64_t i = 0; i < cols; i++) {
        CHECK(isfinite(got[i]) == !bad && isfinite(want[i]) == !bad, "%s[%d]: %g", gpu.results[result].what, (int)i, (double)got[i]);
        if (bad) want[i] = got[i] = 0;
    }
}

static void check_not_finite(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    run_bad(&cpu, 1, 1e6f, 1e3f), run_bad(&gpu, 1, 1e6f, 1e3f);
    compare("one number far larger than the others");
    for (int i = 0; i < 3; i++) {
        run_bad(&cpu, 1, bad[i], 0), run_bad(&gpu, 1, bad[i], 0);
        take_row(0, OUT, true), take_row(1, IN, false);
        compare("x that is not finite");
        run_bad(&cpu, 1, 0, bad[i]), run_bad(&gpu, 1, 0, bad[i]);
        take_row(0, OUT, false), take_row(1, IN, true);
        compare("dy that is not finite");
    }
    run_bad(&gpu, 0, 0, 0);
    for (int i = 0; i < 2; i++) CHECK(length_of(gpu.results[i].data, gpu.results[i].n) == 0, "%s of zeros", gpu.results[i].what);
    forget(&gpu);
}

/* --- head --- */

typedef struct head_case {
    const char *name;
    float x, w, grad_scale;
    bool dW;
} head_case;

static void run_head(op_run *r, const head_case *c, float bad) {
    enum { M = 70, V = 61, H = 20 };
    float weights[M], x[M * H];
    int32_t targets[M];
    check_normal(x, M * H, ++r->seed, c->x);
    x[BAD * H + 1] += bad;
    for (int m = 0; m < M; m++) weights[m] = m % 4 ? 0.5f + (float)(m % 5) : 0, targets[m] = (m * 13 + 7) % V;
    lora_weight w = lora_weight_f32(op_floats(r, V * H, c->w), V, H, H);
    lora_mat dx = mat(r, M, H, 1);
    float *dW = op_floats(r, V * H, 0);
    lora_loss loss = {.targets = op_send(r, targets, sizeof targets),
                      .loss_weight = op_send(r, weights, sizeof weights),
                      .grad_scale = c->grad_scale,
                      .loss_sum = (double *)(void *)op_floats(r, 2, 1),
                      .token_loss = op_floats(r, M, 1),
                      .map = {.scale = 1}};
    OK(lora_linear_cross_entropy(r->ctx, lora_mat_f32(op_send(r, x, sizeof x), M, H, H), &w, &loss, dx, c->dW ? dW : NULL, ERR));
    op_keep(r, "token_loss", loss.token_loss, M, VALUES_F32);
    op_keep_mat(r, "dx", dx);
    if (c->dW) op_keep(r, "dW", dW, V * H, VALUES_F32);
}

static void check_heads(void) {
    static const head_case of[] = {{"head", 0.5f, 0.5f, 1, false},
                                   {"head, gradients of 1e-12", 0.5f, 0.5f, 1e-12f, false},
                                   {"head, gradients of 1e4", 0.5f, 0.5f, 1e4f, true},
                                   {"head, x of 1e6", 1e6f, 3e-7f, 1e-8f, false},
                                   {"head, x of 1e-9", 1e-9f, 1e8f, 1e-8f, true}};
    for (int i = 0; i < (int)(sizeof of / sizeof *of); i++) {
        run_head(&cpu, &of[i], 0), run_head(&gpu, &of[i], 0);
        compare(of[i].name);
    }
    for (int i = 0; i < 2; i++) {
        run_head(&cpu, of, i ? NAN : INFINITY), run_head(&gpu, of, i ? NAN : INFINITY);
        take_row(0, 1, true), take_row(1, 20, true);
        compare("head of a row that is not finite");
    }
}

/* --- */

static void check_on(const char *device) {
    lora_ctx *ctx = device_ctx_on(device, backend_paths(), LORA_ISA_AUTO, 2), *host = check_ctx(LORA_ISA_AUTO, 1);
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_FAST, ERR));
    OK(lora_ctx_set_precision(host, LORA_PRECISION_EXACT, ERR));
    bool takes = ctx->view.backend && ctx->view.backend->linear_operand, has_bf16 = lora_linear_operand(ctx, 100) == LORA_BF16;
    CHECK(strcmp(device, "shim") != 0 || (takes && !has_bf16), "the shim of compute capability 7.5 has products of bfloat16");
    if (takes && !has_bf16) {
        cpu = (op_run){.ctx = host, .seed = 700}, gpu = (op_run){.ctx = ctx, .seed = 700};
        check_linears();
        check_bounds();
        check_not_finite();
        check_heads();
        run_merge(&cpu), run_merge(&gpu);
        compare("the gradient of a merged matrix");
    }
    device_ctx_free(ctx);
    lora_ctx_destroy(host);
}

void check_device_half(void) {
    const char *said = getenv("SHIM_COMPUTE");
    char *before = said ? strdup(said) : NULL;
    const checked_device *devices;
    set_variable("SHIM_COMPUTE", "7.5");
    int n = checked_devices(&devices);
    for (int d = 1; d < n; d++) check_on(devices[d].name);
    set_variable("SHIM_COMPUTE", before);
    free(before);
}
