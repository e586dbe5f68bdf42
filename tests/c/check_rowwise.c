/* Row-wise kernels: every rung of this CPU against the float64 oracle, within the bounds of rowwise_kernels.h. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/cpuinfo.h"
#include "lora_c/kernels/rowwise_kernels.h"
#include "tests/c/check_ops.h"
#include "tests/c/row.h"

static const int64_t sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 172, 257, 509, 576, 1031, 4099, 8209};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };

/* A sum of n products in at least 8 lanes: n/8 additions a lane, a few more across lanes. */
static double sum_factor(int64_t n) { return (double)n / 8.0 + 12.0; }

static void check_norm(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset, float add) {
    row x = row_random(n, offset, -3, 3), w = row_random(n, 0, -2, 2), dy = row_random(n, offset, -1, 1);
    row y = row_make(n, offset), want = row_make(n, 0);
    float eps = 1e-5f, rstd = k->rmsnorm_forward(n, x.p, w.p, add, eps, y.p);
    float want_rstd = ref->rmsnorm_forward(n, x.p, w.p, add, eps, want.p);
    CHECK(fabs((double)rstd - want_rstd) <= sum_factor(n) * U * want_rstd, "rstd n=%lld", (long long)n);
    CLOSE("rmsnorm_forward", y, want, sum_factor(n) * U * fabs((double)want.p[i]));
    row in_place = row_copy(x);
    k->rmsnorm_forward(n, in_place.p, w.p, add, eps, in_place.p);
    CHECK(!memcmp(in_place.p, y.p, (size_t)n * 4), "rmsnorm_forward in place n=%lld", (long long)n);

    double mean = 0.0;
    for (int64_t i = 0; i < n; i++) mean += fabs((double)dy.p[i] * ((double)add + w.p[i]) * x.p[i]) / (double)n;
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        row dx = row_random(n, offset, -1, 1), dw = row_random(n, 0, -1, 1), dx0 = row_copy(dx);
        row want_dx = row_copy(dx), want_dw = row_copy(dw), dw0 = row_copy(dw);
        k->rmsnorm_backward(n, dy.p, x.p, w.p, add, rstd, dx.p, accumulate, dw.p);
        ref->rmsnorm_backward(n, dy.p, x.p, w.p, add, rstd, want_dx.p, accumulate, want_dw.p);
        double r = rstd;
        CLOSE("rmsnorm_backward dx", dx, want_dx,
              U * (8 * r * fabs((double)dy.p[i] * ((double)add + w.p[i])) + sum_factor(n) * r * r * r * mean * fabs((double)x.p[i]) +
                   (accumulate ? 2 * fabs((double)dx0.p[i]) : 0)));
        CLOSE("rmsnorm_backward dweight", dw, want_dw, U * (4 * r * fabs((double)dy.p[i] * x.p[i]) + 2 * fabs((double)dw0.p[i])));
        k->rmsnorm_backward(n, dy.p, x.p, w.p, add, rstd, NULL, accumulate, dw0.p);
        CHECK(!memcmp(dw0.p, dw.p, (size_t)n * 4), "dweight without dx n=%lld", (long long)n);
        k->rmsnorm_backward(n, dy.p, x.p, w.p, add, rstd, dx0.p, accumulate, NULL);
        CHECK(!memcmp(dx0.p, dx.p, (size_t)n * 4), "dx without dweight n=%lld", (long long)n);
        FREE(dx, dw, dx0, want_dx, want_dw, dw0);
    }
    FREE(x, w, dy, y, want, in_place);
}

