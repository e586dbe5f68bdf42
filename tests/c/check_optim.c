/* The update against double loops, with the same bits for any number of threads. Optimizers: many arrays at once give the bits of one after
 * another, steps that are refused change nothing, and the state goes out and in again. */
#include "tests/c/check_ops.h"

enum { ARRAYS = 7, MOST = 200003 };

static const int64_t sizes[ARRAYS] = {5, 0, 65536, MOST, 1, 16385, 0};
static const lora_optimizer_options options = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1};

typedef struct arrays {
    lora_param params[ARRAYS];
    float *m[ARRAYS], *v[ARRAYS]; /* of their own, for steps of one array at a time */
} arrays;

static arrays make_arrays(void) {
    arrays a;
    restart_random();
    for (int i = 0; i < ARRAYS; i++) {
        a.params[i] = (lora_param){.data = random_floats(sizes[i], -1, 1),
                                   .grad = random_floats(sizes[i], -1, 1),
                                   .n = sizes[i],
                                   .decay = i % 2 == 0,
                                   .lr_ratio = 1};
        a.m[i] = random_floats(sizes[i], 0, 0);
        a.v[i] = random_floats(sizes[i], 0, 0);
    }
    return a;
}

static void free_arrays(arrays *a) {
    for (int i = 0; i < ARRAYS; i++) free(a->params[i].data), free(a->params[i].grad), free(a->m[i]), free(a->v[i]);
}

static bool same_floats(const float *a, const float *b, int64_t n) { return memcmp(a, b, (size_t)n * sizeof(float)) == 0; }

/* One array after another, as the formulas have it. */
static double step_one_by_one(lora_ctx *ctx, arrays *a, int64_t step, double lr, double max_norm) {
    double total = 0;
    for (int i = 0; i < ARRAYS; i++) {
        double sum;
        OK(lora_sum_of_squares(ctx, 1, &a->params[i], &sum, ERR));
        total += sum;
    }
    double norm = sqrt(total) * 0.5, clip = norm > max_norm ? max_norm / (norm + 1e-6) : 1.0;
    for (int i = 0; i < ARRAYS; i++) {
        lora_adamw_hyper hyper = {.lr = lr,
                                  .beta1 = options.beta1,
                                  .beta2 = options.beta2,
                                  .eps = options.eps,
                                  .weight_decay = a->params[i].decay ? options.weight_decay : 0,
                                  .step = step,
                                  .grad_scale = 0.5 * clip};
        lora_param param = a->params[i];
        param.decay = true;
        OK(lora_adamw_step(ctx, 1, &param, a->m[i], a->v[i], &hyper, ERR));
    }
    return norm;
}

