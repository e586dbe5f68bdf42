#include "lora_c/base/mat.h"

#include <inttypes.h>

lora_status lora_mat_check(lora_arg a, lora_error *err) {
    lora_mat m = a.mat;
    LORA_CHECK(m.rows >= 0 && m.cols >= 0, err, LORA_ESHAPE, "%s: expected a shape >= 0, got (%" PRId64 ", %" PRId64 ")", a.name, m.rows,
               m.cols);
    int64_t width = lora_dtype_width(m.dtype, m.cols);
    LORA_CHECK(m.ld >= width, err, LORA_ESHAPE, "%s: expected a row stride >= %" PRId64 ", got %" PRId64, a.name, width, m.ld);
    LORA_CHECK(m.data || m.rows == 0 || m.cols == 0, err, LORA_EINVAL, "%s: expected a pointer, got NULL", a.name);
    return LORA_OK;
}

static lora_status check_shape(lora_arg a, int64_t rows, int64_t cols, lora_error *err) {
    LORA_TRY(lora_mat_check(a, err));
    LORA_CHECK(a.mat.rows == rows && a.mat.cols == cols, err, LORA_ESHAPE,
               "%s: expected (%" PRId64 ", %" PRId64 "), got (%" PRId64 ", %" PRId64 ")", a.name, rows, cols, a.mat.rows, a.mat.cols);
    return LORA_OK;
}

lora_status lora_mat_check_f32(lora_arg a, int64_t rows, int64_t cols, lora_error *err) {
    LORA_TRY(check_shape(a, rows, cols, err));
    LORA_CHECK(a.mat.dtype == LORA_F32, err, LORA_EDTYPE, "%s: expected float32, got %s", a.name, lora_dtype_name(a.mat.dtype));
    return LORA_OK;
}

lora_status lora_mat_check_narrow(lora_arg a, int64_t rows, int64_t cols, lora_error *err) {
    LORA_TRY(check_shape(a, rows, cols, err));
    LORA_CHECK(a.mat.dtype == LORA_F32 || a.mat.dtype == LORA_BF16, err, LORA_EDTYPE, "%s: expected float32 or bfloat16, got %s", a.name,
               lora_dtype_name(a.mat.dtype));
    return LORA_OK;
}

bool lora_mat_overlap(lora_mat a, lora_mat b) {
    if (!a.data || !b.data || a.rows == 0 || b.rows == 0 || a.cols == 0 || b.cols == 0) return false;
    a.cols = lora_dtype_width(a.dtype, a.cols);
    b.cols = lora_dtype_width(b.dtype, b.cols);
    if ((uintptr_t)b.data < (uintptr_t)a.data) {
        lora_mat t = a;
        a = b;
        b = t;
    }
    uintptr_t distance = (uintptr_t)b.data - (uintptr_t)a.data;
    uintptr_t of_a = lora_dtype_bytes(a.dtype), of_b = lora_dtype_bytes(b.dtype), ld = of_a * (uintptr_t)a.ld;
    if (distance >= (uintptr_t)(a.rows - 1) * ld + of_a * (uintptr_t)a.cols) return false;
    if (ld != of_b * (uintptr_t)b.ld || a.rows == 1) return true;
    uintptr_t column = distance % ld;
    bool clear_of_row = column >= of_a * (uintptr_t)a.cols;
    bool clear_of_next = column + of_b * (uintptr_t)b.cols <= ld || (int64_t)(distance / ld) == a.rows - 1;
    return !(clear_of_row && clear_of_next);
}

lora_status lora_mat_disjoint(lora_arg out, lora_arg other, lora_error *err) {
    LORA_CHECK(!lora_mat_overlap(out.mat, other.mat), err, LORA_EINVAL, "%s: expected memory apart from %s, got overlapping buffers",
               out.name, other.name);
    return LORA_OK;
}

lora_status lora_mat_same_or_disjoint(lora_arg out, lora_arg other, lora_error *err) {
    bool same_stride = out.mat.ld == other.mat.ld || out.mat.rows <= 1;
    if (out.mat.data == other.mat.data && same_stride && out.mat.dtype == other.mat.dtype) return LORA_OK;
    return lora_mat_disjoint(out, other, err);
}

lora_status lora_mat_check_weight(const char *name, const lora_weight *w, lora_error *err) {
    LORA_CHECK(w != NULL, err, LORA_EINVAL, "%s: expected a weight, got NULL", name);
    LORA_CHECK(w->rows >= 1 && w->cols >= 1, err, LORA_ESHAPE, "%s: expected a shape >= (1, 1), got (%" PRId64 ", %" PRId64 ")", name,
               w->rows, w->cols);
    if (w->kind != LORA_WEIGHT_NF4 && w->kind != LORA_WEIGHT_GGML)
        return lora_mat_check(lora_named(name, lora_mat_f32(w->dense.data, w->rows, w->cols, w->dense.ld)), err);
    bool nf4 = w->kind == LORA_WEIGHT_NF4;
    LORA_CHECK(nf4 ? w->nf4.codes != NULL : w->ggml.blocks != NULL, err, LORA_EINVAL, "%s: expected a quantized matrix, got NULL", name);
    int64_t rows = nf4 ? w->nf4.rows : w->ggml.rows, cols = nf4 ? w->nf4.cols : w->ggml.cols;
    LORA_CHECK(rows == w->rows && cols == w->cols, err, LORA_ESHAPE,
               "%s: expected codes for (%" PRId64 ", %" PRId64 "), got (%" PRId64 ", %" PRId64 ")", name, w->rows, w->cols, rows, cols);
    return LORA_OK;
}