static void check_layernorm(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset) {
    row x = row_random(n, offset, -2, 4), w = row_random(n, 0, -2, 2), b = row_random(n, offset, -1, 1);
    row dy = row_random(n, offset, -1, 1), y = row_make(n, offset), want = row_make(n, 0);
    float mean, want_mean, eps = 1e-3f, rstd = k->layernorm_forward(n, x.p, w.p, b.p, eps, y.p, &mean);
    float want_rstd = ref->layernorm_forward(n, x.p, w.p, b.p, eps, want.p, &want_mean);
    double f = sum_factor(n) * U, r = want_rstd, top = 0;
    for (int64_t i = 0; i < n; i++) top = larger(top, fabs((double)x.p[i]));
    CHECK(fabs((double)mean - want_mean) <= f * 4, "mean n=%lld", (long long)n);
    CHECK(fabs((double)rstd - r) <= f * r * (1 + 4 * r), "rstd n=%lld: %.9g, expected %.9g", (long long)n, (double)rstd, r);
    /* the error of the mean, at most f max|x|, is divided by the spread */
    CLOSE("layernorm_forward", y, want,
          f * (2 * fabs((double)want.p[i] - b.p[i]) + top * r * fabs((double)w.p[i])) + U * fabs((double)want.p[i]));
    row in_place = row_copy(x);
    k->layernorm_forward(n, in_place.p, w.p, b.p, eps, in_place.p, &mean);
    CHECK(!memcmp(in_place.p, y.p, (size_t)n * 4), "layernorm_forward in place n=%lld", (long long)n);

    double sum = 0, dot = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += fabs((double)dy.p[i] * w.p[i]) / (double)n;
        dot += fabs((double)dy.p[i] * w.p[i] * ((double)x.p[i] - mean) * rstd) / (double)n;
    }
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        row dx = row_random(n, offset, -1, 1), dw = row_random(n, 0, -1, 1), db = row_random(n, offset, -1, 1), dx0 = row_copy(dx);
        row want_dx = row_copy(dx), want_dw = row_copy(dw), want_db = row_copy(db), dw0 = row_copy(dw), db0 = row_copy(db);
        k->layernorm_backward(n, dy.p, x.p, w.p, mean, rstd, dx.p, accumulate, dw.p, db.p);
        ref->layernorm_backward(n, dy.p, x.p, w.p, mean, rstd, want_dx.p, accumulate, want_dw.p, want_db.p);
        CLOSE("layernorm_backward dx", dx, want_dx,
              f * rstd * (fabs((double)dy.p[i] * w.p[i]) + sum + fabs(((double)x.p[i] - mean) * rstd) * dot) +
                  (accumulate ? 2 * U * fabs((double)dx0.p[i]) : 0));
        CLOSE("layernorm_backward dweight", dw, want_dw,
              U * (6 * fabs((double)dy.p[i] * ((double)x.p[i] - mean) * rstd) + 2 * fabs((double)dw0.p[i])));
        CLOSE("layernorm_backward dbias", db, want_db, 2 * U * (fabs((double)dy.p[i]) + fabs((double)db0.p[i])));
        row alone = row_copy(dx0);
        k->layernorm_backward(n, dy.p, x.p, w.p, mean, rstd, alone.p, accumulate, NULL, NULL);
        CHECK(!memcmp(alone.p, dx.p, (size_t)n * 4), "dx without weights n=%lld", (long long)n);
        k->layernorm_backward(n, dy.p, x.p, w.p, mean, rstd, NULL, accumulate, dw0.p, NULL);
        CHECK(!memcmp(dw0.p, dw.p, (size_t)n * 4), "dweight alone n=%lld", (long long)n);
        FREE(dx, dw, db, dx0, want_dx, want_dw, want_db, dw0, db0, alone);
    }
    FREE(x, w, b, dy, y, want, in_place);
}

static void check_rope(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t half, int64_t offset) {
    row x = row_random(2 * half, offset, -3, 3), c = row_random(half, 0, -1, 1), s = row_random(half, 0, -1, 1);
    for (int sign = -1; sign <= 1; sign += 2) {
        row got = row_copy(x), want = row_copy(x);
        k->rope(half, got.p, c.p, s.p, (float)sign);
        ref->rope(half, want.p, c.p, s.p, (float)sign);
        CLOSE("rope", got, want, 3 * U * (fabs((double)x.p[i % half]) + fabs((double)x.p[i % half + half])));
        FREE(got, want);
    }
    FREE(x, c, s);
}

