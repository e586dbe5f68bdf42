/* The product of a few tokens: every slot against the float64 rung. */
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/os.h"
#include "lora_c/base/half.h"
#include "lora_c/base/philox.h"
#include "lora_c/format/nf4_layout.h"
#include "lora_c/kernels/kernels.h"
#include "tests/c/check_ops.h"

enum { LD_EXTRA = 5 };

static void fill_codes(uint8_t *codes, int64_t bytes, uint64_t seed) {
    for (int64_t i = 0; i < bytes; i++) {
        uint32_t w[4];
        lora_philox4x32(seed, 3, (uint64_t)i, w);
        codes[i] = (uint8_t)w[0];
    }
}

/* Any order of a float32 sum of k products; want and magnitude are float64. */
static bool within(float got, double want, double magnitude, int64_t k) {
    return fabs((double)got - want) <= (double)(k + 4) * 0x1p-24 * magnitude;
}

static const char *const PATHS[LORA_GEMM_PATHS] = {"exact", "bf16", "int16"};

/* A matrix with random codes and scales; nested_block 0: scales in float32. */
typedef struct random_nf4 {
    lora_nf4 w;
    uint8_t *codes, *absmax_codes;
    float *absmax, *nested;
} random_nf4;

static random_nf4 random_matrix(int64_t rows, int64_t cols, int64_t block, int64_t nested_block, const float *lut) {
    int64_t blocks = rows * cols / block, n_nested = nested_block ? lora_div_up(blocks, nested_block) : 1;
    /* exact sizes: what reads past the end is seen by the sanitizer */
    random_nf4 r = {.codes = malloc((size_t)(rows * cols / 2)),
                    .absmax_codes = malloc((size_t)blocks),
                    .absmax = malloc((size_t)blocks * sizeof(float)),
                    .nested = malloc((size_t)n_nested * sizeof(float))};
    fill_codes(r.codes, rows * cols / 2, (uint64_t)(cols + rows));
    fill_codes(r.absmax_codes, blocks, (uint64_t)(cols + rows + 1));
    check_normal(r.absmax, blocks, 2, 1);
    check_normal(r.nested, n_nested, 6, 1);
    r.w = (lora_nf4){.rows = rows, .cols = cols, .block_size = block, .lut = lut, .codes = r.codes};
    if (nested_block == 0) {
        r.w.absmax = r.absmax;
    } else {
        r.w.absmax_codes = r.absmax_codes;
        r.w.nested_absmax = r.nested;
        r.w.nested_map = lora_dynamic_map_signed();
        r.w.nested_block_size = nested_block;
        r.w.nested_offset = 0.25f;
    }
    return r;
}

static void free_random(random_nf4 *r) { free(r->codes), free(r->absmax_codes), free(r->absmax), free(r->nested); }

static float top_of(const float *x, int64_t n) {
    float top = 0;
    for (int64_t i = 0; i < n; i++) top = fmaxf(top, fabsf(x[i]));
    return top;
}

/* What a path promises of w[row] . x, by its own count of the products. */
typedef struct row_sum {
    double want, tolerance, bf16_error; /* bf16_error: of the same sum with operands rounded to bfloat16 */
} row_sum;

static row_sum row_sum_of(const lora_nf4 *w, lora_gemm_arithmetic path, int64_t row, const float *x) {
    row_sum sum = {0};
    double magnitude = 0, tops = 0, rounded = 0;
    float top_w = top_of(w->lut, 16);
    for (int64_t e = 0; e < w->cols; e++) {
        int64_t at = row * w->cols + e;
        double scale = (double)lora_nf4_absmax(w, at / w->block_size), level = (double)w->lut[lora_nf4_code(w->codes, at)];
        sum.want += level * scale * (double)x[e];
        magnitude += fabs(level * scale * (double)x[e]);
        tops += fabs(scale) * (double)(top_w * top_of(x + e / 64 * 64, lora_min_i64(64, w->cols - e / 64 * 64)));
        rounded += scale * (double)lora_bf16_to_f32(lora_f32_to_bf16((float)level)) * (double)lora_bf16_to_f32(lora_f32_to_bf16(x[e]));
    }
    sum.bf16_error = rounded - sum.want;
    sum.tolerance = (double)(w->cols + 8) * 0x1p-24 * magnitude;
    if (path == LORA_GEMM_BF16) sum.tolerance += (0x1p-7 + 0x1p-16) * magnitude;
    if (path == LORA_GEMM_INT16) sum.tolerance += 1.001 / 16383 * tops;
    /* a double-quantized scale is a sum of two numbers that may cancel: its own rounding counts beside it */
    if (!w->absmax)
        for (int64_t e = 0; e < w->cols; e++)
            sum.tolerance += 0x1p-23 * (double)fabsf(x[e] * top_w) * (4 + (double)fabsf(w->nested_offset));
    return sum;
}

