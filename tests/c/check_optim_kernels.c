/* The optimizers' kernels: every rung of this CPU against the float64 oracle within the bounds of optim_kernels.h, with the bits of the
 * portable rung; the codes of 8 bits against a search through the whole map. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/cpuinfo.h"
#include "lora_c/kernels/optim_kernels.h"
#include "tests/c/check_ops.h"
#include "tests/c/row.h"

static const int64_t sizes[] = {1, 2, 3, 7, 16, 17, 31, 97, 255, 256, 257, 509, 1031};
enum { N_SIZES = sizeof sizes / sizeof sizes[0] };

static bool same_row(row a, row b, int64_t n) { return memcmp(a.p, b.p, (size_t)n * 4) == 0; }

static void check_sgd(const lora_optim_kernels *k, const lora_optim_kernels *ref, const lora_optim_kernels *portable, lora_isa isa,
                      int64_t n, int64_t offset) {
    for (int variant = 0; variant < 4; variant++) {
        lora_sgd_constants c = {.grad_scale = 0.5f, .weight_decay = 0.1f, .momentum = 0.9f, .one_minus_dampening = 0.7f, .lr = 0.1f};
        c.first = variant == 1;
        c.nesterov = variant == 2;
        row p = row_random(n, offset, -1, 1), g = row_random(n, 0, -1, 1), m = row_random(n, offset, -1, 1);
        row p0 = row_copy(p), m0 = row_copy(m), wp = row_copy(p), wm = row_copy(m), pp = row_copy(p), pm = row_copy(m);
        bool has_m = variant < 3;
        k->sgd(n, p.p, g.p, has_m ? m.p : NULL, &c);
        ref->sgd(n, wp.p, g.p, has_m ? wm.p : NULL, &c);
        portable->sgd(n, pp.p, g.p, has_m ? pm.p : NULL, &c);
        double top = 0.9 + 0.5 + 0.1;
        CLOSE("sgd m", m, wm, 6 * U * (0.9 * fabs((double)m0.p[i]) + 0.5 * fabs((double)g.p[i]) + 0.1 * fabs((double)p0.p[i])));
        CLOSE("sgd p", p, wp, 2 * U * fabs((double)p0.p[i]) + 9 * U * 0.1 * 2 * top);
        CHECK(same_row(p, pp, n) && same_row(m, pm, n), "sgd differs from portable n=%lld", (long long)n);
        FREE(p, g, m, p0, m0, wp, wm, pp, pm);
    }
}

static void check_lion(const lora_optim_kernels *k, const lora_optim_kernels *ref, const lora_optim_kernels *portable, lora_isa isa,
                       int64_t n, int64_t offset) {
    lora_lion_constants c = {0.5f, 0.999f, 0.9f, 0.1f, 0.99f, 0.01f, 0.25f};
    row p = row_random(n, offset, -1, 1), g = row_random(n, 0, -1, 1), m = row_random(n, offset, -1, 1);
    if (n > 2) g.p[1] = m.p[1] = 0; /* no direction: no step */
    row p0 = row_copy(p), m0 = row_copy(m), wp = row_copy(p), wm = row_copy(m), pp = row_copy(p), pm = row_copy(m);
    k->lion(n, p.p, g.p, m.p, &c);
    ref->lion(n, wp.p, g.p, wm.p, &c);
    portable->lion(n, pp.p, g.p, pm.p, &c);
    CLOSE("lion m", m, wm, 4 * U * (fabs((double)m0.p[i]) + fabs((double)g.p[i])));
    CLOSE("lion p", p, wp, 3 * U * (fabs((double)p0.p[i]) + 0.25));
    CHECK(same_row(p, pp, n) && same_row(m, pm, n), "lion differs from portable n=%lld", (long long)n);
    FREE(p, g, m, p0, m0, wp, wm, pp, pm);
}