static void check_swiglu(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset) {
    row g = row_random(n, offset, -12, 12), u = row_random(n, 0, -3, 3), d = row_random(n, offset, -2, 2);
    static const float special[] = {0.0f, -0.0f, 100.0f, -100.0f, 1e30f, -1e30f, -88.0f, 88.0f, 1e-40f, -87.31f};
    for (int64_t i = 0; i < n && n > 32 && i < 10; i++) g.p[i] = special[i];
    row h = row_make(n, offset), want = row_make(n, 0), du = row_make(n, 0), want_du = row_make(n, 0);
    k->swiglu_forward(n, g.p, u.p, h.p);
    ref->swiglu_forward(n, g.p, u.p, want.p);
    CLOSE("swiglu_forward", h, want, 8 * U * fabs((double)want.p[i]) + 0x1p-120 * fabs((double)u.p[i]));
    row alias = row_copy(g);
    k->swiglu_forward(n, alias.p, u.p, alias.p);
    CHECK(!memcmp(alias.p, h.p, (size_t)n * 4), "swiglu_forward h = gate, n=%lld", (long long)n);

    k->swiglu_backward(n, d.p, g.p, u.p, h.p, du.p);
    ref->swiglu_backward(n, d.p, g.p, u.p, want.p, want_du.p);
    CLOSE("swiglu_backward dgate", h, want, 16 * U * (1 + fabs((double)g.p[i])) * fabs((double)d.p[i] * u.p[i]));
    CLOSE("swiglu_backward dup", du, want_du, 8 * U * fabs((double)want_du.p[i]) + 0x1p-120 * fabs((double)d.p[i]));
    row gate = row_copy(g), up = row_copy(u);
    k->swiglu_backward(n, d.p, gate.p, up.p, gate.p, up.p);
    CHECK(!memcmp(gate.p, h.p, (size_t)n * 4) && !memcmp(up.p, du.p, (size_t)n * 4), "in place n=%lld", (long long)n);
    FREE(g, u, d, h, want, du, want_du, alias, gate, up);
}

/* SwiGLU without a gate, ReGLU with and without. */
static void check_silu_and_relu(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset) {
    row g = row_random(n, offset, -12, 12), u = row_random(n, 0, -3, 3), d = row_random(n, offset, -2, 2);
    static const float special[] = {0.0f, -0.0f, 100.0f, -100.0f, 1e30f, -1e30f, 1e-40f, -1e-40f};
    for (int64_t i = 0; i < n && n > 32 && i < 8; i++) g.p[i] = special[i];
    row h = row_make(n, offset), want = row_make(n, 0), du = row_make(n, 0), want_du = row_make(n, 0);
    k->swiglu_forward(n, g.p, NULL, h.p);
    ref->swiglu_forward(n, g.p, NULL, want.p);
    CLOSE("silu forward", h, want, 8 * U * fabs((double)want.p[i]) + 0x1p-120);
    k->swiglu_backward(n, d.p, g.p, NULL, h.p, NULL);
    ref->swiglu_backward(n, d.p, g.p, NULL, want.p, NULL);
    CLOSE("silu backward", h, want, 16 * U * (1 + fabs((double)g.p[i])) * fabs((double)d.p[i]));
    row same = row_copy(d);
    k->swiglu_backward(n, same.p, g.p, NULL, same.p, NULL);
    CHECK(!memcmp(same.p, h.p, (size_t)n * 4), "silu backward dgate = dh, n=%lld", (long long)n);
    for (int gated = 0; gated < 2; gated++) {
        const float *up = gated ? u.p : NULL;
        k->reglu_forward(n, g.p, up, h.p);
        ref->reglu_forward(n, g.p, up, want.p);
        CLOSE("reglu_forward", h, want, U * fabs((double)want.p[i]));
        k->reglu_backward(n, d.p, g.p, up, h.p, gated ? du.p : NULL);
        ref->reglu_backward(n, d.p, g.p, up, want.p, gated ? want_du.p : NULL);
        CLOSE("reglu_backward dgate", h, want, U * fabs((double)want.p[i]));
        if (gated) CLOSE("reglu_backward dup", du, want_du, U * fabs((double)want_du.p[i]));
    }
    FREE(g, u, d, h, want, du, want_du, same);
}

static void check_products(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset) {
    row a = row_random(n, offset, -3, 3), x = row_random(n, 0, -3, 3), y = row_random(n, offset, -3, 3), y0 = row_copy(y),
        want = row_copy(y);
    k->multiply_add(n, a.p, x.p, y.p);
    ref->multiply_add(n, a.p, x.p, want.p);
    CLOSE("multiply_add", y, want, 2 * U * (fabs((double)a.p[i] * x.p[i]) + fabs((double)y0.p[i])));
    k->multiply(n, a.p, x.p, y.p);
    for (int64_t i = 0; i < n; i++) CHECK(y.p[i] == a.p[i] * x.p[i], "multiply n=%lld", (long long)n);
    k->multiply(n, a.p, x.p, x.p);
    CHECK(!memcmp(x.p, y.p, (size_t)n * 4), "multiply in place n=%lld", (long long)n);
    FREE(a, x, y, y0, want);
}