static void check_nf4_slot(const lora_kernels *rung, lora_gemm_arithmetic path, const lora_nf4 *w, int64_t m) {
    const lora_gemv_path *p = &rung->gemv.paths[path];
    int64_t rows = w->rows, k = w->cols, stride = lora_round_up(lora_div_up(k, p->group) * p->group_bytes, 64);
    int64_t n_scratch = rows * (k / w->block_size) + LORA_GEMV_SCALES_PAST_END;
    float *scratch = malloc((size_t)n_scratch * sizeof *scratch), *x = malloc((size_t)(m * k) * sizeof *x);
    char *arranged = lora_os_alloc(64, (size_t)(m * stride), false);
    for (int64_t i = 0; i < n_scratch; i++) scratch[i] = NAN; /* what is read past the scales must not matter */
    check_normal(x, m * k, 3, 1);
    for (int64_t i = 0; i < m; i++) p->arrange(k, x + i * k, arranged + i * stride);
    guarded sums = guarded_new(rows * m, 1);
    p->nf4(w, 0, rows, m, arranged, stride, scratch, sums.data);
    long bad = 0;
    double error = 0, bf16_error = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < m; i++) {
            row_sum sum = row_sum_of(w, path, r, x + i * k);
            double off = (double)sums.data[r * m + i] - sum.want;
            bad += !(fabs(off) <= sum.tolerance);
            error += off * off;
            bf16_error += sum.bf16_error * sum.bf16_error;
            float alone;
            p->nf4(w, r, 1, 1, arranged + i * stride, stride, scratch, &alone);
            bad += alone != sums.data[r * m + i];
        }
    CHECK(bad == 0 && guarded_ok(&sums), "%s %s nf4 rows %lld k %lld block %lld nested %lld m %lld: %ld wrong", lora_isa_name(rung->isa),
          PATHS[path], (long long)rows, (long long)k, (long long)w->block_size, (long long)w->nested_block_size, (long long)m, bad);
    if (rows * m >= 64) /* enough of them to compare */
        CHECK(error <= (path == LORA_GEMM_BF16 ? 1.2 : 0.25) * bf16_error,
              "%s %s k %lld: expected no more error than of bfloat16 operands, got %g of it", lora_isa_name(rung->isa), PATHS[path],
              (long long)k, sqrt(error / bf16_error));
    guarded_free(&sums);
    free(scratch), free(x), lora_os_free(arranged);
}

static void check_nf4_slots(const lora_kernels *rung, lora_gemm_arithmetic path, int64_t rows, int64_t k, int64_t block, int64_t m) {
    static const int64_t nested_blocks[] = {0, 256, 3, 1};
    for (size_t i = 0; i < sizeof nested_blocks / sizeof *nested_blocks; i++) {
        random_nf4 r = random_matrix(rows, k, block, nested_blocks[i], i == 2 ? lora_fp4_lut() : lora_nf4_lut());
        check_nf4_slot(rung, path, &r.w, m);
        free_random(&r);
    }
}

