/* The updates of optimizers on every device against the CPU's: many arrays at once, of odd sizes and at odd addresses. Elementwise ones
 * have the same bits on all devices, codes of 8 bits too; those with sums or products come near. */
#include "tests/c/check_ops.h"
#include "tests/c/devices.h"

enum { ARRAYS = 40, STEPS = 3, GAP = 3 };

/* Everything in one block of floats: data and gradient of each array with gaps, then the state. */
typedef struct layout {
    int64_t n[ARRAYS], cols[ARRAYS], data[ARRAYS], grad[ARRAYS], elements, state, floats;
    int64_t arrays; /* of them, that are stepped */
} layout;

enum { PARTS = 3 }; /* of the state, of elements + GAP floats each */

static layout make_layout(bool matrices) {
    static const int64_t rows[] = {1, 0, 9, 256, 4099, 3, 17}, cols[] = {1, 5, 7, 64, 3, 5000, 1029};
    layout l = {.arrays = ARRAYS};
    int64_t at = 1;
    for (int i = 0; i < ARRAYS; i++) {
        l.cols[i] = matrices || i % 3 ? cols[i % 7] : 0;
        l.n[i] = rows[(i * 3 + 1) % 7] * (cols[i % 7] > 1000 && rows[(i * 3 + 1) % 7] > 100 ? 0 : cols[i % 7]);
        l.data[i] = at;
        l.grad[i] = at + l.n[i] + i % GAP;
        at += 2 * l.n[i] + GAP + i % 2;
        l.elements += l.n[i];
    }
    l.state = at;
    l.floats = at + PARTS * (l.elements + GAP);
    return l;
}

static void make_params(const layout *l, float *block, lora_param *params) {
    for (int i = 0; i < ARRAYS; i++)
        params[i] = (lora_param){.data = block + l->data[i],
                                 .grad = block + l->grad[i],
                                 .n = l->n[i],
                                 .cols = l->cols[i],
                                 .decay = i % 2,
                                 .lr_ratio = i % 5 ? 1 : 0.25 * (i % 4)};
}

static float *part(const layout *l, float *block, int which) { return block + l->state + which * (l->elements + GAP) + which; }

typedef void update_fn(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step);

/* Uploads a block, steps, and brings it back; the state begins at zero. */
static float *run(lora_ctx *ctx, const layout *l, update_fn *update) {
    float *host = malloc((size_t)l->floats * sizeof *host);
    check_normal(host, l->state, 5, 1);
    for (int64_t i = l->state; i < l->floats; i++) host[i] = 0;
    float *block = lora_ctx_alloc_uncleared(ctx, LORA_MEM_ACTIVATION, (size_t)l->floats * sizeof *block);
    OK(lora_upload(ctx, block, host, (size_t)l->floats * sizeof *host, ERR));
    OK(lora_sync(ctx, ERR)); /* host is written below */
    lora_param params[ARRAYS];
    make_params(l, block, params);
    for (int64_t step = 1; step <= STEPS; step++) update(ctx, l, params, block, step);
    OK(lora_download(ctx, host, block, (size_t)l->floats * sizeof *host, ERR));
    OK(lora_sync(ctx, ERR));
    lora_ctx_free(ctx, block);
    return host;
}

/* --- updates --- */

static lora_adamw_hyper adamw_hyper(int64_t step) {
    return (lora_adamw_hyper){.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.1, .step = step, .grad_scale = 0.7};
}

static void adamw(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step) {
    lora_adamw_hyper h = adamw_hyper(step);
    OK(lora_adamw_step(ctx, l->arrays, params, part(l, block, 0), part(l, block, 1), &h, ERR));
}

static void adamw8bit(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step) {
    lora_adamw_hyper h = adamw_hyper(step);
    int64_t blocks = 0;
    for (int i = 0; i < ARRAYS; i++) blocks += (l->n[i] + LORA_ADAMW8BIT_BLOCK - 1) / LORA_ADAMW8BIT_BLOCK;
    lora_adamw8bit_state s = {.m = (uint8_t *)part(l, block, 0) + 1, .v = (uint8_t *)part(l, block, 1) + 2, .m_absmax = part(l, block, 2)};
    s.v_absmax = s.m_absmax + blocks;
    OK(lora_adamw8bit_step(ctx, l->arrays, params, &s, &h, ERR));
}

