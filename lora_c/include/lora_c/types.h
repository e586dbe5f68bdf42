/* Element types and the borrowed views that cross the C interface. */
#ifndef LORA_C_TYPES_H
#define LORA_C_TYPES_H

#include <stddef.h>
#include <stdint.h>

#include "lora_c/weight_formats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* INT8: a row is cols integers within +-127 and, from the next multiple of 4 bytes on, a float32 scale for each 64 of them, the last of
 * which may be fewer. Only lora_convert_rows takes it; rows begin at multiples of 4 bytes. */
typedef enum lora_dtype { LORA_F32, LORA_BF16, LORA_F16, LORA_INT8 } lora_dtype;
enum { LORA_INT8_BLOCK = 64 };

static inline size_t lora_dtype_bytes(lora_dtype t) { return t == LORA_F32 ? 4 : t == LORA_INT8 ? 1 : 2; }
static inline const char *lora_dtype_name(lora_dtype t) {
    return t == LORA_F32 ? "float32" : t == LORA_BF16 ? "bfloat16" : t == LORA_F16 ? "float16" : "int8";
}
/* Where the scales of a row of INT8 begin, and elements that a row of a type takes: the least ld. */
static inline int64_t lora_int8_scales_at(int64_t cols) { return (cols + 3) / 4 * 4; }
static inline int64_t lora_dtype_width(lora_dtype t, int64_t cols) {
    return t == LORA_INT8 ? lora_int8_scales_at(cols) + 4 * ((cols + LORA_INT8_BLOCK - 1) / LORA_INT8_BLOCK) : cols;
}

/* A borrowed row-major matrix at an address of the device: rows * cols elements of dtype, ld elements between rows. Inputs
 * and outputs alike: what is written is said by the operation. data NULL: absent, where an operation allows it. */
typedef struct lora_mat {
    void *data;
    int64_t rows, cols, ld;
    lora_dtype dtype;
} lora_mat;

static inline lora_mat lora_mat_f32(const float *data, int64_t rows, int64_t cols, int64_t ld) {
    lora_mat m = {.data = (void *)data, .rows = rows, .cols = cols, .ld = ld, .dtype = LORA_F32};
    return m;
}
static inline lora_mat lora_mat_none(void) { return lora_mat_f32(NULL, 0, 0, 0); }
/* cols columns of m from first on; absent where m is. */
static inline lora_mat lora_mat_cols(lora_mat m, int64_t first, int64_t cols) {
    if (m.data) m.data = (char *)m.data + first * (int64_t)lora_dtype_bytes(m.dtype);
    m.cols = cols;
    return m;
}
/* rows rows of m from first on; absent where m is. */
static inline lora_mat lora_mat_rows(lora_mat m, int64_t first, int64_t rows) {
    if (m.data) m.data = (char *)m.data + first * m.ld * (int64_t)lora_dtype_bytes(m.dtype);
    m.rows = rows;
    return m;
}

typedef enum lora_weight_kind { LORA_WEIGHT_F32, LORA_WEIGHT_BF16, LORA_WEIGHT_NF4, LORA_WEIGHT_GGML } lora_weight_kind;

typedef struct lora_dense {
    const void *data; /* float or uint16_t (bfloat16 bits) */
    int64_t ld;       /* elements between rows */
} lora_dense;

/* A borrowed (out_features, in_features) matrix, row-major: the frozen or trained base of a linear layer. */
typedef struct lora_weight {
    lora_weight_kind kind;
    int64_t rows, cols; /* N = out_features, K = in_features; those of the quantized view, too */
    union {
        lora_dense dense; /* LORA_WEIGHT_F32, LORA_WEIGHT_BF16 */
        lora_nf4 nf4;     /* LORA_WEIGHT_NF4 */
        lora_ggml ggml;   /* LORA_WEIGHT_GGML: the blocks of a GGUF file */
    };
} lora_weight;

static inline lora_weight lora_weight_dense(lora_weight_kind kind, const void *data, int64_t rows, int64_t cols, int64_t ld) {
    lora_weight w = {.kind = kind, .rows = rows, .cols = cols, .dense = {.data = data, .ld = ld}};
    return w;
}
static inline lora_weight lora_weight_f32(const float *data, int64_t rows, int64_t cols, int64_t ld) {
    return lora_weight_dense(LORA_WEIGHT_F32, data, rows, cols, ld);
}
static inline lora_weight lora_weight_bf16(const uint16_t *data, int64_t rows, int64_t cols, int64_t ld) {
    return lora_weight_dense(LORA_WEIGHT_BF16, data, rows, cols, ld);
}
static inline lora_weight lora_weight_nf4(const lora_nf4 *nf4) {
    lora_weight w = {.kind = LORA_WEIGHT_NF4, .rows = nf4->rows, .cols = nf4->cols, .nf4 = *nf4};
    return w;
}
static inline lora_weight lora_weight_ggml(const lora_ggml *ggml) {
    lora_weight w = {.kind = LORA_WEIGHT_GGML, .rows = ggml->rows, .cols = ggml->cols, .ggml = *ggml};
    return w;
}

/* A LoRA adapter on a linear layer: s * B * A, A (R, K), B (N, R), row-major, contiguous. With magnitude it is DoRA: row n
 * of W + s B A is given the length magnitude[n].
 * Source   LoRA, arXiv:2106.09685, eq. 3; s = lora_alpha / r as in PEFT. DoRA, arXiv:2402.09353, eq. 5. */
typedef struct lora_adapter {
    int64_t rank;
    const float *A, *B, *magnitude; /* magnitude: DoRA's m (N); NULL: plain LoRA */
    float *dA, *dB, *dmagnitude;    /* added to; NULL when not trained */
    float scale;
    float dropout;         /* while training: probability of zeroing an element of x on its way to A */
    uint64_t dropout_seed; /* the mask is a function of (seed, stream, element index): recomputed, not stored */
} lora_adapter;

/* What one call does with an adapter. */
typedef struct lora_adapter_pass {
    float dropout;           /* the adapter's while training, 0 in evaluation */
    uint64_t dropout_stream; /* the same in forward and backward */
    const float *norm;       /* with magnitude: row lengths of W + s B A (N), from lora_dora_norm */
    float *low;              /* (M, R) or NULL: forward leaves s drop(x) A^T here and backward of the same x reads it instead of
                              * forming it again, with the same bits. Only where lora_linear_keeps_low says so */
} lora_adapter_pass;

#ifdef __cplusplus
}
#endif
#endif