static void check_dense_slots(const lora_kernels *rung, const lora_kernels *ref, lora_gemm_arithmetic path, int64_t rows, int64_t k,
                              int64_t m) {
    const lora_gemv_path *p = &rung->gemv.paths[path], *oracle = &ref->gemv.paths[LORA_GEMM_EXACT];
    int64_t ldw = k + 3, ldx = k + LD_EXTRA, x_bytes = ldx * (int64_t)sizeof(float),
            stride = p->round_bf16 ? lora_round_up(2 * k, 64) : x_bytes;
    size_t n = (size_t)((rows - 1) * ldw + k), nx = (size_t)((m - 1) * ldx + k);
    float *w = malloc(n * sizeof *w), *x = malloc(nx * sizeof *x), want[LORA_GEMV_ROWS * LORA_GEMV_TOKENS];
    uint16_t *h = malloc(n * sizeof *h), *rounded = lora_os_alloc(64, (size_t)(m * lora_round_up(2 * k, 64)), false);
    check_normal(w, (int64_t)n, 4, 1);
    check_normal(x, (int64_t)nx, 5, 1);
    for (size_t i = 0; i < n; i++) w[i] = lora_bf16_to_f32(h[i] = lora_f32_to_bf16(w[i]));
    for (int64_t i = 0; i < m && p->round_bf16; i++) p->round_bf16(k, x + i * ldx, rounded + i * stride / 2);
    const void *tokens = p->round_bf16 ? (const void *)rounded : x;
    guarded sums[2] = {guarded_new(rows * m, 0), guarded_new(rows * m, 1)};
    p->f32(rows, k, w, ldw, m, x, x_bytes, sums[0].data);
    p->bf16(rows, k, h, ldw, m, tokens, stride, sums[1].data);
    oracle->f32(rows, k, w, ldw, m, x, x_bytes, want);
    long bad = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < m; i++) {
            double size = 0;
            float alone[2], *got[2] = {sums[0].data + r * m + i, sums[1].data + r * m + i};
            for (int64_t e = 0; e < k; e++) size += fabs((double)w[r * ldw + e] * (double)x[i * ldx + e]);
            p->f32(1, k, w + r * ldw, ldw, 1, x + i * ldx, x_bytes, &alone[0]);
            p->bf16(1, k, h + r * ldw, ldw, 1, (const char *)tokens + i * stride, stride, &alone[1]);
            bad += !within(*got[0], (double)want[r * m + i], size, k) || alone[0] != *got[0] || alone[1] != *got[1];
            if (p->round_bf16) /* x rounded */
                bad += !(fabs((double)*got[1] - (double)want[r * m + i]) <= (0x1p-8 + (double)(k + 8) * 0x1p-24) * size);
            else
                bad += *got[1] != *got[0]; /* the same numbers in the same order */
        }
    CHECK(bad == 0 && guarded_ok(&sums[0]) && guarded_ok(&sums[1]), "%s %s dense rows %lld k %lld m %lld: %ld wrong",
          lora_isa_name(rung->isa), PATHS[path], (long long)rows, (long long)k, (long long)m, bad);
    guarded_free(&sums[0]), guarded_free(&sums[1]);
    free(w), free(x), free(h), lora_os_free(rounded);
}

static void slots(lora_isa isa, lora_gemm_arithmetic path) {
    static const int64_t nf4_k[] = {32, 64, 96, 128, 160, 192, 224, 320, 576, 640, 1152}, blocks[] = {32, 64, 128};
    lora_kernels rung, ref;
    lora_kernels_init(&rung, isa);
    lora_kernels_init(&ref, LORA_ISA_REF);
    if (!rung.gemv.paths[path].nf4) return;
    for (size_t i = 0; i < sizeof nf4_k / sizeof *nf4_k; i++)
        for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++)
            for (int64_t m = 1; m <= LORA_GEMV_TOKENS; m++)
                if (nf4_k[i] % blocks[b] == 0)
                    check_nf4_slots(&rung, path, m == 2 ? LORA_GEMV_ROWS : 1 + (int64_t)i % 5, nf4_k[i], blocks[b], m);
    for (int64_t block = 256; block <= 4096; block *= 2) check_nf4_slots(&rung, path, 3, 2 * block, block, block == 512 ? 4 : 1);
    for (int64_t k = 1; k <= 70; k++) check_dense_slots(&rung, &ref, path, 1 + k % 4, k, 1 + k % LORA_GEMV_TOKENS);
    check_dense_slots(&rung, &ref, path, LORA_GEMV_ROWS, 576, 1);
    check_dense_slots(&rung, &ref, path, 17, 2100, LORA_GEMV_TOKENS);
}

void check_gemv(void) {
    FOR_EACH_ISA(isa)
    for (int path = LORA_GEMM_EXACT; path < LORA_GEMM_PATHS; path++) slots(isa, (lora_gemm_arithmetic)path);
}
