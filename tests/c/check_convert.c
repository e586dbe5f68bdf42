/* Conversion to and from 16 bits: every rung of this CPU against the oracle bit for bit, for all 16-bit values and for floats
 * around ties. To and from 8 bits: the same over rungs, against float64, and the integers of the int8 product. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/cpuinfo.h"
#include "lora_c/kernels/convert_kernels.h"
#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"
#include "lora_c/types.h"
#include "tests/c/bytes.h"
#include "tests/c/hard_values.h"

static void check_rung(const lora_convert_kernels *k, const lora_convert_kernels *ref, lora_isa isa) {
    enum { ALL = 65536 };
    static uint16_t h[ALL], back[ALL], want_back[ALL];
    static float wide[ALL], want[ALL];
    for (int i = 0; i < ALL; i++) h[i] = (uint16_t)i;
    k->bf16_to_f32(ALL, h, wide), ref->bf16_to_f32(ALL, h, want);
    CHECK(!memcmp(wide, want, sizeof wide), "%s bf16_to_f32", lora_isa_name(isa));
    k->f16_to_f32(ALL, h, wide), ref->f16_to_f32(ALL, h, want);
    CHECK(!memcmp(wide, want, sizeof wide), "%s f16_to_f32", lora_isa_name(isa));
    for (int round = 0; round < 8; round++) {
        for (int i = 0; i < ALL; i++) { /* any bits, and ties between two 16-bit values */
            uint32_t u = random_word();
            if (round % 2) u = (u & 0xffff0000u) | (i & 1 ? 0x8000u : 0x1000u);
            if (round > 3) u = (u & 0x87ffffffu) | 0x38000000u;
            memcpy(wide + i, &u, 4);
        }
        k->f32_to_bf16(ALL, wide, back), ref->f32_to_bf16(ALL, wide, want_back);
        CHECK(!memcmp(back, want_back, sizeof back), "%s f32_to_bf16", lora_isa_name(isa));
        k->f32_to_f16(ALL, wide, back), ref->f32_to_f16(ALL, wide, want_back);
        CHECK(!memcmp(back, want_back, sizeof back), "%s f32_to_f16", lora_isa_name(isa));
    }
    for (int s = 0; s < N_LENGTHS; s++) {
        bytes narrow = bytes_make(2 * LENGTHS[s], 2), row = bytes_make(4 * LENGTHS[s], 4);
        k->f32_to_bf16(LENGTHS[s], want, (uint16_t *)(void *)narrow.p);
        k->bf16_to_f32(LENGTHS[s], h, (float *)(void *)row.p);
        CHECK(bytes_guarded(narrow) && bytes_guarded(row), "%s bf16 n=%lld", lora_isa_name(isa), (long long)LENGTHS[s]);
        k->f32_to_f16(LENGTHS[s], want, (uint16_t *)(void *)narrow.p);
        k->f16_to_f32(LENGTHS[s], h, (float *)(void *)row.p);
        CHECK(bytes_guarded(narrow) && bytes_guarded(row), "%s f16 n=%lld", lora_isa_name(isa), (long long)LENGTHS[s]);
        free(narrow.all), free(row.all);
    }
}

/* A row in 8 bits and back, between guard bands. */
typedef struct kept_row {
    bytes values, scales, back;
    int64_t n;
} kept_row;

static int64_t blocks_of(int64_t n) { return lora_div_up(n, LORA_INT8_BLOCK); }
static int8_t *values_of(const kept_row *r) { return (int8_t *)r->values.p; }
static float *scales_of(const kept_row *r) { return (float *)(void *)r->scales.p; }
static float *back_of(const kept_row *r) { return (float *)(void *)r->back.p; }

static kept_row keep(const lora_convert_kernels *k, int64_t n, const float *x) {
    kept_row r = {.values = bytes_make(n, 1), .scales = bytes_make(4 * blocks_of(n), 4), .back = bytes_make(4 * n, 4), .n = n};
    k->f32_to_int8(n, x, values_of(&r), scales_of(&r));
    k->int8_to_f32(n, values_of(&r), scales_of(&r), back_of(&r));
    return r;
}

static void free_row(kept_row r) { free(r.values.all), free(r.scales.all), free(r.back.all); }

