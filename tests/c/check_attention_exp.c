/* The exponential inside attention, seen through its softmax: with scale ln 2, one element and keys 0 and 1, a row's scores are 0
 * and q in base 2, so that o = 2^q / (1 + 2^q) and lse = ln(1 + 2^q). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/os.h"
#include "lora_c/base/half.h"
#include "lora_c/kernels/kernels.h"
#include "tests/c/check.h"

enum { ROWS = 96 };
static const double U = 0x1p-24;

typedef struct rows {
    float q[ROWS], o[ROWS], lse[ROWS];
} rows;

/* n rows of one query: its heads. */
static void run(const lora_attention_kernels *k, int64_t n, rows *r) {
    static const float key[2] = {0, 1}, value[2] = {0, 1};
    lora_attention_forward_tile tile = {.n_queries = 1,
                                        .group = n,
                                        .D = 1,
                                        .scale = 0.693147182f,
                                        .last = 1,
                                        .q = r->q,
                                        .ldq = n,
                                        .k = key,
                                        .v = value,
                                        .ldk = 1,
                                        .ldv = 1,
                                        .o = r->o,
                                        .ldo = n,
                                        .lse = r->lse,
                                        .ld_lse = n};
    int64_t floats = k->forward_scratch(n, 1);
    tile.scratch = lora_os_alloc(64, (size_t)lora_round_up(floats * 4, 64), false);
    k->forward(&tile);
    lora_os_free(tile.scratch);
}

/* o is a quotient of three rounded numbers. */
static void check_quotients(const lora_attention_kernels *k, const char *rung, int64_t n) {
    rows r;
    double worst = 0;
    for (float x = 0; x >= -126.0f; x -= 0.37f * (float)n / 7) {
        for (int64_t i = 0; i < n; i++) r.q[i] = fmaxf(x - 0.0517f * (float)i, -126.0f);
        run(k, n, &r);
        for (int64_t i = 0; i < n; i++) {
            double p = exp2((double)r.q[i]), want = p / (1 + p);
            worst = worse(worst, fabs((double)r.o[i] - want) / want);
        }
    }
    CHECK(worst <= 3e-7 + 3 * U, "%s, %d rows: 2^x is off by %.3g", rung, (int)n, worst);
}

/* What is rounded to bfloat16 next is seen in lse only, which is float32; numbers of 8 bits stay as they are in every precision. */
static void check_sums(const lora_attention_kernels *k, const char *rung, double error) {
    rows r;
    double worst = 0;
    uint16_t last = lora_f32_to_bf16(-4.0f);
    for (uint16_t bits = lora_f32_to_bf16(-0.0625f); bits <= last; bits = (uint16_t)(bits + ROWS)) {
        for (int i = 0; i < ROWS; i++) r.q[i] = lora_bf16_to_f32((uint16_t)(bits + i <= last ? bits + i : last));
        run(k, ROWS, &r);
        for (int i = 0; i < ROWS; i++) {
            double p = exp2((double)r.q[i]), want = log1p(p);
            worst = worse(worst, fabs((double)r.lse[i] - want) - p / (1 + p) * error - 4 * U * (1 + want));
        }
    }
    CHECK(worst <= 0, "%s: a sum of 2^x is off by %.3g beyond %.1g", rung, worst, error);
}

static void check_ends(const lora_attention_kernels *k, const char *rung) {
    rows r;
    for (int i = 0; i < ROWS; i++) r.q[i] = i % 3 == 0 ? -160.0f : i % 3 == 1 ? 0.0f : NAN;
    run(k, ROWS, &r);
    for (int i = 0; i < ROWS; i++) {
        if (i % 3 == 0) CHECK(r.o[i] == 0 && r.lse[i] == 0, "%s: 2^-160 is %g", rung, (double)r.o[i]);
        if (i % 3 == 1) CHECK(r.o[i] == 0.5f, "%s: 2^0 / 2 is %.9g", rung, (double)r.o[i]);
        if (i % 3 == 2) CHECK(isnan(r.o[i]) && isnan(r.lse[i]), "%s: 2^NaN is %g", rung, (double)r.o[i]);
    }
}

void check_attention_exp(void);
void check_attention_exp(void) {
    lora_attention_kernels k;
    FOR_EACH_ISA(isa) {
        lora_attention_kernels_init(&k, isa);
        const char *rung = lora_isa_name(isa);
        check_quotients(&k, rung, 1);
        check_quotients(&k, rung, 7);
        check_quotients(&k, rung, ROWS);
        check_sums(&k, rung, 3e-7);
        check_ends(&k, rung);
    }
    lora_gemm_kernels products;
    lora_gemm_kernels_init(&products, lora_cpu_best_isa());
    if (!products.paths[LORA_GEMM_BF16].micro) return;
    lora_attention_fast_kernels_init(&k, lora_cpu_best_isa(), LORA_GEMM_BF16);
    check_sums(&k, "bfloat16", 3e-6);
    check_ends(&k, "bfloat16");
}
