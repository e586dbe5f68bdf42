/* The check of a weight, and task sizes, shared by the operations that work row by row. */
#ifndef LORA_OPS_ROWS_H
#define LORA_OPS_ROWS_H

#include <inttypes.h>
#include <stdint.h>

#include "lora_c/base/mat.h"
#include "lora_c/base/util.h"
#include "lora_c/ggml.h"
#include "lora_c/nf4.h"
#include "lora_c/status.h"
#include "lora_c/types.h"

/* Kind, shape and pointers of a weight called name; what a quantized one holds inside is its own format's business. */
static inline lora_status lora_rows_check_weight(const char *name, const lora_weight *w, lora_error *err) {
    LORA_CHECK(w != NULL, err, LORA_EINVAL, "%s: expected a weight, got NULL", name);
    LORA_CHECK(w->rows >= 1 && w->cols >= 1, err, LORA_ESHAPE,
               "%s: expected a shape >= (1, 1), got (%" PRId64 ", %" PRId64 ")", name, w->rows, w->cols);
    if (w->kind != LORA_WEIGHT_NF4 && w->kind != LORA_WEIGHT_GGML)
        return lora_mat_check(lora_named(name, lora_mat_f32(w->dense.data, w->rows, w->cols, w->dense.ld)), err);
    bool nf4 = w->kind == LORA_WEIGHT_NF4;
    LORA_CHECK(nf4 ? w->nf4.codes != NULL : w->ggml.blocks != NULL, err, LORA_EINVAL, "%s: expected a quantized matrix, got NULL", name);
    int64_t rows = nf4 ? w->nf4.rows : w->ggml.rows, cols = nf4 ? w->nf4.cols : w->ggml.cols;
    LORA_CHECK(rows == w->rows && cols == w->cols, err, LORA_ESHAPE,
               "%s: expected codes for (%" PRId64 ", %" PRId64 "), got (%" PRId64 ", %" PRId64 ")", name, w->rows, w->cols,
               rows, cols);
    return LORA_OK;
}

/* Rows per task: enough work to pay for handing it out, a function of the width only. */
static inline int64_t lora_rows_per_task(int64_t cols) { return lora_max_i64(1, 16384 / lora_max_i64(cols, 1)); }

#endif
