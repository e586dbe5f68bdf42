/* Head and loss with precision INT8: within its bound of the float64 results, the same bits for any number of threads and whatever rows
 * share the call; a head that trains is as in FAST. */
#include <math.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "tests/c/check_ops.h"
#include "tests/c/head_oracle.h"

typedef struct int8_head {
    int64_t M, V, H;
    float scale; /* of the logits */
    float *x, *w, *weight;
    uint16_t *half;
    int32_t *targets;
} int8_head;

static int8_head make_head(int64_t M, int64_t V, int64_t H, float scale) {
    int8_head h = {.M = M, .V = V, .H = H, .scale = scale};
    h.x = random_floats(M * H, -1, 1), h.w = random_floats(V * H, -1, 1), h.weight = random_floats(M, 0.5f, 1.5f);
    h.half = malloc((size_t)(V * H) * 2), h.targets = malloc((size_t)M * 4);
    for (int64_t i = 0; i < V * H; i++) {
        h.half[i] = lora_f32_to_bf16(h.w[i]);
        h.w[i] = lora_bf16_to_f32(h.half[i]);
    }
    for (int64_t m = 0; m < M; m++) h.targets[m] = (int32_t)((m * 13 + 5) % V);
    return h;
}

static void free_head(int8_head *h) { free(h->x), free(h->w), free(h->weight), free(h->half), free(h->targets); }

typedef struct head_run {
    double loss;
    float *token, *dx; /* (M), (M, H) */
} head_run;

static head_run run_rows(lora_ctx *ctx, const int8_head *h, lora_weight_kind kind, int64_t from, int64_t n, float *dW) {
    head_run r = {.token = random_floats(n, 7, 8), .dx = random_floats(n * h->H, 7, 8)};
    lora_weight w = kind == LORA_WEIGHT_BF16 ? lora_weight_bf16(h->half, h->V, h->H, h->H) : lora_weight_f32(h->w, h->V, h->H, h->H);
    lora_loss loss = {.targets = h->targets + from,
                      .loss_weight = h->weight + from,
                      .grad_scale = 0.5f,
                      .loss_sum = &r.loss,
                      .token_loss = r.token,
                      .map = {.scale = h->scale}};
    OK(lora_linear_cross_entropy(ctx, lora_mat_f32(h->x + from * h->H, n, h->H, h->H), &w, &loss, lora_mat_f32(r.dx, n, h->H, h->H), dW,
                                 ERR));
    return r;
}

static void free_run(head_run *r) { free(r->token), free(r->dx); }

/* What rounding a value may be wrong by (context.h), of the largest magnitude of its block. */
static double rounding(double top) { return top / 127 * (0.5 + 127 * 0x1p-22); }

static double largest(const float *values, int64_t stride, int64_t n) {
    double top = 0;
    for (int64_t i = 0; i < n; i++) top = larger(top, fabs((double)values[i * stride]));
    return top;
}

/* Of the product of a row with a column of W: (logit before the map; what it may be wrong by). */
static double logit_of(const int8_head *h, int64_t m, int64_t v, double *wrong) {
    const float *x = h->x + m * h->H, *w = h->w + v * h->H;
    double sum = 0, magnitude = 0;
    *wrong = 0;
    for (int64_t k = 0; k < h->H; k += 64) {
        int64_t n = lora_min_i64(64, h->H - k);
        double e_x = rounding(largest(x + k, 1, n)), e_w = rounding(largest(w + k, 1, n));
        for (int64_t i = k; i < k + n; i++) {
            double a = (double)x[i], b = (double)w[i];
            sum += a * b, magnitude += fabs(a * b);
            *wrong += fabs(a) * e_w + fabs(b) * e_x + e_x * e_w;
        }
    }
    *wrong += ((double)h->H + 50) * U * magnitude;
    return sum;
}

/* Probabilities of row m with that of the target as 0; the largest error of a logit. */
static double probabilities(const int8_head *h, int64_t m, double *p, double *of_target) {
    double worst = 0, top = -INFINITY, sum = 0;
    for (int64_t v = 0; v < h->V; v++) {
        double wrong;
        p[v] = (double)h->scale * logit_of(h, m, v, &wrong);
        worst = larger(worst, (double)h->scale * wrong), top = larger(top, p[v]);
    }
    for (int64_t v = 0; v < h->V; v++) sum += p[v] = exp(p[v] - top);
    for (int64_t v = 0; v < h->V; v++) p[v] /= sum;
    *of_target = p[h->targets[m]];
    p[h->targets[m]] = 0;
    return worst;
}

/* With logits wrong by E a probability is within exp(2 E) of what it was; then it is rounded in blocks of 64 rows of W, which are
 * rounded column by column. */
