/* Head and loss against double loops, with every arithmetic of the products, and the same bits for any number of threads. */
#include <math.h>

#include "lora_c/base/half.h"
#include "tests/c/check_ops.h"
#include "tests/c/head_oracle.h"

typedef struct xent_case {
    int64_t M, V, H;
    lora_logit_map map;
    int pattern; /* 0: all rows, 1: every third, 2: a run in the middle, 3: none */
    lora_weight_kind kind;
    double tolerance; /* of fast operands, relative to the norm of a gradient; 0: exact */
} xent_case;

/* Sums of squares of what is wrong and of what was wanted. */
typedef struct distance {
    double wrong, wanted;
} distance;

static void compare(const xent_case *c, const char *what, double got, double want, double bound, distance *d) {
    d->wrong += (got - want) * (got - want);
    d->wanted += want * want;
    if (c->tolerance == 0 || bound == 0) close_to(what, got, want, bound);
}

static void check_distance(const xent_case *c, const char *what, distance d) {
    CHECK(sqrt(d.wrong) <= (c->tolerance + 1e-4) * sqrt(d.wanted), "%s: relative error %g, expected <= %g", what, sqrt(d.wrong / d.wanted),
          c->tolerance);
}

static void check_xent(lora_ctx *ctx, xent_case c) {
    int64_t M = c.M, V = c.V, H = c.H, ldx = H + 1;
    float *x = random_floats(M * ldx, -1, 1), *w = random_floats(V * H, -1, 1), *dx = random_floats(M * H, 7, 8);
    float *dW = random_floats(V * H, -1, 1), *dW0 = copy_floats(dW, V * H), *token = random_floats(M, 7, 8);
    float *weight = random_floats(M, 0.5f, 1.5f), scale = 0.25f;
    uint16_t *half = malloc((size_t)(V * H) * 2);
    for (int64_t i = 0; i < V * H; i++) half[i] = lora_f32_to_bf16(w[i]);
    int32_t *targets = malloc((size_t)M * 4 + 1);
    for (int64_t m = 0; m < M; m++) {
        targets[m] = (int32_t)((m * 13 + 5) % V);
        bool keep = c.pattern == 0 || (c.pattern == 1 && m % 3 == 0) || (c.pattern == 2 && m > M / 4 && m < M / 2);
        if (!keep) weight[m] = 0, targets[m] = -100; /* never looked at */
    }
    lora_weight base = c.kind == LORA_WEIGHT_BF16 ? lora_weight_bf16(half, V, H, H) : lora_weight_f32(w, V, H, H);
    if (c.kind == LORA_WEIGHT_BF16)
        for (int64_t i = 0; i < V * H; i++) w[i] = lora_bf16_to_f32(half[i]);
    double loss, evaluated;
    lora_loss training = {
        .targets = targets, .loss_weight = weight, .grad_scale = scale, .loss_sum = &loss, .token_loss = token, .map = c.map};
    lora_loss evaluation = training;
    evaluation.loss_sum = &evaluated;
    evaluation.token_loss = NULL;
    lora_mat X = lora_mat_f32(x, M, H, ldx), dX = lora_mat_f32(dx, M, H, H);
    OK(lora_linear_cross_entropy(ctx, X, &base, &training, dX, dW, ERR));
    OK(lora_linear_cross_entropy(ctx, X, &base, &evaluation, lora_mat_none(), NULL, ERR));
    CHECK(loss == evaluated, "evaluation gives another loss");
    double error = ((double)H + 50) * U * (double)H; /* of a logit, and so relative of a probability */
    distance of_dx = {0, 0}, of_dW = {0, 0}, of_loss = {0, 0};
    head_problem problem = {
        .M = M, .V = V, .H = H, .ldx = ldx, .x = x, .w = w, .targets = targets, .weight = weight, .grad_scale = scale, .map = c.map};
    head_results want = head_oracle(&problem);
    for (int64_t m = 0; m < M; m++) {
        double of_token = weight[m] == 0 ? 0 : 2 * error + 4 * U * want.token_loss[m]; /* without weight: zeros */
        double of_row = 4 * scale * weight[m] * (error + (double)V * U);
        compare(&c, "token_loss", token[m], want.token_loss[m], of_token, &of_loss);
        for (int64_t i = 0; i < H; i++) compare(&c, "cross entropy dx", dx[m * H + i], want.dx[m * H + i], of_row, &of_dx);
    }
    if (c.tolerance == 0) close_to("loss_sum", loss, want.loss_sum, (double)M * 2 * error * 1.5);
    for (int64_t i = 0; i < V * H; i++)
        compare(&c, "cross entropy dW", dW[i] - dW0[i], want.dW[i], (double)M * 2 * scale * (error + (double)M * U) + 2 * U, &of_dW);
    check_distance(&c, "token_loss", of_loss), check_distance(&c, "cross entropy dx", of_dx), check_distance(&c, "cross entropy dW", of_dW);
    mix(&loss, sizeof loss), mix(token, (size_t)M * 4), mix(dx, (size_t)(M * H) * 4), mix(dW, (size_t)(V * H) * 4);
    if (c.pattern == 0) {
        targets[M - 1] = (int32_t)V;
        REFUSED(LORA_EINVAL, "targets[", lora_linear_cross_entropy(ctx, X, &base, &evaluation, dX, NULL, ERR));
        targets[M - 1] = 0;
        REFUSED(LORA_EINVAL, "overlapping", lora_linear_cross_entropy(ctx, X, &base, &evaluation, X, NULL, ERR));
    }
    free(x), free(w), free(dx), free(dW), free(dW0), free(token), free(weight), free(half), free(targets);
    head_results_free(&want);
}