static void check_sums(const lora_optim_kernels *k, const lora_optim_kernels *ref, int64_t n, int64_t offset) {
    row g = row_random(n, offset, -1, 1), col = row_random(n, 0, 0.5f, 2);
    double sum = k->shifted_squares(n, g.p, 0.5f, 1e-3), want = ref->shifted_squares(n, g.p, 0.5f, 1e-3);
    CHECK(fabs(sum - want) <= (double)n * 0x1p-51 * want, "shifted_squares n=%lld", (long long)n);
    double *added = malloc((size_t)n * 8), *want_added = malloc((size_t)n * 8);
    for (int64_t i = 0; i < n; i++) added[i] = want_added[i] = 3;
    k->add_shifted_squares(n, g.p, 0.5f, 1e-3, added);
    ref->add_shifted_squares(n, g.p, 0.5f, 1e-3, want_added);
    for (int64_t i = 0; i < n; i++) CHECK(fabs(added[i] - want_added[i]) <= 0x1p-50, "add_shifted_squares n=%lld", (long long)n);
    sum = k->adafactor_squares(n, g.p, 0.7f, col.p), want = ref->adafactor_squares(n, g.p, 0.7f, col.p);
    CHECK(fabs(sum - want) <= 6 * U * want, "adafactor_squares n=%lld", (long long)n);
    free(added), free(want_added);
    FREE(g, col);
}

static void check_adafactor(const lora_optim_kernels *k, const lora_optim_kernels *ref, const lora_optim_kernels *portable, lora_isa isa,
                            int64_t n, int64_t offset) {
    lora_adafactor_constants c = {.row = 0.7f, .lr = 0.3f, .beta1 = 0.9f, .one_minus_beta1 = 0.1f, .decay = 0.99f};
    for (int has_m = 0; has_m < 2; has_m++) {
        row p = row_random(n, offset, -1, 1), g = row_random(n, 0, -1, 1), m = row_random(n, offset, -1, 1),
            col = row_random(n, 0, 0.5f, 2);
        row p0 = row_copy(p), m0 = row_copy(m), wp = row_copy(p), wm = row_copy(m), pp = row_copy(p), pm = row_copy(m);
        k->adafactor(n, p.p, g.p, has_m ? m.p : NULL, col.p, &c);
        ref->adafactor(n, wp.p, g.p, has_m ? wm.p : NULL, col.p, &c);
        portable->adafactor(n, pp.p, g.p, has_m ? pm.p : NULL, col.p, &c);
        CLOSE("adafactor m", m, wm, 6 * U * (fabs((double)m0.p[i]) + 0.42));
        CLOSE("adafactor p", p, wp, 2 * U * fabs((double)p0.p[i]) + 8 * U * (fabs((double)m0.p[i]) + 0.42));
        CHECK(same_row(p, pp, n) && same_row(m, pm, n), "adafactor differs from portable n=%lld", (long long)n);
        FREE(p, g, m, col, p0, m0, wp, wm, pp, pm);
    }
}

static void check_muon(const lora_optim_kernels *k, const lora_optim_kernels *ref, const lora_optim_kernels *portable, lora_isa isa,
                       int64_t n, int64_t offset) {
    for (int nesterov = 0; nesterov < 2; nesterov++) {
        lora_muon_constants c = {.grad_scale = 0.5f, .momentum = 0.95f, .one_minus_momentum = 0.05f, .nesterov = nesterov};
        row g = row_random(n, 0, -1, 1), m = row_random(n, offset, -1, 1), out = row_make(n, offset), m0 = row_copy(m);
        row wm = row_copy(m), want = row_make(n, 0), pm = row_copy(m), pout = row_make(n, 0);
        k->muon_momentum(n, g.p, m.p, out.p, &c);
        ref->muon_momentum(n, g.p, wm.p, want.p, &c);
        portable->muon_momentum(n, g.p, pm.p, pout.p, &c);
        CLOSE("muon m", m, wm, 6 * U * (fabs((double)m0.p[i]) + fabs((double)g.p[i])));
        CLOSE("muon out", out, want, 6 * U * (fabs((double)m0.p[i]) + fabs((double)g.p[i])));
        CHECK(same_row(m, pm, n) && same_row(out, pout, n), "muon differs from portable n=%lld", (long long)n);
        row before = row_copy(m);
        k->decayed_step(n, m.p, g.p, 0.9f, 0.1f);
        ref->decayed_step(n, pm.p, g.p, 0.9f, 0.1f);
        CLOSE("decayed_step", m, pm, 2 * U * (0.9 * fabs((double)before.p[i]) + 0.1 * fabs((double)g.p[i])));
        FREE(g, m, out, m0, wm, want, pm, pout, before);
    }
}

/* --- codes of 8 bits --- */