/* With a gate and without. */
static void check_geglu(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset,
                        bool gated) {
    row g = row_random(n, offset, -6, 6), u = row_random(n, 0, -3, 3), d = row_random(n, offset, -2, 2);
    static const float special[] = {0.0f, -0.0f, 100.0f, -100.0f, 1e30f, -1e30f, -12.0f, 12.0f, 1e-40f, -9.5f};
    for (int64_t i = 0; i < n && n > 32 && i < 10; i++) g.p[i] = special[i];
    const float *up = gated ? u.p : NULL;
    row h = row_make(n, offset), want = row_make(n, 0), du = row_make(n, 0), want_du = row_make(n, 0);
    k->geglu_forward(n, g.p, up, h.p);
    ref->geglu_forward(n, g.p, up, want.p);
    /* beyond |gate| = 12 the exponential is 0 or infinite, and the error does not grow any more */
#define SQUARE(x) fmin((double)(x) * (x), 144)
    CLOSE("geglu_forward", h, want, (16 + 4 * SQUARE(g.p[i])) * U * fabs((double)want.p[i]) + 0x1p-120 * fabs(gated ? u.p[i] : 1.0));
    row alias = row_copy(g);
    k->geglu_forward(n, alias.p, up, alias.p);
    CHECK(!memcmp(alias.p, h.p, (size_t)n * 4), "geglu_forward h = gate, n=%lld", (long long)n);

    k->geglu_backward(n, d.p, g.p, up, h.p, gated ? du.p : NULL);
    ref->geglu_backward(n, d.p, g.p, up, want.p, gated ? want_du.p : NULL);
    CLOSE("geglu_backward dgate", h, want, (32 + 16 * SQUARE(g.p[i])) * U * fabs((double)d.p[i] * (gated ? u.p[i] : 1)));
    row gate = row_copy(g), second = row_copy(u);
    if (gated)
        CLOSE("geglu_backward dup", du, want_du,
              (16 + 4 * SQUARE(g.p[i])) * U * fabs((double)want_du.p[i]) + 0x1p-118 * fabs((double)d.p[i]));
    k->geglu_backward(n, d.p, gate.p, gated ? second.p : NULL, gate.p, gated ? second.p : NULL);
    CHECK(!memcmp(gate.p, h.p, (size_t)n * 4) && (!gated || !memcmp(second.p, du.p, (size_t)n * 4)), "in place n=%lld", (long long)n);
    FREE(g, u, d, h, want, du, want_du, alias, gate, second);
}

static void check_softcap(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset) {
    static const float caps[] = {30.0f, 1.0f, 0.01f};
    for (int c = 0; c < 3; c++) {
        row x = row_random(n, offset, -40, 40), d = row_random(n, offset, -2, 2), d0 = row_copy(d), want_d = row_copy(d);
        static const float special[] = {0.0f, -0.0f, 1e-30f, 1e30f, -1e30f, INFINITY, -INFINITY, 18.75f, 0.625f, -0.6249f};
        for (int64_t i = 0; i < n && n > 32 && i < 10; i++) x.p[i] = special[i];
        row want = row_copy(x);
        k->softcap_forward(n, caps[c], x.p);
        ref->softcap_forward(n, caps[c], want.p);
        CLOSE("softcap_forward", x, want, 8 * U * fabs((double)want.p[i]));
        k->softcap_backward(n, caps[c], want.p, d.p);
        ref->softcap_backward(n, caps[c], want.p, want_d.p);
        CLOSE("softcap_backward", d, want_d, 4 * U * fabs((double)d0.p[i]));
        FREE(x, d, d0, want_d, want);
    }
}

