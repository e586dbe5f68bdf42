/* Head and loss on every device where the cases of check_backend.c are too small: several chunks of rows, several slices of a decoded
 * weight, rows with and without weight, and a token that is all but certain. */
#include "lora_c/base/half.h"
#include "tests/c/op_run.h"

/* pattern: every n-th row has weight; 0: none has. */
typedef struct head_case {
    int64_t M, V, H;
    int pattern;
    lora_weight_kind kind;
    lora_logit_map map;
    bool dx, dW;
} head_case;

static lora_weight make_weight(op_run *r, const head_case *c) {
    int64_t n = c->V * c->H;
    if (c->kind == LORA_WEIGHT_F32) return lora_weight_f32(op_floats(r, n, 0.5f), c->V, c->H, c->H);
    float *w = malloc((size_t)n * sizeof *w);
    uint16_t *narrow = malloc((size_t)n * sizeof *narrow);
    check_normal(w, n, ++r->seed, 0.5f);
    for (int64_t i = 0; i < n; i++) narrow[i] = lora_f32_to_bf16(w[i]);
    lora_weight placed = lora_weight_bf16(op_send(r, narrow, (size_t)n * sizeof *narrow), c->V, c->H, c->H);
    free(w), free(narrow);
    return placed;
}

static void run_head(op_run *r, head_case c) {
    float *weights = malloc((size_t)c.M * sizeof *weights);
    int32_t *targets = malloc((size_t)c.M * sizeof *targets);
    for (int64_t m = 0; m < c.M; m++) {
        bool has = c.pattern && m % c.pattern == 0;
        weights[m] = has ? 0.5f + (float)(m % 5) : 0;
        targets[m] = has ? (int32_t)((m * 1013 + 7) % c.V) : -100;
    }
    double *sum = (double *)(void *)op_floats(r, 2, 1);
    float *losses = op_floats(r, c.M, 1), *dW = c.dW ? op_floats(r, c.V * c.H, 0.1f) : NULL;
    lora_mat x = op_mat(r, c.M, c.H, 0.5f), dx = op_mat(r, c.M, c.H, 1);
    lora_weight w = make_weight(r, &c);
    lora_loss loss = {.targets = op_send(r, targets, (size_t)c.M * sizeof *targets),
                      .loss_weight = op_send(r, weights, (size_t)c.M * sizeof *weights),
                      .grad_scale = 1e-3f,
                      .loss_sum = sum,
                      .token_loss = losses,
                      .map = c.map};
    OK(lora_linear_cross_entropy(r->ctx, x, &w, &loss, c.dx ? dx : lora_mat_none(), dW, ERR));
    op_keep(r, "loss_sum", sum, 1, VALUES_F64);
    op_keep(r, "token_loss", losses, c.M, VALUES_F32);
    for (int64_t m = 0; c.dx && m < c.M && m < 8; m++) op_keep_mat(r, "a row of dx", lora_mat_rows(dx, m, 1));
    if (c.dx) op_keep_mat(r, "the last row of dx", lora_mat_rows(dx, c.M - 1, 1));
    if (dW) op_keep(r, "dW", dW, c.V * c.H, VALUES_F32);
    free(weights), free(targets);
}

static void chunks(op_run *r) { run_head(r, (head_case){1300, 61, 20, 1, LORA_WEIGHT_F32, {1, 0}, true, true}); }
static void slices(op_run *r) { run_head(r, (head_case){5, 20011, 12, 2, LORA_WEIGHT_BF16, {0.5f, 0}, true, false}); }
static void no_rows(op_run *r) { run_head(r, (head_case){70, 61, 20, 0, LORA_WEIGHT_F32, {1, 0}, true, true}); }
static void capped(op_run *r) { run_head(r, (head_case){1500, 33, 8, 3, LORA_WEIGHT_BF16, {2, 1.5f}, true, true}); }
static void one_word(op_run *r) { run_head(r, (head_case){4, 1, 9, 1, LORA_WEIGHT_F32, {1, 0}, true, false}); }
static void only_dW(op_run *r) { run_head(r, (head_case){40, 2500, 7, 2, LORA_WEIGHT_F32, {1, 30}, false, true}); }

/* 1 - p of the target is about 3e-11. */
static void certain(op_run *r) {
    enum { V = 300 };
    float w[V] = {[7] = 30}, one = 1;
    int32_t target = 7;
    lora_weight weight = lora_weight_f32(op_send(r, w, sizeof w), V, 1, 1);
    const float *x = op_send(r, &one, sizeof one);
    float *dx = op_floats(r, 1, 1);
    double *sum = (double *)(void *)op_floats(r, 2, 1);
    lora_loss loss = {.targets = op_send(r, &target, sizeof target),
                      .loss_weight = op_send(r, &one, sizeof one),
                      .grad_scale = 1,
                      .loss_sum = sum,
                      .map = {.scale = 1}};
    OK(lora_linear_cross_entropy(r->ctx, lora_mat_f32(x, 1, 1, 1), &weight, &loss, lora_mat_f32(dx, 1, 1, 1), NULL, ERR));
    op_keep(r, "loss of a certain token", sum, 1, VALUES_F64);
    op_keep(r, "dx of a certain token", dx, 1, VALUES_F32);
}

/* A row that is not finite has a loss that says so, and leaves the others alone. */
static void check_not_finite(lora_ctx *ctx, float bad) {
    enum { V = 40, H = 4, M = 2 };
    op_run r = {.ctx = ctx, .seed = 3};
    float x[M * H], ones[M] = {1, 1}, losses[M];
    double sum;
    int32_t targets[M] = {3, 39};
    for (int i = 0; i < M * H; i++) x[i] = i == 1 ? bad : 1;
    lora_weight w = lora_weight_f32(op_floats(&r, V * H, 1), V, H, H);
    lora_loss loss = {.targets = op_send(&r, targets, sizeof targets),
                      .loss_weight = op_send(&r, ones, sizeof ones),
                      .grad_scale = 1,
                      .loss_sum = (double *)(void *)op_floats(&r, 2, 1),
                      .token_loss = op_floats(&r, M, 1),
                      .map = {.scale = 1}};
    OK(lora_linear_cross_entropy(ctx, lora_mat_f32(op_send(&r, x, sizeof x), M, H, H), &w, &loss, lora_mat_none(), NULL, ERR));
    OK(lora_download(ctx, losses, loss.token_loss, sizeof losses, ERR));
    OK(lora_download(ctx, &sum, loss.loss_sum, sizeof sum, ERR));
    OK(lora_sync(ctx, ERR));
    CHECK(isnan(sum) && isnan(losses[0]) && isfinite(losses[1]), "%g in x: losses %g and %g", (double)bad, (double)losses[0],
          (double)losses[1]);
    for (int i = 0; i < r.n_arrays; i++) lora_ctx_free(ctx, r.arrays[i]);
}

static void check_on_device(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 1);
    for (int p = LORA_PRECISION_EXACT; p <= LORA_PRECISION_FAST; p++) {
        OK(lora_ctx_set_precision(ctx, (lora_precision)p, ERR));
        check_not_finite(ctx, NAN), check_not_finite(ctx, INFINITY);
    }
    device_ctx_free(ctx);
}

void check_device_head(void) {
    static const op_case cases[] = {{"head in chunks", chunks},    {"head in slices", slices},     {"head without rows", no_rows},
                                    {"head with softcap", capped}, {"head of one word", one_word}, {"gradient of a head", only_dW},
                                    {"certain token", certain}};
    op_check_cases(cases, sizeof cases / sizeof *cases);
    on_every_device(check_on_device);
}