/* Kinds: 0 random, 1 values of the map and their neighbours, 2 zeros, 3 huge with infinity, 4 tiny, 5 of many magnitudes. */
static void fill_values(float *x, int64_t n, int kind, const float *map) {
    for (int64_t i = 0; i < n; i++) {
        int j = (int)(random_word() % 255);
        float middle = (float)(((double)map[j] + (double)map[j + 1]) / 2);
        x[i] = uniform(-1, 1);
        if (kind == 1) x[i] = random_word() % 3 ? nextafterf(middle, (float)(random_word() % 3) - 1.0f) : map[j];
        if (kind == 2) x[i] = 0;
        if (kind == 3) x[i] = i == 0 ? INFINITY : x[i] * FLT_MAX;
        if (kind == 4) x[i] *= 0x1p-130f;
        if (kind == 5) x[i] *= ldexpf(1, -(int)(random_word() % 30));
    }
    if (kind == 1) x[0] = 1; /* the scale is exact */
}

static void check_codes(const lora_optim_kernels *k, const lora_optim_kernels *ref, int64_t n) {
    float *x = malloc((size_t)n * 4), *back = malloc((size_t)n * 4), *want_back = malloc((size_t)n * 4);
    uint8_t *codes = malloc((size_t)n + 2), *want = malloc((size_t)n);
    for (int which = 0; which < 2; which++) {
        const float *map = which ? lora_dynamic_map_unsigned() : lora_dynamic_map_signed();
        lora_dynamic_search search;
        lora_dynamic_search_fill(&search, map);
        for (int kind = 0; kind < 6; kind++) {
            fill_values(x, n, kind, map);
            for (int64_t i = 0; which && i < n; i++) x[i] = fabsf(x[i]);
            memset(codes, 77, (size_t)n + 2);
            float top = k->dynamic_encode(n, x, &search, codes + 1), want_top = ref->dynamic_encode(n, x, &search, want);
            CHECK(top == want_top, "absmax of kind %d: %g, expected %g", kind, (double)top, (double)want_top);
            CHECK(!memcmp(codes + 1, want, (size_t)n), "codes of kind %d, map %d, n=%lld", kind, which, (long long)n);
            CHECK(codes[0] == 77 && codes[n + 1] == 77, "nothing around the codes is written");
            k->dynamic_decode(n, want, map, top, back);
            ref->dynamic_decode(n, want, map, top, want_back);
            CHECK(!memcmp(back, want_back, (size_t)n * 4), "decoded values of kind %d", kind);
        }
        x[n / 2] = NAN; /* some code, and no access out of bounds */
        (void)k->dynamic_encode(n, x, &search, codes);
    }
    free(x), free(back), free(want_back), free(codes), free(want);
}

/* n + 1 points from 0.1 to 1, midpoints, times the power of ten, as float32 steps. */
static void check_unsigned_map(void) {
    static const float powers[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    const float *map = lora_dynamic_map_unsigned();
    int next = 1;
    CHECK(map[0] == 0 && map[255] == 1, "ends of the unsigned map");
    for (int i = 0; i < 7; i++) {
        int n = 2 << i;
        for (int j = 0; j < n; j++, next++) {
            volatile float step = (1.0f - 0.1f) / (float)n, edge[2];
            for (int e = 0; e < 2; e++) {
                int at = j + e;
                volatile float product = at < (n + 1) / 2 ? (float)at * step : (float)(n - at) * step;
                edge[e] = at < (n + 1) / 2 ? 0.1f + product : 1.0f - product;
            }
            CHECK(map[next] == (edge[0] + edge[1]) / 2 * powers[i], "unsigned map[%d]: %.9g", next, (double)map[next]);
        }
    }
    CHECK(next == 255, "the unsigned map has %d values between its ends", next - 1);
}

void check_optim_kernels(void) {
    lora_optim_kernels ref, portable, k;
    lora_optim_kernels_init(&ref, LORA_ISA_REF);
    lora_optim_kernels_init(&portable, LORA_ISA_PORTABLE);
    check_unsigned_map();
    for (int rung = LORA_ISA_PORTABLE; rung <= (int)lora_cpu_best_isa(); rung++) {
        lora_isa isa = (lora_isa)rung;
        lora_optim_kernels_init(&k, isa);
        for (int s = 0; s < N_SIZES; s++) {
            check_codes(&k, &ref, sizes[s]);
            for (int64_t offset = 0; offset < 2; offset++) {
                check_sgd(&k, &ref, &portable, isa, sizes[s], offset);
                check_lion(&k, &ref, &portable, isa, sizes[s], offset);
                check_sums(&k, &ref, sizes[s], offset);
                check_adafactor(&k, &ref, &portable, isa, sizes[s], offset);
                check_muon(&k, &ref, &portable, isa, sizes[s], offset);
            }
        }
    }
}