static void sgd(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step) {
    lora_sgd_hyper h = {.lr = 0.1, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.1, .step = step, .grad_scale = 0.7};
    OK(lora_sgd_step(ctx, l->arrays, params, part(l, block, 0), &h, ERR));
    h.nesterov = true;
    h.dampening = 0;
    OK(lora_sgd_step(ctx, l->arrays, params, part(l, block, 1), &h, ERR));
}

static void plain_sgd(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step) {
    lora_sgd_hyper h = {.lr = 0.1, .weight_decay = 0.1, .step = step, .grad_scale = 0.7};
    (void)block;
    OK(lora_sgd_step(ctx, l->arrays, params, NULL, &h, ERR));
}

static void lion(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step) {
    lora_lion_hyper h = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .grad_scale = 0.7};
    (void)step;
    OK(lora_lion_step(ctx, l->arrays, params, part(l, block, 0), &h, ERR));
}

static void adafactor_with(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, lora_adafactor_hyper h) {
    lora_adafactor_state s = {.row = part(l, block, 0), .col = part(l, block, 1), .m = h.beta1 > 0 ? part(l, block, 2) : NULL};
    OK(lora_adafactor_step(ctx, l->arrays, params, &s, &h, ERR));
}

/* Gradients that grow: with the same ones in each step a mean that is taken in twice would be the same mean. */
static lora_adafactor_hyper adafactor_hyper(int64_t step) {
    return (lora_adafactor_hyper){
        .step = step,
        .decay_rate = -0.8,
        .eps1 = 1e-30,
        .eps2 = 1e-3,
        .clip_threshold = 1,
        .weight_decay = 0.1,
        .grad_scale = 0.7 * (double)step,
    };
}

static void adafactor(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step) {
    lora_adafactor_hyper h = adafactor_hyper(step);
    h.relative_step = h.scale_parameter = true;
    adafactor_with(ctx, l, params, block, h);
}

static void adafactor_m(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step) {
    lora_adafactor_hyper h = adafactor_hyper(step);
    h.lr = 1e-2;
    h.beta1 = 0.9;
    adafactor_with(ctx, l, params, block, h);
}

static void muon_with(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, bool other) {
    lora_muon_hyper h = {.lr = 1e-2, .momentum = 0.9, .weight_decay = 0.1, .eps = 1e-7, .a = 3.4445, .b = -4.775, .c = 2.0315};
    h.grad_scale = 0.7;
    h.nesterov = !other;
    h.match_rms_adamw = other;
    h.ns_steps = other ? 2 : 3;
    OK(lora_muon_step(ctx, l->arrays, params, part(l, block, 0), &h, ERR));
}

static void muon(lora_ctx *ctx, const layout *l, const lora_param *params, float *block, int64_t step) {
    muon_with(ctx, l, params, block, step % 2);
}

/* --- comparison --- */

/* tolerance 0: the same bits; else of the largest number of each array, of data or of state, as they lie. */
static void compare(const char *name, const layout *l, const float *got, const float *want, double tolerance) {
    if (tolerance == 0) {
        int64_t other = 0;
        for (int64_t i = 0; i < l->floats; i++) other += memcmp(&got[i], &want[i], sizeof *got) != 0;
        CHECK(other == 0, "%s on %s: other bits in %lld of %lld", name, device_in_use()->name, (long long)other, (long long)l->floats);
        return;
    }
    double worst = 0;
    for (int64_t i = 0; i < l->floats; i++) worst = worse(worst, fabs((double)got[i] - (double)want[i]) / fmax(1, fabs((double)want[i])));
    CHECK(worst <= tolerance, "%s on %s: off by %g", name, device_in_use()->name, worst);
}

