/* Rows of a weight, by moving its pointers. */
#include "lora_c/weight_rows.h"

#include "lora_c/ggml.h"

static lora_status nf4_rows(const lora_nf4 *w, int64_t row, int64_t rows, lora_nf4 *out, lora_error *err) {
    int64_t begin = row * w->cols, block = begin / w->block_size;
    LORA_CHECK(begin % w->block_size == 0 && (w->absmax || block % w->nested_block_size == 0), err, LORA_EUNSUPPORTED,
               "row: expected the begin of a block of scales, got row %lld of %lld columns with blocks of %lld", (long long)row,
               (long long)w->cols, (long long)w->block_size);
    *out = *w;
    out->rows = rows;
    out->codes = w->codes + begin / 2;
    if (w->absmax) {
        out->absmax = w->absmax + block;
    } else {
        out->absmax_codes = w->absmax_codes + block;
        out->nested_absmax = w->nested_absmax + block / w->nested_block_size;
    }
    return LORA_OK;
}

static void ggml_rows(const lora_ggml *w, int64_t row, int64_t rows, lora_ggml *out) {
    *out = *w;
    out->rows = rows;
    out->blocks = w->blocks + row * (w->cols / lora_ggml_block_values(w->type)) * lora_ggml_block_bytes(w->type);
}

lora_status lora_weight_rows(const lora_weight *w, int64_t row, int64_t rows, lora_weight *out, lora_error *err) {
    LORA_CHECK(row >= 0 && rows >= 0 && rows <= w->rows && row <= w->rows - rows, err, LORA_ESHAPE,
               "row: expected %lld rows from row 0 to %lld of the matrix, got row %lld", (long long)rows,
               (long long)(w->rows > rows ? w->rows - rows : 0), (long long)row);
    *out = *w;
    out->rows = rows;
    switch (w->kind) {
    case LORA_WEIGHT_NF4: return nf4_rows(&w->nf4, row, rows, &out->nf4, err);
    case LORA_WEIGHT_GGML: ggml_rows(&w->ggml, row, rows, &out->ggml); return LORA_OK;
    case LORA_WEIGHT_F32: out->dense.data = (const float *)w->dense.data + row * w->dense.ld; return LORA_OK;
    case LORA_WEIGHT_BF16: out->dense.data = (const uint16_t *)w->dense.data + row * w->dense.ld; return LORA_OK;
    }
    return lora_fail(err, LORA_EINVAL, "w: expected a known kind, got %d", (int)w->kind);
}
