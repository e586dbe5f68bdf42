/* Argument checks and task sizes shared by the operations that work row by row. */
#ifndef LORA_OPS_ROWS_H
#define LORA_OPS_ROWS_H

#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>

#include "lora_c/base/util.h"
#include "lora_c/ggml.h"
#include "lora_c/nf4.h"
#include "lora_c/status.h"
#include "lora_c/types.h"

/* A borrowed row-major matrix of 4-byte elements and the name of the argument it came from. */
typedef struct lora_rows {
    const char *name;
    const void *data;
    int64_t rows, cols, ld;
} lora_rows;

static inline lora_status lora_rows_check(lora_rows a, lora_error *err) {
    LORA_CHECK(a.rows >= 0 && a.cols >= 0, err, LORA_ESHAPE, "%s: expected a shape >= 0, got (%" PRId64 ", %" PRId64 ")",
               a.name, a.rows, a.cols);
    LORA_CHECK(a.ld >= a.cols, err, LORA_ESHAPE, "%s: expected a row stride >= %" PRId64 ", got %" PRId64, a.name,
               a.cols, a.ld);
    LORA_CHECK(a.data != NULL || a.rows == 0 || a.cols == 0, err, LORA_EINVAL, "%s: expected a pointer, got NULL",
               a.name);
    return LORA_OK;
}

/* Column blocks of one buffer (gate and up behind each other in a row) interleave without overlapping: with equal row
 * strides the distance within a row decides, with different strides any common address counts as overlap. */
static inline bool lora_rows_overlap(lora_rows a, lora_rows b) {
    if (!a.data || !b.data || a.rows == 0 || b.rows == 0 || a.cols == 0 || b.cols == 0) return false;
    if ((uintptr_t)b.data < (uintptr_t)a.data) {
        lora_rows t = a;
        a = b;
        b = t;
    }
    uintptr_t distance = (uintptr_t)b.data - (uintptr_t)a.data;
    if (distance >= 4 * (uintptr_t)((a.rows - 1) * a.ld + a.cols)) return false;
    if (a.ld != b.ld || a.rows == 1) return true;
    uintptr_t ld = 4 * (uintptr_t)a.ld, column = distance % ld;
    bool clear_of_row = column >= 4 * (uintptr_t)a.cols;
    bool clear_of_next = column + 4 * (uintptr_t)b.cols <= ld || (int64_t)(distance / ld) == a.rows - 1;
    return !(clear_of_row && clear_of_next);
}

static inline lora_status lora_rows_disjoint(lora_rows out, lora_rows other, lora_error *err) {
    LORA_CHECK(!lora_rows_overlap(out, other), err, LORA_EINVAL,
               "%s: expected memory apart from %s, got overlapping buffers", out.name, other.name);
    return LORA_OK;
}

/* As lora_rows_disjoint, but the very same buffer (pointer and stride) is welcome. */
static inline lora_status lora_rows_same_or_disjoint(lora_rows out, lora_rows other, lora_error *err) {
    if (out.data == other.data && (out.ld == other.ld || out.rows <= 1)) return LORA_OK;
    return lora_rows_disjoint(out, other, err);
}

/* Kind, shape and pointers of a weight called name; what a quantized one holds inside is its own format's business. */
static inline lora_status lora_rows_check_weight(const char *name, const lora_weight *w, lora_error *err) {
    LORA_CHECK(w != NULL, err, LORA_EINVAL, "%s: expected a weight, got NULL", name);
    LORA_CHECK(w->rows >= 1 && w->cols >= 1, err, LORA_ESHAPE,
               "%s: expected a shape >= (1, 1), got (%" PRId64 ", %" PRId64 ")", name, w->rows, w->cols);
    if (w->kind != LORA_WEIGHT_NF4 && w->kind != LORA_WEIGHT_GGML)
        return lora_rows_check((lora_rows){name, w->data, w->rows, w->cols, w->ld}, err);
    bool nf4 = w->kind == LORA_WEIGHT_NF4;
    LORA_CHECK(nf4 ? w->nf4 != NULL : w->ggml != NULL, err, LORA_EINVAL, "%s: expected a quantized matrix, got NULL", name);
    int64_t rows = nf4 ? w->nf4->rows : w->ggml->rows, cols = nf4 ? w->nf4->cols : w->ggml->cols;
    LORA_CHECK(rows == w->rows && cols == w->cols, err, LORA_ESHAPE,
               "%s: expected codes for (%" PRId64 ", %" PRId64 "), got (%" PRId64 ", %" PRId64 ")", name, w->rows, w->cols,
               rows, cols);
    return LORA_OK;
}

/* Rows per task: enough work to pay for handing it out, a function of the width only. */
static inline int64_t lora_rows_per_task(int64_t cols) { return lora_max_i64(1, 16384 / lora_max_i64(cols, 1)); }

#endif
