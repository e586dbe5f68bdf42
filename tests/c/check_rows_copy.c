/* Copies and conversions of rows: every way to name them against plain loops, what stays untouched, and refusals. */
#include <math.h>

#include "lora_c/base/half.h"
#include "lora_c/base/mat.h"
#include "lora_c/nn.h"
#include "tests/c/check_ops.h"

enum { GAP = 3 };

/* Rows of b that a copy must have written by this table, element by element. */
static void check_copied(const char *what, const float *got, const float *before, lora_mat from, const int64_t *from_rows, lora_mat to,
                         const int64_t *to_rows, int64_t n, bool accumulate) {
    float *want = copy_floats(before, to.rows * to.ld);
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < to.cols; c++) {
            float x = lora_mat_row(from, from_rows ? from_rows[i] : i)[c], *y = &want[(to_rows ? to_rows[i] : i) * to.ld + c];
            *y = accumulate ? *y + x : x;
        }
    CHECK(!memcmp(got, want, (size_t)(to.rows * to.ld) * sizeof(float)), "%s: %lld rows of %lld, accumulate %d", what, (long long)n,
          (long long)to.cols, accumulate);
    free(want);
}

static void check_copy(lora_ctx *ctx, int64_t n, int64_t cols, int64_t gap, bool accumulate) {
    int64_t more = 2 * n + 1, ld = cols + gap, *rows = malloc((size_t)n * sizeof *rows);
    for (int64_t i = 0; i < n; i++) rows[i] = (i * 7 + 2) % (2 * n + 1); /* distinct unless 7 divides 2 n + 1 */
    if ((2 * n + 1) % 7 == 0)
        for (int64_t i = 0; i < n; i++) rows[i] = 2 * n - 2 * i;
    float *few = random_floats(n * ld, -1, 1), *many = random_floats(more * ld, -1, 1);
    float *few0 = copy_floats(few, n * ld), *many0 = copy_floats(many, more * ld);
    lora_mat small = lora_mat_f32(few, n, cols, ld), large = lora_mat_f32(many, more, cols, ld);
    OK(lora_copy_rows(ctx, small, NULL, large, rows, accumulate, ERR));
    check_copied("scatter", many, many0, small, NULL, large, rows, n, accumulate);
    OK(lora_copy_rows(ctx, large, rows, small, NULL, accumulate, ERR));
    check_copied("gather", few, few0, large, rows, small, NULL, n, accumulate);
    lora_mat part = lora_mat_rows(large, n, n);
    float *part0 = copy_floats(part.data, n * ld);
    OK(lora_copy_rows(ctx, small, NULL, part, NULL, accumulate, ERR));
    check_copied("in order", part.data, part0, small, NULL, part, NULL, n, accumulate);
    free(rows), free(few), free(many), free(few0), free(many0), free(part0);
}

static void check_convert(lora_ctx *ctx, int64_t rows, int64_t cols, int64_t gap) {
    int64_t ld = cols + gap, n = rows * ld;
    float *x = random_floats(n, -3, 3), *back = random_floats(n, 7, 8), *back0 = copy_floats(back, n);
    uint16_t *half = calloc((size_t)n + 1, sizeof *half);
    if (n > 0) x[0] = INFINITY;
    lora_mat wide = lora_mat_f32(x, rows, cols, ld), again = lora_mat_f32(back, rows, cols, ld);
    lora_mat narrow = {.data = half, .rows = rows, .cols = cols, .ld = ld, .dtype = LORA_BF16};
    OK(lora_convert_rows(ctx, wide, narrow, ERR));
    OK(lora_convert_rows(ctx, narrow, again, ERR));
    for (int64_t i = 0; i < n; i++) {
        bool inside = i % ld < cols;
        CHECK(half[i] == (inside ? lora_f32_to_bf16(x[i]) : 0), "bfloat16 of %g: %04x", (double)x[i], half[i]);
        CHECK(back[i] == (inside ? lora_bf16_to_f32(half[i]) : back0[i]), "float32 of %04x: %g", half[i], (double)back[i]);
    }
    REFUSED(LORA_EDTYPE, "to: expected float32 from bfloat16 or int8, or the other way, got float32 from float32",
            lora_convert_rows(ctx, wide, again, ERR));
    free(x), free(back), free(back0), free(half);
}