static void check_adamw(lora_ctx *ctx, int64_t n) {
    float *p = random_floats(n, -1, 1), *m = random_floats(n, 0, 0), *v = random_floats(n, 0, 0);
    double *wp = malloc((size_t)n * 8), *wm = calloc((size_t)n, 8), *wv = calloc((size_t)n, 8);
    for (int64_t i = 0; i < n; i++) wp[i] = p[i];
    lora_adamw_hyper h = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1, .grad_scale = 0.5};
    for (h.step = 1; h.step <= 5; h.step++) {
        float *g = random_floats(n, -1, 1);
        lora_param param = {.data = p, .grad = g, .n = n, .decay = true, .lr_ratio = 1};
        double sum, want = 0;
        OK(lora_adamw_step(ctx, 1, &param, m, v, &h, ERR));
        OK(lora_sum_of_squares(ctx, 1, &param, &sum, ERR));
        mix(&sum, sizeof sum);
        for (int64_t i = 0; i < n; i++) { /* Loshchilov & Hutter, algorithm 2, in float64 */
            double grad = g[i] * h.grad_scale;
            want += (double)g[i] * g[i];
            wm[i] = h.beta1 * wm[i] + (1 - h.beta1) * grad;
            wv[i] = h.beta2 * wv[i] + (1 - h.beta2) * grad * grad;
            double mhat = wm[i] / (1 - pow(h.beta1, (double)h.step)), vhat = wv[i] / (1 - pow(h.beta2, (double)h.step));
            wp[i] = wp[i] * (1 - h.lr * h.weight_decay) - h.lr * mhat / (sqrt(vhat) + h.eps);
        }
        close_to("sum_of_squares", sum, want, (double)(n + 1) * 0x1p-52 * want);
        free(g);
    }
    /* Each of 5 steps moves p by at most about lr * 3.2 and rounds it once; the step itself carries about 20 roundings
     * and those of beta in float32 (the ratio of 1 - beta2 to its float32 value is 1 + 2e-8 here). */
    for (int64_t i = 0; i < n; i++) close_to("adamw p", p[i], wp[i], 5 * (3 * U * 1.2 + 40 * U * h.lr * 3.2));
    mix(p, (size_t)n * 4), mix(m, (size_t)n * 4), mix(v, (size_t)n * 4);
    lora_param over_m = {.data = p, .grad = m, .n = n, .decay = true, .lr_ratio = 1};
    h.step = 0;
    REFUSED(LORA_EINVAL, "step: expected >= 1, got 0", lora_adamw_step(ctx, 1, &over_m, v, v, &h, ERR));
    h.step = 1;
    if (n > 0) REFUSED(LORA_EINVAL, "overlapping", lora_adamw_step(ctx, 1, &over_m, v, v, &h, ERR));
    free(p), free(m), free(v), free(wp), free(wm), free(wv);
}

static void check_state(lora_ctx *ctx, lora_optimizer *opt, const arrays *want) {
    arrays fresh = make_arrays();
    lora_optimizer *other;
    OK(lora_optimizer_create(ctx, LORA_ADAMW, fresh.params, ARRAYS, &options, &other, ERR));
    OK(lora_optimizer_set_steps(other, lora_optimizer_steps(opt), ERR));
    for (int i = 0; i < ARRAYS; i++)
        for (int which = LORA_MOMENT_FIRST; which <= LORA_MOMENT_SECOND; which++) {
            float *out = random_floats(sizes[i], 0, 0), *again = random_floats(sizes[i], 0, 0);
            OK(lora_optimizer_get_moment(opt, i, (lora_moment)which, out, ERR));
            CHECK(same_floats(out, which ? want->v[i] : want->m[i], sizes[i]), "moment %d of array %d", which, i);
            OK(lora_optimizer_set_moment(other, i, (lora_moment)which, out, ERR));
            OK(lora_optimizer_get_moment(other, i, (lora_moment)which, again, ERR));
            CHECK(same_floats(out, again, sizes[i]), "moment %d of array %d goes in and out", which, i);
            free(out), free(again);
        }
    CHECK(lora_optimizer_steps(other) == lora_optimizer_steps(opt), "steps");
    lora_optimizer_destroy(other);
    free_arrays(&fresh);
}

static void check_steps(lora_ctx *ctx) {
    arrays together = make_arrays(), single = make_arrays();
    lora_optimizer *opt;
    OK(lora_optimizer_create(ctx, LORA_ADAMW, together.params, ARRAYS, &options, &opt, ERR));
    for (int64_t step = 1; step <= 3; step++) {
        lora_step_options o = {.lr = 1e-2, .grad_scale = 0.5, .max_grad_norm = step == 2 ? 1e9 : 1.5};
        double norm = 0, want = step_one_by_one(ctx, &single, step, o.lr, o.max_grad_norm);
        OK(lora_optimizer_step(opt, &o, &norm, ERR));
        CHECK(norm == want, "norm %.17g, one by one %.17g", norm, want);
        for (int i = 0; i < ARRAYS; i++)
            CHECK(same_floats(together.params[i].data, single.params[i].data, sizes[i]), "step %d, array %d", (int)step, i);
    }
    CHECK(lora_optimizer_steps(opt) == 3, "steps: %d", (int)lora_optimizer_steps(opt));
    check_state(ctx, opt, &single);
    OK(lora_optimizer_zero_grad(opt, ERR));
    double sum = 1;
    OK(lora_sum_of_squares(ctx, ARRAYS, together.params, &sum, ERR));
    CHECK(sum == 0, "gradients after zero_grad: %g", sum);
    lora_optimizer_destroy(opt);
    free_arrays(&together), free_arrays(&single);
}