/* No array at all, and arrays without elements: nothing is written. */
static void check_nothing(lora_ctx *ctx, const char *name, update_fn *update, bool matrices) {
    layout none = make_layout(matrices), empty = none;
    none.arrays = 0;
    for (int i = 0; i < ARRAYS; i++) empty.n[i] = 0;
    float *got[] = {run(ctx, &none, update), run(ctx, &empty, update)};
    float *before = malloc((size_t)none.floats * sizeof *before);
    check_normal(before, none.state, 5, 1);
    for (int64_t i = none.state; i < none.floats; i++) before[i] = 0;
    for (int i = 0; i < 2; i++) compare(name, &none, got[i], before, 0), free(got[i]);
    free(before);
}

static void check_update(lora_ctx *ctx, lora_ctx *cpu, const char *name, update_fn *update, bool matrices, double tolerance) {
    layout l = make_layout(matrices);
    float *got = run(ctx, &l, update), *again = run(ctx, &l, update), *want = run(cpu, &l, update);
    compare(name, &l, got, want, tolerance);
    compare(name, &l, again, got, 0);
    free(got), free(again), free(want);
    check_nothing(ctx, name, update, matrices);
}

/* All arrays at once have the sum of one after another, in their order. */
static void check_squares(lora_ctx *ctx) {
    layout l = make_layout(false);
    float *host = malloc((size_t)l.floats * sizeof *host);
    check_normal(host, l.floats, 5, 1);
    float *block = lora_ctx_alloc_uncleared(ctx, LORA_MEM_ACTIVATION, (size_t)l.floats * sizeof *block);
    double *sums = lora_ctx_alloc(ctx, LORA_MEM_ACTIVATION, (ARRAYS + 2) * sizeof *sums), got[ARRAYS + 2], total = 0, exact = 0;
    OK(lora_upload(ctx, block, host, (size_t)l.floats * sizeof *host, ERR));
    lora_param params[ARRAYS];
    make_params(&l, block, params);
    for (int i = 0; i < ARRAYS; i++) OK(lora_sum_of_squares(ctx, 1, &params[i], &sums[i], ERR));
    OK(lora_sum_of_squares(ctx, ARRAYS, params, &sums[ARRAYS], ERR));
    OK(lora_sum_of_squares(ctx, 0, NULL, &sums[ARRAYS + 1], ERR));
    OK(lora_download(ctx, got, sums, sizeof got, ERR));
    OK(lora_sync(ctx, ERR));
    for (int i = 0; i < ARRAYS; i++) {
        total += got[i];
        for (int64_t k = 0; k < l.n[i]; k++) exact += (double)host[l.grad[i] + k] * (double)host[l.grad[i] + k];
    }
    CHECK(got[ARRAYS] == total, "sum of squares %.17g, one by one %.17g", got[ARRAYS], total);
    CHECK(fabs(total - exact) <= 1e-12 * exact && got[ARRAYS + 1] == 0, "sum of squares %.17g, expected %.17g", total, exact);
    lora_ctx_free(ctx, block);
    lora_ctx_free(ctx, sums);
    free(host);
}

static void check_on_device(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2), *cpu = check_ctx(LORA_ISA_AUTO, 2);
    check_update(ctx, cpu, "adamw", adamw, false, 0);
    check_update(ctx, cpu, "adamw8bit", adamw8bit, false, 0);
    check_update(ctx, cpu, "sgd", sgd, false, 0);
    check_update(ctx, cpu, "sgd without momentum", plain_sgd, false, 0);
    check_update(ctx, cpu, "lion", lion, false, 0);
    double near = device_in_use()->tolerance[0];
    check_update(ctx, cpu, "adafactor", adafactor, false, near);
    check_update(ctx, cpu, "adafactor with m", adafactor_m, false, near);
    check_update(ctx, cpu, "muon", muon, true, near * 10); /* each step multiplies what rounding has left by the slope of the polynomial */
    check_squares(ctx);
    lora_ctx_destroy(cpu);
    device_ctx_free(ctx);
}

void check_device_optim(void) { on_every_device(check_on_device); }