/* Rows of blocks with their scales, at any stride; what lies between rows stays. */
static void check_int8(lora_ctx *ctx, int64_t rows, int64_t cols, int64_t gap) {
    const lora_convert_kernels *k = &ctx->engine->kernels.convert;
    int64_t width = lora_dtype_width(LORA_INT8, cols), ld = width + 4 * gap, blocks = lora_div_up(cols, LORA_INT8_BLOCK);
    float *x = random_floats(rows * (cols + gap), -3, 3), *back = random_floats(rows * (cols + gap), 7, 8),
          *back0 = copy_floats(back, rows * (cols + gap)), *row = random_floats(cols, 0, 1), *scales = random_floats(blocks, 0, 1);
    int8_t *kept = calloc((size_t)(rows * ld), 1), *values = calloc((size_t)cols, 1);
    memset(kept, 77, (size_t)(rows * ld));
    lora_mat wide = lora_mat_f32(x, rows, cols, cols + gap), again = lora_mat_f32(back, rows, cols, cols + gap),
             narrow = {.data = kept, .rows = rows, .cols = cols, .ld = ld, .dtype = LORA_INT8};
    OK(lora_convert_rows(ctx, wide, narrow, ERR));
    OK(lora_convert_rows(ctx, narrow, again, ERR));
    for (int64_t i = 0; i < rows; i++) {
        const int8_t *got = kept + i * ld;
        int64_t at = lora_int8_scales_at(cols);
        k->f32_to_int8(cols, x + i * (cols + gap), values, scales);
        k->int8_to_f32(cols, values, scales, row);
        CHECK(memcmp(got, values, (size_t)cols) == 0 && memcmp(got + at, scales, (size_t)blocks * sizeof *scales) == 0, "row %d in int8",
              (int)i);
        CHECK(memcmp(back + i * (cols + gap), row, (size_t)cols * sizeof *row) == 0, "row %d from int8", (int)i);
        CHECK(memcmp(back + i * (cols + gap) + cols, back0 + i * (cols + gap) + cols, (size_t)gap * sizeof *back) == 0, "behind row %d",
              (int)i);
        for (int64_t j = cols; j < ld; j++) CHECK((j >= at && j < width) || got[j] == 77, "behind row %d in int8", (int)i);
    }
    narrow.ld = width + 2;
    REFUSED(LORA_EINVAL, "to: expected rows of int8 at multiples of 4 bytes", lora_convert_rows(ctx, wide, narrow, ERR));
    narrow.ld = width - 4;
    REFUSED(LORA_ESHAPE, "to: expected a row stride >= ", lora_convert_rows(ctx, wide, narrow, ERR));
    free(x), free(back), free(back0), free(row), free(scales), free(kept), free(values);
}

static void check_refusals(lora_ctx *ctx) {
    float x[64] = {0}, y[64] = {0};
    int64_t rows[] = {0, 3}, outside[] = {0, 4}, negative[] = {-1, 0};
    uint16_t half[64];
    lora_mat four = lora_mat_f32(x, 4, 8, 8), two = lora_mat_f32(y, 2, 8, 8),
             narrow = {.data = half, .rows = 4, .cols = 7, .ld = 7, .dtype = LORA_BF16};
    REFUSED(LORA_EINVAL, "expected at most one of them", lora_copy_rows(ctx, four, rows, two, rows, false, ERR));
    REFUSED(LORA_EINVAL, "from_rows[1] < 4, got 4", lora_copy_rows(ctx, four, outside, two, NULL, false, ERR));
    REFUSED(LORA_EINVAL, "to_rows[0] < 4, got -1", lora_copy_rows(ctx, two, NULL, four, negative, false, ERR));
    REFUSED(LORA_ESHAPE, "to: expected (4, 8), got (2, 8)", lora_copy_rows(ctx, four, NULL, two, NULL, false, ERR));
    REFUSED(LORA_ESHAPE, "to: expected (2, 8), got (2, 7)", lora_copy_rows(ctx, four, rows, lora_mat_cols(two, 0, 7), NULL, false, ERR));
    REFUSED(LORA_EINVAL, "overlapping", lora_copy_rows(ctx, four, rows, lora_mat_rows(four, 1, 2), NULL, false, ERR));
    REFUSED(LORA_EINVAL, "overlapping", lora_copy_rows(ctx, four, NULL, four, NULL, true, ERR));
    REFUSED(LORA_ESHAPE, "to: expected (4, 8), got (4, 7)", lora_convert_rows(ctx, four, narrow, ERR));
    narrow.data = x + 30; /* of another stride, in the last row */
    narrow.cols = narrow.ld = 8;
    REFUSED(LORA_EINVAL, "overlapping", lora_convert_rows(ctx, four, narrow, ERR));
    OK(lora_copy_rows(ctx, lora_mat_f32(NULL, 0, 8, 8), NULL, four, outside, false, ERR));
}

void check_rows_copy(void) {
    static const int64_t rows[] = {1, 2, 17, 130}, widths[] = {1, 8, 63, 1024, 40000};
    FOR_EACH_ISA(isa)
    for (int threads = 1; threads <= 3; threads += 2) {
        lora_ctx *ctx = check_ctx(isa, threads);
        restart_random();
        for (int r = 0; r < 4; r++)
            for (int w = 0; w < (r == 3 ? 4 : 5); w++)
                for (int64_t gap = 0; gap <= GAP; gap += GAP) {
                    check_copy(ctx, rows[r], widths[w], gap, false);
                    check_copy(ctx, rows[r], widths[w], gap, true);
                    check_convert(ctx, rows[r], widths[w], gap);
                    check_int8(ctx, rows[r], widths[w], gap);
                }
        check_refusals(ctx);
        lora_ctx_destroy(ctx);
    }
}