static void check_exp_sum(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset) {
    for (int kind = 0; kind < 4; kind++) { /* small, wide, all equal, one huge */
        row x = row_random(n, offset, kind == 0 ? -2.0f : -40.0f, kind == 0 ? 2.0f : 40.0f);
        if (kind == 2)
            for (int64_t i = 0; i < n; i++) x.p[i] = -7.5f;
        if (kind == 3) x.p[n / 2] = 3e4f;
        float shift = ref->max(n, x.p);
        CHECK(k->max(n, x.p) == shift, "%s max n=%lld: got %g, expected %g", lora_isa_name(isa), (long long)n, k->max(n, x.p), shift);
        row got = row_copy(x), want = row_copy(x);
        double sum = k->exp_sum(n, shift, got.p), want_sum = ref->exp_sum(n, shift, want.p);
        CHECK(fabs(sum - want_sum) <= 100 * U * want_sum, "%s exp_sum n=%lld: got %.9g, expected %.9g", lora_isa_name(isa), (long long)n,
              sum, want_sum);
        CLOSE("exp_sum", got, want, (4 + 2 * fabs((double)x.p[i] - shift)) * U * want.p[i]);
        FREE(x, got, want);
    }
    for (int i = 0; i < 2; i++) {
        row bad = row_random(n, offset, -1, 1);
        bad.p[n - 1] = i ? INFINITY : NAN;
        float shift = k->max(n, bad.p);
        CHECK(isnan(k->exp_sum(n, i ? shift : 1.0f, bad.p)), "%s %s n=%lld", lora_isa_name(isa), i ? "Inf" : "NaN", (long long)n);
        FREE(bad);
    }
}

static void check_adamw(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset) {
    lora_adamw_constants c = {0.5f, 0.999f, 0.9f, 0.1f, 0.999f, 0.001f, 3e-3f, 0.2f, 1e-8f};
    row p = row_random(n, offset, -1, 1), g = row_random(n, 0, -1, 1), m = row_random(n, offset, -0.1f, 0.1f);
    row v = row_random(n, 0, 0, 0.01f);
    if (n > 8) g.p[3] = m.p[3] = v.p[3] = 0.0f;
    row p0 = row_copy(p), m0 = row_copy(m), v0 = row_copy(v), wp = row_copy(p), wm = row_copy(m), wv = row_copy(v);
    k->adamw(n, p.p, g.p, m.p, v.p, &c);
    ref->adamw(n, wp.p, g.p, wm.p, wv.p, &c);
    double grad = 0.5;
    CLOSE("adamw m", m, wm, 3 * U * (fabs((double)m0.p[i]) + 0.1 * grad));
    CLOSE("adamw v", v, wv, 5 * U * (v0.p[i] + 0.001 * grad * grad));
    /* |m| is at most |m0| + 0.05 and its error is absolute, so the error of the step is bounded by that. */
    CLOSE("adamw p", p, wp,
          3 * U * fabs((double)p0.p[i]) + 12 * U * c.step_size * (fabs((double)m0.p[i]) + 0.05) / (sqrt((double)wv.p[i]) / 0.2 + 1e-8));
    if (isa > LORA_ISA_PORTABLE) { /* elementwise without fused operations: the same bits */
        lora_rowwise_kernels portable;
        lora_rowwise_kernels_init(&portable, LORA_ISA_PORTABLE);
        portable.adamw(n, p0.p, g.p, m0.p, v0.p, &c);
        CHECK(!memcmp(p0.p, p.p, (size_t)n * 4) && !memcmp(m0.p, m.p, (size_t)n * 4) && !memcmp(v0.p, v.p, (size_t)n * 4),
              "adamw differs from portable n=%lld", (long long)n);
    }
    FREE(p, g, m, v, p0, m0, v0, wp, wm, wv);
}

static void check_vectors(const lora_rowwise_kernels *k, const lora_rowwise_kernels *ref, lora_isa isa, int64_t n, int64_t offset) {
    row x = row_random(n, offset, -3, 3), y = row_random(n, 0, -3, 3), y0 = row_copy(y), want = row_copy(y);
    double sum = k->sum_of_squares(n, x.p), exact = ref->sum_of_squares(n, x.p);
    CHECK(fabs(sum - exact) <= (double)n * 0x1p-52 * exact, "sum_of_squares n=%lld", (long long)n);
    lora_rowwise_kernels portable;
    lora_rowwise_kernels_init(&portable, LORA_ISA_PORTABLE);
    CHECK(sum == portable.sum_of_squares(n, x.p), "sum_of_squares differs from portable n=%lld", (long long)n);
    k->axpy(n, 0.7f, x.p, y.p);
    ref->axpy(n, 0.7f, x.p, want.p);
    CLOSE("axpy", y, want, 2 * U * (fabs(0.7 * x.p[i]) + fabs((double)y0.p[i])));
    k->scale(n, -0.3f, x.p, y.p);
    for (int64_t i = 0; i < n; i++) CHECK(y.p[i] == -0.3f * x.p[i], "scale n=%lld", (long long)n);
    for (int64_t i = 0; i < n; i++) x.p[i] *= 28.0f;
    k->exp(n, x.p, y.p);
    ref->exp(n, x.p, want.p);
    CLOSE("exp", y, want, 2 * U * want.p[i]);
    FREE(x, y, y0, want);
}