static void check_refused_steps(lora_ctx *ctx) {
    arrays a = make_arrays(), before = make_arrays();
    lora_optimizer *opt;
    double norm;
    OK(lora_optimizer_create(ctx, LORA_ADAMW, a.params, ARRAYS, &options, &opt, ERR));
    lora_step_options good = {.lr = 1e-2, .grad_scale = 1}, o = good;
    a.params[3].grad[MOST - 1] = INFINITY;
    REFUSED(LORA_EINVAL, "gradients: expected finite numbers, got a norm of inf; parameters are unchanged",
            lora_optimizer_step(opt, &o, &norm, ERR));
    a.params[3].grad[MOST - 1] = NAN;
    REFUSED(LORA_EINVAL, "gradients: expected finite numbers", lora_optimizer_step(opt, &o, &norm, ERR));
    a.params[3].grad[MOST - 1] = 0;
    o.lr = -1;
    REFUSED(LORA_EINVAL, "lr: expected a finite number >= 0, got -1", lora_optimizer_step(opt, &o, &norm, ERR));
    o = good, o.grad_scale = NAN;
    REFUSED(LORA_EINVAL, "grad_scale: expected", lora_optimizer_step(opt, &o, &norm, ERR));
    o = good, o.max_grad_norm = -1;
    REFUSED(LORA_EINVAL, "max_grad_norm: expected", lora_optimizer_step(opt, &o, &norm, ERR));
    o = good, o.skip_grad_norm = NAN;
    REFUSED(LORA_EINVAL, "skip_grad_norm: expected", lora_optimizer_step(opt, &o, &norm, ERR));
    o = good, o.skip_grad_norm = 1e-3;
    OK(lora_optimizer_step(opt, &o, &norm, ERR)); /* no step, but the norm */
    CHECK(norm > o.skip_grad_norm, "norm %g", norm);
    REFUSED(LORA_EINVAL, "options: expected", lora_optimizer_step(opt, NULL, &norm, ERR));
    for (int i = 0; i < ARRAYS; i++) CHECK(same_floats(a.params[i].data, before.params[i].data, sizes[i]), "array %d is unchanged", i);
    CHECK(lora_optimizer_steps(opt) == 0, "no step was counted");
    float x;
    REFUSED(LORA_EINVAL, "index: expected 0 to 6, got 7", lora_optimizer_get_moment(opt, ARRAYS, LORA_MOMENT_FIRST, &x, ERR));
    REFUSED(LORA_EINVAL, "which: expected", lora_optimizer_set_moment(opt, 0, LORA_MOMENT_ROW, &x, ERR));
    REFUSED(LORA_EINVAL, "out: expected a pointer", lora_optimizer_get_moment(opt, 0, LORA_MOMENT_FIRST, NULL, ERR));
    REFUSED(LORA_EINVAL, "steps: expected >= 0, got -1", lora_optimizer_set_steps(opt, -1, ERR));
    lora_optimizer_destroy(opt);
    free_arrays(&a), free_arrays(&before);
}