static double dx_error(const int8_head *h, int64_t m, int64_t i, const double *p, double of_target, double E) {
    double worth = exp(2 * E), moved = (1 - of_target) * fabs((double)h->w[h->targets[m] * h->H + i]), rounded = 0;
    for (int64_t v = 0; v < h->V; v += 64) {
        int64_t n = lora_min_i64(64, h->V - v);
        double e_w = rounding(largest(h->w + v * h->H + i, h->H, n)), top = 0;
        for (int64_t j = v; j < v + n; j++) top = larger(top, p[j]);
        for (int64_t j = v; j < v + n; j++) {
            double w = fabs((double)h->w[j * h->H + i]);
            moved += p[j] * w;
            rounded += p[j] * e_w + w * rounding(top) + rounding(top) * e_w;
        }
    }
    return 0.5 * (double)h->scale * (double)h->weight[m] * ((worth - 1) * moved + worth * rounded + 1e-5 * moved);
}

static void check_rows(const int8_head *h, const head_run *got) {
    double *p = malloc((size_t)h->V * sizeof *p), of_target;
    head_problem problem = {.M = h->M,
                            .V = h->V,
                            .H = h->H,
                            .ldx = h->H,
                            .x = h->x,
                            .w = h->w,
                            .targets = h->targets,
                            .weight = h->weight,
                            .grad_scale = 0.5f,
                            .map = {.scale = h->scale}};
    head_results want = head_oracle(&problem);
    for (int64_t m = 0; m < h->M; m++) {
        double E = probabilities(h, m, p, &of_target);
        close_to("token_loss in int8", got->token[m], want.token_loss[m], 2 * E + 4 * U * want.token_loss[m]);
        for (int64_t i = 0; i < h->H; i++)
            close_to("dx in int8", got->dx[m * h->H + i], want.dx[m * h->H + i], dx_error(h, m, i, p, of_target, E));
    }
    free(p);
    head_results_free(&want);
}

static bool same_bits(const float *a, const float *b, int64_t n) { return memcmp(a, b, (size_t)n * sizeof *a) == 0; }

static void check_case(lora_isa isa, int64_t M, int64_t V, int64_t H, float scale, lora_weight_kind kind) {
    begin_run();
    int8_head h = make_head(M, V, H, scale);
    lora_ctx *ctx = check_ctx(isa, 1), *more = check_ctx(isa, 3);
    lora_error err;
    if (lora_ctx_set_precision(ctx, LORA_PRECISION_INT8, &err) == LORA_OK) {
        OK(lora_ctx_set_precision(more, LORA_PRECISION_INT8, ERR));
        int64_t from = M / 3, n = M - M / 2;
        head_run one = run_rows(ctx, &h, kind, 0, M, NULL), three = run_rows(more, &h, kind, 0, M, NULL);
        head_run part = run_rows(more, &h, kind, from, n, NULL);
        check_rows(&h, &one);
        CHECK(one.loss == three.loss && same_bits(one.token, three.token, M) && same_bits(one.dx, three.dx, M * H),
              "%s: 3 threads give other bits than 1", lora_isa_name(isa));
        CHECK(same_bits(part.token, one.token + from, n) && same_bits(part.dx, one.dx + from * H, n * H),
              "%s: rows alone have other bits than among others", lora_isa_name(isa));
        free_run(&one), free_run(&three), free_run(&part);
    }
    free_head(&h);
    lora_ctx_destroy(ctx), lora_ctx_destroy(more);
}

static void check_trained(lora_isa isa) {
    enum { M = 40, V = 130, H = 70 };
    begin_run();
    int8_head h = make_head(M, V, H, 1);
    lora_ctx *ctx = check_ctx(isa, 2);
    float *dW[2] = {calloc(V * H, sizeof(float)), calloc(V * H, sizeof(float))};
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_FAST, ERR));
    head_run fast = run_rows(ctx, &h, LORA_WEIGHT_F32, 0, M, dW[0]);
    OK(lora_ctx_set_precision(ctx, LORA_PRECISION_INT8, ERR));
    head_run trained = run_rows(ctx, &h, LORA_WEIGHT_F32, 0, M, dW[1]), frozen = run_rows(ctx, &h, LORA_WEIGHT_F32, 0, M, NULL);
    CHECK(trained.loss == fast.loss && same_bits(trained.dx, fast.dx, M * H) && same_bits(dW[0], dW[1], V * H),
          "%s: a trained head in int8 is not as in fast", lora_isa_name(isa));
    CHECK(frozen.loss != fast.loss, "%s: a frozen head in int8 is as in fast", lora_isa_name(isa));
    free_run(&fast), free_run(&trained), free_run(&frozen);
    free_head(&h);
    free(dW[0]), free(dW[1]);
    lora_ctx_destroy(ctx);
}

void check_head_int8(void) {
    FOR_EACH_ISA(isa) {
        check_case(isa, 1, 5, 3, 1, LORA_WEIGHT_F32);
        check_case(isa, 37, 101, 33, 1, LORA_WEIGHT_F32);
        check_case(isa, 37, 101, 130, 0.25f, LORA_WEIGHT_BF16);
        check_case(isa, 19, 4357, 70, 0.5f, LORA_WEIGHT_BF16); /* ranges of several blocks */
        check_case(isa, 300, 67, 16, 1, LORA_WEIGHT_BF16);     /* several chunks */
        check_trained(isa);
    }
}