/* Distance of exp from the exact value in units of its last place, over every stride-th float of the range. */
static void check_exp_ulp(const lora_rowwise_kernels *k, lora_isa isa) {
    enum { BATCH = 4096, STRIDE = 61 };
    static float x[BATCH], y[BATCH];
    double worst = 0.0;
    for (int negative = 0; negative < 2; negative++) {
        uint32_t bits = 0, last = negative ? 0x42ae9999u /* 87.3 */ : 0x42b17217u /* 88.7228 */;
        while (bits <= last) {
            int n = 0;
            for (; n < BATCH && bits <= last; n++, bits += STRIDE) {
                uint32_t b = bits | (negative ? 0x80000000u : 0);
                memcpy(&x[n], &b, 4);
            }
            k->exp(n, x, y);
            for (int i = 0; i < n; i++) {
                double exact = exp((double)x[i]);
                double ulp = ldexp(1.0, (int)floor(log2(exact)) - 23);
                worst = worse(worst, fabs(y[i] - exact) / ulp);
            }
        }
    }
    CHECK(worst <= 1.1, "%s exp: %.3f ulp", lora_isa_name(isa), worst);
    float special[8] = {0.0f, -0.0f, -87.4f, -INFINITY, INFINITY, 89.0f, NAN, 88.7228317f}, out[8];
    k->exp(8, special, out);
    CHECK(out[0] == 1.0f && out[1] == 1.0f, "%s exp(0)", lora_isa_name(isa));
    CHECK(out[2] == 0.0f && out[3] == 0.0f, "%s exp of very negative values", lora_isa_name(isa));
    CHECK(isinf(out[4]) && isinf(out[5]) && isnan(out[6]) && isfinite(out[7]), "%s exp of large values and NaN", lora_isa_name(isa));
    uint32_t payload = 0x7fc00001u; /* a NaN whose low bits must not leak into the exponent */
    memcpy(&special[0], &payload, 4);
    k->exp(8, special, out);
    CHECK(isnan(out[0]), "%s exp(NaN with payload)", lora_isa_name(isa));
}

void check_rowwise(void) {
    lora_rowwise_kernels ref, k;
    lora_rowwise_kernels_init(&ref, LORA_ISA_REF);
    for (int rung = LORA_ISA_PORTABLE; rung <= (int)lora_cpu_best_isa(); rung++) {
        lora_isa isa = (lora_isa)rung;
        lora_rowwise_kernels_init(&k, isa);
        for (int s = 0; s < N_SIZES; s++)
            for (int64_t offset = 0; offset < 2; offset++) {
                check_norm(&k, &ref, isa, sizes[s], offset, 0.0f);
                check_norm(&k, &ref, isa, sizes[s], offset, 3.0f);
                check_layernorm(&k, &ref, isa, sizes[s], offset);
                check_geglu(&k, &ref, isa, sizes[s], offset, true);
                check_geglu(&k, &ref, isa, sizes[s], offset, false);
                check_softcap(&k, &ref, isa, sizes[s], offset);
                check_rope(&k, &ref, isa, sizes[s], offset);
                check_swiglu(&k, &ref, isa, sizes[s], offset);
                check_silu_and_relu(&k, &ref, isa, sizes[s], offset);
                check_products(&k, &ref, isa, sizes[s], offset);
                check_exp_sum(&k, &ref, isa, sizes[s], offset);
                check_adamw(&k, &ref, isa, sizes[s], offset);
                check_vectors(&k, &ref, isa, sizes[s], offset);
            }
        check_exp_ulp(&k, isa);
    }
}
