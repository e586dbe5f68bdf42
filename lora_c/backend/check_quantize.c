/* Quantizing and decoding: sizes, element types, memory apart. */
#include <inttypes.h>

#include "lora_c/backend/check.h"
#include "lora_c/base/mat.h"
#include "lora_c/base/util.h"
#include "lora_c/format/nf4_layout.h"

/* An array of bytes and the name of the argument that it is. */
typedef struct array {
    const char *name;
    const void *data;
    int64_t bytes;
} array;

/* All there, and each of the outputs (from first_output on) apart from all others. */
static lora_status check_arrays(const array *arrays, int n, int first_output, lora_error *err) {
    for (int i = 0; i < n; i++) LORA_CHECK(arrays[i].data, err, LORA_EINVAL, "%s: expected an array, got NULL", arrays[i].name);
    for (int o = first_output; o < n; o++)
        for (int i = 0; i < o; i++) {
            uintptr_t a = (uintptr_t)arrays[o].data, b = (uintptr_t)arrays[i].data;
            bool apart = a < b ? b - a >= (uintptr_t)arrays[o].bytes : a - b >= (uintptr_t)arrays[i].bytes;
            LORA_CHECK(apart, err, LORA_EINVAL, "%s: expected memory apart from %s, got overlapping buffers", arrays[o].name,
                       arrays[i].name);
        }
    return LORA_OK;
}

static lora_status check_floats(const char *name, lora_dtype dtype, lora_error *err) {
    LORA_CHECK(dtype == LORA_F32 || dtype == LORA_BF16 || dtype == LORA_F16, err, LORA_EDTYPE,
               "%s: expected float32, bfloat16 or float16, got dtype %d", name, (int)dtype);
    return LORA_OK;
}

lora_status lora_check_quantize_4bit(lora_4bit_type type, lora_mat src, int64_t block_size, const uint8_t *codes, const float *absmax,
                                     const int64_t *first_bad, lora_error *err) {
    int64_t n;
    LORA_CHECK((unsigned)type < LORA_4BIT_END, err, LORA_EINVAL, "type: expected one of lora_4bit_type, got %d", (int)type);
    LORA_TRY(check_floats("src", src.dtype, err));
    LORA_TRY(lora_nf4_check_block_size(block_size, err));
    bool fits = src.rows > 0 && src.cols > 0 && !__builtin_mul_overflow(src.rows, src.cols, &n) && n <= INT64_MAX / 8;
    LORA_CHECK(fits, err, LORA_ESHAPE, "src: expected a non-empty matrix, got (%" PRId64 ", %" PRId64 ")", src.rows, src.cols);
    LORA_CHECK(src.ld == src.cols || src.rows == 1, err, LORA_ESHAPE, "src: expected rows behind each other, got a row stride of %" PRId64,
               src.ld);
    const array arrays[] = {
        {.name = "src", .data = src.data, .bytes = n * (int64_t)lora_dtype_bytes(src.dtype)},
        {.name = "codes", .data = codes, .bytes = lora_nf4_code_bytes(src.rows, src.cols)},
        {.name = "absmax", .data = absmax, .bytes = lora_nf4_blocks(src.rows, src.cols, block_size) * (int64_t)sizeof *absmax},
        {.name = "first_bad", .data = first_bad, .bytes = sizeof *first_bad},
    };
    return check_arrays(arrays, 4, 1, err);
}

lora_status lora_check_double_quantize(const float *absmax, int64_t n, const uint8_t *absmax_codes, const float *nested_absmax,
                                       const float *nested_offset, lora_error *err) {
    LORA_CHECK(n > 0 && n <= INT64_MAX / 8, err, LORA_ESHAPE, "absmax: expected at least one block, got %" PRId64, n);
    const array arrays[] = {
        {.name = "absmax", .data = absmax, .bytes = n * (int64_t)sizeof *absmax},
        {.name = "absmax_codes", .data = absmax_codes, .bytes = n},
        {.name = "nested_absmax", .data = nested_absmax, .bytes = lora_div_up(n, LORA_NF4_NESTED_BLOCK) * (int64_t)sizeof *nested_absmax},
        {.name = "nested_offset", .data = nested_offset, .bytes = sizeof *nested_offset},
    };
    return check_arrays(arrays, 4, 1, err);
}

lora_status lora_check_dequantize(const lora_nf4 *w, int64_t begin, int64_t count, const void *dst, lora_dtype dtype, lora_error *err) {
    int64_t n;
    LORA_CHECK(w, err, LORA_EINVAL, "w: expected a quantized matrix, got NULL");
    LORA_TRY(check_floats("dst", dtype, err));
    LORA_TRY(lora_nf4_check_block_size(w->block_size, err));
    bool fits = w->rows >= 0 && w->cols >= 0 && !__builtin_mul_overflow(w->rows, w->cols, &n) && n <= INT64_MAX / 8;
    LORA_CHECK(fits, err, LORA_ESHAPE, "w: expected a shape >= 0, got (%" PRId64 ", %" PRId64 ")", w->rows, w->cols);
    LORA_CHECK(begin >= 0 && count >= 0 && begin <= n && count <= n - begin, err, LORA_ESHAPE,
               "begin, count: expected a range within %" PRId64 " elements, got [%" PRId64 ", %" PRId64 " + %" PRId64 ")", n, begin, begin,
               count);
    if (count == 0) return LORA_OK;
    LORA_CHECK(w->lut && w->codes, err, LORA_EINVAL, "%s: expected an array, got NULL", w->lut ? "codes" : "lut");
    bool scaled = w->absmax || (w->absmax_codes && w->nested_absmax && w->nested_map && w->nested_block_size >= 1);
    LORA_CHECK(scaled, err, LORA_EINVAL, "absmax: expected it, or absmax_codes with nested_absmax and nested_map, got neither");
    const array arrays[] = {
        {.name = "codes", .data = w->codes, .bytes = lora_nf4_code_bytes(w->rows, w->cols)},
        {.name = "dst", .data = dst, .bytes = count * (int64_t)lora_dtype_bytes(dtype)},
    };
    return check_arrays(arrays, 2, 1, err);
}