/* The loss of a token that is all but certain, and its gradient, keep their digits: 1 - p is not a difference. */
static void check_certain(lora_ctx *ctx) {
    enum { V = 300 };
    float w[V] = {0}, x = 1, dx = 0, weight = 1;
    w[7] = 30;
    lora_weight base = lora_weight_f32(w, V, 1, 1);
    int32_t target = 7;
    double sum, others = (V - 1) * exp(-30.0);
    lora_loss loss = {.targets = &target, .loss_weight = &weight, .grad_scale = 1, .loss_sum = &sum, .map = {.scale = 1}};
    OK(lora_linear_cross_entropy(ctx, lora_mat_f32(&x, 1, 1, 1), &base, &loss, lora_mat_f32(&dx, 1, 1, 1), NULL, ERR));
    close_to("certain loss", sum, others, 1e-4 * others);
    close_to("certain dx", dx, -30 * others, 1e-2 * 30 * others);
}

static void check_not_finite(lora_ctx *ctx, float bad) {
    enum { V = 40, H = 4, M = 2 };
    float *w = random_floats(V * H, -1, 1), x[M * H], weight[M] = {1, 1}, token[M];
    for (int i = 0; i < M * H; i++) x[i] = i == 1 ? bad : 1;
    lora_weight base = lora_weight_f32(w, V, H, H);
    int32_t targets[M] = {3, 39};
    double sum;
    lora_loss loss = {
        .targets = targets, .loss_weight = weight, .grad_scale = 1, .loss_sum = &sum, .token_loss = token, .map = {.scale = 1}};
    OK(lora_linear_cross_entropy(ctx, lora_mat_f32(x, M, H, H), &base, &loss, lora_mat_none(), NULL, ERR));
    CHECK(isnan(sum) && isnan(token[0]) && isfinite(token[1]), "%g in x: losses %g and %g", (double)bad, (double)token[0],
          (double)token[1]);
    free(w);
}

static uint64_t run_all(lora_ctx *ctx, lora_gemm_arithmetic path) {
    static const double tolerances[LORA_GEMM_PATHS] = {[LORA_GEMM_BF16] = 1e-2, [LORA_GEMM_INT16] = 1e-3};
    double tolerance = tolerances[path];
    begin_run();
    for (int pattern = 0; pattern < 4; pattern++) {
        check_xent(ctx, (xent_case){1, 5, 3, {1, 0}, pattern, LORA_WEIGHT_F32, tolerance});
        check_xent(ctx, (xent_case){37, 101, 33, {1, 0}, pattern, LORA_WEIGHT_F32, tolerance});
        check_xent(ctx, (xent_case){300, 67, 16, {1, 0}, pattern, LORA_WEIGHT_BF16, tolerance}); /* several chunks */
        check_xent(ctx, (xent_case){37, 101, 33, {0.4f, 0}, pattern, LORA_WEIGHT_F32, tolerance});
        check_xent(ctx, (xent_case){300, 67, 16, {0.5f, 1.5f}, pattern, LORA_WEIGHT_F32, tolerance});
    }
    check_xent(ctx, (xent_case){4, 1, 9, {1, 0}, 0, LORA_WEIGHT_F32, tolerance});
    check_xent(ctx, (xent_case){19, 5003, 9, {1, 0}, 0, LORA_WEIGHT_F32, tolerance}); /* ranges of several blocks */
    check_xent(ctx, (xent_case){19, 4357, 70, {2, 3}, 1, LORA_WEIGHT_BF16, tolerance});
    check_certain(ctx);
    check_not_finite(ctx, NAN), check_not_finite(ctx, INFINITY);
    return hash_of_run();
}

void check_head(void) { check_every_path(run_all); }
