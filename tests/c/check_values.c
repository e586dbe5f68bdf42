/* The loss of numbers against values: against the formulas in long double, between guard bands, and what is refused. */
#include <math.h>

#include "tests/c/check_ops.h"

typedef struct values_case {
    int64_t M, N, ld;
    lora_values_kind kind;
    float size; /* of the numbers */
} values_case;

/* The loss of one number and its slope. The logarithms of s(y) and 1 - s(y) are -log1p(e^-y) and -log1p(e^y). */
static long double oracle(lora_values_kind kind, long double y, long double v, long double *slope) {
    if (kind == LORA_VALUES_SQUARED_ERROR) {
        *slope = 2 * (y - v);
        return (y - v) * (y - v);
    }
    *slope = (1 - v) / (1 + expl(-y)) - v / (1 + expl(y));
    long double rest = y > 0 ? y + log1pl(expl(-y)) : log1pl(expl(y)); /* -log(1 - s(y)) without overflow */
    return v * (rest - y) + (1 - v) * rest;
}

static void check_case(lora_ctx *ctx, values_case c) {
    int64_t M = c.M, N = c.N;
    float *y = random_floats(M * c.ld, -c.size, c.size), *values = random_floats(M * N, 0, 1), *weight = random_floats(M, 0.5f, 2);
    guarded dy = guarded_new(M * N, 1), rows = guarded_new(M, 3);
    for (int64_t m = 0; m < M; m += 3) {
        weight[m] = 0;
        for (int64_t n = 0; n < N; n++) values[m * N + n] = NAN; /* never looked at */
    }
    if (c.kind == LORA_VALUES_BINARY_ENTROPY)
        for (int64_t i = 0; i < M * N; i++)
            if (i % 2) values[i] = isnan(values[i]) ? values[i] : roundf(values[i]);
    double sum, alone;
    lora_values loss = {
        .kind = c.kind, .values = values, .loss_weight = weight, .grad_scale = 0.75f, .loss_sum = &sum, .row_loss = rows.data};
    lora_values evaluated = loss;
    evaluated.loss_sum = &alone;
    evaluated.row_loss = NULL;
    lora_mat Y = lora_mat_f32(y, M, N, c.ld), dY = lora_mat_f32(dy.data, M, N, N);
    OK(lora_values_loss(ctx, Y, &loss, dY, ERR));
    OK(lora_values_loss(ctx, Y, &evaluated, lora_mat_none(), ERR));
    CHECK(sum == alone, "evaluation gives another loss");
    long double total = 0;
    for (int64_t m = 0; m < M; m++) {
        long double row = 0;
        for (int64_t n = 0; n < N; n++) {
            long double slope = 0;
            if (weight[m] != 0) row += oracle(c.kind, (long double)y[m * c.ld + n], (long double)values[m * N + n], &slope);
            double want = (double)(0.75L * (long double)weight[m] / (long double)N * slope);
            close_to("dy", (double)dy.data[m * N + n], want, 1.001 * U * fabs(want) + 0x1p-149);
        }
        double want = weight[m] == 0 ? 0 : (double)(row / (long double)N);
        close_to("row_loss", (double)rows.data[m], want, 1.001 * U * fabs(want) + 0x1p-149);
        if (weight[m] != 0) total += (long double)weight[m] * row / (long double)N;
    }
    close_to("loss_sum", sum, (double)total, 1e-13 * (fabs((double)total) + 1));
    CHECK(guarded_ok(&dy) && guarded_ok(&rows), "written outside of its arrays");
    float *in_place = copy_floats(y, M * c.ld);
    lora_mat own = lora_mat_f32(in_place, M, N, c.ld);
    OK(lora_values_loss(ctx, own, &evaluated, own, ERR));
    for (int64_t m = 0; m < M; m++)
        CHECK(memcmp(in_place + m * c.ld, dy.data + m * N, (size_t)N * sizeof(float)) == 0, "in place: another gradient");
    free(in_place), free(y), free(values), free(weight), guarded_free(&dy), guarded_free(&rows);
}

static void check_refused(lora_ctx *ctx) {
    float y[6] = {0}, values[6] = {0}, weight[2] = {1, 1}, dy[6];
    double sum;
    lora_mat Y = lora_mat_f32(y, 2, 3, 3), dY = lora_mat_f32(dy, 2, 3, 3);
    lora_values loss = {.kind = LORA_VALUES_SQUARED_ERROR, .values = values, .loss_weight = weight, .grad_scale = 1, .loss_sum = &sum};
    REFUSED(LORA_EINVAL, "loss: expected a pointer", lora_values_loss(ctx, Y, NULL, dY, ERR));
    REFUSED(LORA_ESHAPE, "dy: expected", lora_values_loss(ctx, Y, &loss, lora_mat_f32(dy, 3, 2, 2), ERR));
    REFUSED(LORA_EINVAL, "overlapping", lora_values_loss(ctx, Y, &loss, lora_mat_f32(values, 2, 3, 3), ERR));
    loss.kind = (lora_values_kind)7;
    REFUSED(LORA_EINVAL, "kind: expected", lora_values_loss(ctx, Y, &loss, dY, ERR));
    loss.kind = LORA_VALUES_SQUARED_ERROR;
    loss.loss_sum = NULL;
    REFUSED(LORA_EINVAL, "loss_sum: expected", lora_values_loss(ctx, Y, &loss, dY, ERR));
    loss.loss_sum = &sum;
    loss.values = NULL;
    REFUSED(LORA_EINVAL, "values: expected", lora_values_loss(ctx, Y, &loss, dY, ERR));
}

void check_values(void) {
    lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 2);
    for (int kind = LORA_VALUES_SQUARED_ERROR; kind <= LORA_VALUES_BINARY_ENTROPY; kind++) {
        check_case(ctx, (values_case){1, 1, 1, (lora_values_kind)kind, 3});
        check_case(ctx, (values_case){2, 1, 5, (lora_values_kind)kind, 3});
        check_case(ctx, (values_case){37, 13, 17, (lora_values_kind)kind, 5});
        check_case(ctx, (values_case){5, 3, 3, (lora_values_kind)kind, 1e4f}); /* e^y overflows float32 */
        check_case(ctx, (values_case){5, 3, 3, (lora_values_kind)kind, 1e-20f});
    }
    check_refused(ctx);
    lora_ctx_destroy(ctx);
}