static void check_refused_arguments(lora_ctx *ctx) {
    float x[4] = {0}, y[4] = {0};
    lora_param good = {.data = x, .grad = y, .n = 4, .decay = true, .lr_ratio = 1}, bad = good;
    lora_optimizer_options o = options;
    lora_optimizer *opt;
    double sum;
    REFUSED(LORA_EINVAL, "params: expected at least one array, got none", lora_optimizer_create(ctx, LORA_ADAMW, &good, 0, &o, &opt, ERR));
    REFUSED(LORA_EINVAL, "kind: expected 0 to 5, got 9", lora_optimizer_create(ctx, (lora_optimizer_kind)9, &good, 1, &o, &opt, ERR));
    bad.grad = NULL;
    REFUSED(LORA_EINVAL, "params[0]: expected pointers", lora_optimizer_create(ctx, LORA_ADAMW, &bad, 1, &o, &opt, ERR));
    REFUSED(LORA_EINVAL, "grad: expected a pointer", lora_sum_of_squares(ctx, 1, &bad, &sum, ERR));
    bad = good, bad.n = -1;
    REFUSED(LORA_ESHAPE, "params[0].n: expected >= 0, got -1", lora_optimizer_create(ctx, LORA_ADAMW, &bad, 1, &o, &opt, ERR));
    REFUSED(LORA_ESHAPE, "params[0].n: expected >= 0, got -1", lora_sum_of_squares(ctx, 1, &bad, &sum, ERR));
    bad.n = INT64_MAX / 2;
    REFUSED(LORA_ENOMEM, "params: expected at most", lora_optimizer_create(ctx, LORA_ADAMW, &bad, 1, &o, &opt, ERR));
    o.beta1 = 1;
    REFUSED(LORA_EINVAL, "betas: expected two numbers with 0 <= beta < 1, got 1 and 0.999",
            lora_optimizer_create(ctx, LORA_ADAMW, &good, 1, &o, &opt, ERR));
    o = options, o.eps = -1;
    REFUSED(LORA_EINVAL, "eps: expected", lora_optimizer_create(ctx, LORA_ADAMW, &good, 1, &o, &opt, ERR));
    o = options, o.weight_decay = NAN;
    REFUSED(LORA_EINVAL, "weight_decay: expected", lora_optimizer_create(ctx, LORA_ADAMW, &good, 1, &o, &opt, ERR));
    CHECK(opt == NULL, "nothing was made");
}

/* Every allocation fails once: an error each time, and nothing is left over. */
static void check_failed_allocations(void) {
    lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 1);
    arrays a = make_arrays();
    size_t before = lora_ctx_memory_total(ctx).live_bytes;
    lora_status status = LORA_ENOMEM;
    int n = 0;
    for (; status != LORA_OK && n < 100; n++) {
        lora_optimizer *opt;
        ctx->engine->mem.fail_after = n;
        status = lora_optimizer_create(ctx, LORA_ADAMW, a.params, ARRAYS, &options, &opt, NULL);
        ctx->engine->mem.fail_after = -1;
        CHECK(status == LORA_OK || status == LORA_ENOMEM, "allocation %d: status %d", n, (int)status);
        lora_optimizer_destroy(opt);
        CHECK(lora_ctx_memory_total(ctx).live_bytes == before, "allocation %d left something over", n);
    }
    CHECK(status == LORA_OK && n > 5, "%d allocations were made to fail", n);
    free_arrays(&a);
    lora_ctx_destroy(ctx);
}

static uint64_t run_updates(lora_ctx *ctx, lora_gemm_arithmetic path) {
    (void)path;
    begin_run();
    check_adamw(ctx, 0), check_adamw(ctx, 1), check_adamw(ctx, 1031), check_adamw(ctx, MOST);
    return hash_of_run();
}

void check_optim(void) {
    check_every_path(run_updates);
    FOR_EACH_ISA(isa)
    for (int threads = 1; threads <= 3; threads++) {
        lora_ctx *ctx = check_ctx(isa, threads);
        check_steps(ctx);
        if (threads == 1) check_refused_steps(ctx), check_refused_arguments(ctx);
        lora_ctx_destroy(ctx);
    }
    check_failed_allocations();
}