static void check_error(const kept_row *r, const float *x) {
    for (int64_t i = 0; i < r->n; i++) {
        double largest = 0, q = values_of(r)[i], scale = scales_of(r)[i / LORA_INT8_BLOCK];
        int64_t begin = i / LORA_INT8_BLOCK * LORA_INT8_BLOCK;
        for (int64_t j = begin; j < lora_min_i64(r->n, begin + LORA_INT8_BLOCK); j++) largest = larger(largest, fabs((double)x[j]));
        double want = largest < (double)LORA_INT8_TINY ? 0 : largest / 127;
        CHECK(fabs(scale - want) <= 0x1p-24 * want, "scale of %g: %g", largest, scale);
        CHECK(fabs(q) <= 127 && (want == 0 ? q == 0 : fabs(q * scale - (double)x[i]) <= scale * (0.5 + 127 * 0x1p-22)), "%g: %g * %g",
              (double)x[i], q, scale);
        CHECK((double)back_of(r)[i] == (double)(float)(q * scale), "back: %g, expected %g", (double)back_of(r)[i], q * scale);
    }
}

/* What the int8 product packs of a row, and of one that was kept. */
static void check_packed(const kept_row *r, const float *x) {
    lora_gemm_kernels k;
    lora_gemm_kernels_init(&k, LORA_ISA_PORTABLE);
    int64_t words = lora_int8_left_words(1);
    uint32_t *first = calloc((size_t)(blocks_of(r->n) * words), 4), *again = calloc((size_t)(blocks_of(r->n) * words), 4);
    k.int8.pack_left_rows(x, r->n, 1, r->n, 1, first);
    k.int8.pack_left_rows(back_of(r), r->n, 1, r->n, 1, again);
    for (int64_t i = 0; i < r->n; i++) {
        int64_t block = i / LORA_INT8_BLOCK, in = i % LORA_INT8_BLOCK, at = 4 * (block * words + lora_int8_step(in)) + lora_int8_byte(in);
        int8_t product = ((const int8_t *)first)[at];
        float scale;
        memcpy(&scale, first + block * words + LORA_INT8_STEPS, sizeof scale);
        CHECK(values_of(r)[i] == product, "%g is kept as %d, multiplied as %d", (double)x[i], values_of(r)[i], product);
        CHECK(((const int8_t *)again)[at] == product, "%g is packed as %d when kept", (double)x[i], ((const int8_t *)again)[at]);
        CHECK(scales_of(r)[block] == scale, "scale %g, of the product %g", (double)scales_of(r)[block], (double)scale);
    }
    free(first), free(again);
}

static void check_int8(const lora_convert_kernels *k, const lora_convert_kernels *ref, lora_isa isa) {
    for (int s = 0; s < N_LENGTHS; s++)
        for (int bad = 0; bad < 4; bad++) {
            int64_t n = LENGTHS[s];
            float *x = hard_values(n);
            if (bad) x[(n - 1) / bad] = bad == 1 ? NAN : bad == 2 ? INFINITY : -INFINITY;
            kept_row got = keep(k, n, x), want = keep(ref, n, x);
            CHECK(memcmp(got.values.p, want.values.p, (size_t)n) == 0 && memcmp(got.scales.p, want.scales.p, (size_t)want.scales.n) == 0,
                  "%s f32_to_int8 n=%lld", lora_isa_name(isa), (long long)n);
            CHECK(memcmp(got.back.p, want.back.p, (size_t)want.back.n) == 0, "%s int8_to_f32 n=%lld", lora_isa_name(isa), (long long)n);
            CHECK(bytes_guarded(got.values) && bytes_guarded(got.scales) && bytes_guarded(got.back), "%s int8 n=%lld", lora_isa_name(isa),
                  (long long)n);
            if (bad)
                CHECK(isnan(back_of(&got)[(n - 1) / bad]), "%s: a block with a value that is not finite", lora_isa_name(isa));
            else
                check_error(&got, x), check_packed(&got, x);
            free(x);
            free_row(got), free_row(want);
        }
}

void check_convert(void) {
    lora_convert_kernels ref, k;
    lora_convert_kernels_init(&ref, LORA_ISA_REF);
    for (lora_isa isa = LORA_ISA_REF; isa <= lora_cpu_best_isa(); isa++) {
        lora_convert_kernels_init(&k, isa);
        check_rung(&k, &ref, isa);
        check_int8(&k, &ref, isa);
    }
}
