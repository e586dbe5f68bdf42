/* Frozen weights of which the last rows lie beyond 2^33 elements: decoded, embedded, merged, multiplied. */
#include <string.h>

#include "lora_c/ggml.h"
#include "lora_c/quantize.h"
#include "tests/c/far_ends.h"

enum { COLS = 128, ROWS = 32, BLOCK = LORA_NF4_BLOCK, NESTED = LORA_NF4_NESTED_BLOCK, MAP = 256, TOKENS = 3, RANK = 2, Q8_BYTES = 34 };
#define FIRST_FAR ((int64_t)1 << 26) /* rows before those that count */

static int64_t first_of(bool far) { return far ? FIRST_FAR : 0; }
static int64_t rows_of(bool far) { return first_of(far) + ROWS; }
static end_array *last(end_run *r, end_kind kind, int64_t n, int64_t tail, bool far) { return end_array_of(r, kind, n, 0, tail, far); }

/* --- the weights --- */

/* offset: of the codes from where they are aligned. */
static lora_nf4 nf4_of(end_run *r, bool far, int64_t offset) {
    enum { N = ROWS * COLS };
    int64_t n = rows_of(far) * COLS;
    lora_nf4 w = {.rows = rows_of(far), .cols = COLS, .block_size = BLOCK, .nested_block_size = NESTED, .nested_offset = 0.25f};
    w.lut = last(r, END_FLOATS, 16, 16, false)->data;
    w.codes = (const uint8_t *)last(r, END_BYTES, n / 2 + 64 + offset, N / 2 + 64, far)->data + offset;
    w.absmax_codes = last(r, END_BYTES, n / BLOCK, N / BLOCK, far)->data;
    w.nested_absmax = last(r, END_FLOATS, (n / BLOCK + NESTED - 1) / NESTED, 1, far)->data;
    w.nested_map = last(r, END_FLOATS, MAP, MAP, false)->data;
    return w;
}
/* Scales are float16 from 0 to 1: a byte of any value, then one below that of 1. */
static lora_status q8_of(end_run *r, bool far, lora_weight *w, lora_error *err) {
    enum { BLOCKS = ROWS * COLS / 32 };
    int64_t n = rows_of(far) * COLS / 32;
    end_array *blocks = last(r, END_BYTES, n * Q8_BYTES, (int64_t)BLOCKS * Q8_BYTES, far);
    static uint8_t bytes[BLOCKS * Q8_BYTES];
    for (int i = 0; i < BLOCKS * Q8_BYTES; i++) bytes[i] = (uint8_t)(i % Q8_BYTES == 1 ? random_word() % 0x3c : random_word());
    LORA_TRY(lora_upload(r->ctx, (uint8_t *)blocks->data + (n - BLOCKS) * Q8_BYTES, bytes, sizeof bytes, err));
    LORA_TRY(lora_sync(r->ctx, err));
    *w = lora_weight_ggml(&(lora_ggml){.type = LORA_GGML_Q8_0, .rows = rows_of(far), .cols = COLS, .blocks = blocks->data});
    return LORA_OK;
}
static lora_weight bf16_of(end_run *r, bool far) {
    return lora_weight_bf16(last(r, END_HALVES, rows_of(far) * COLS, ROWS * COLS, far)->data, rows_of(far), COLS, COLS);
}

/* --- what is done with them --- */

static lora_status embed(end_run *r, bool far, const lora_weight *w, lora_error *err) {
    end_array *y = last(r, END_FLOATS, TOKENS * COLS, TOKENS * COLS, false);
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)(first_of(far) + ROWS - 1 - 5 * i);
    int32_t *on_device = far_send(r->ctx, ids, sizeof ids);
    lora_status status = lora_embedding_forward(r->ctx, on_device, w, lora_mat_f32(y->data, TOKENS, COLS, COLS), err);
    end_keep(r, y);
    lora_ctx_free(r->ctx, on_device);
    return status;
}
static lora_status merge(end_run *r, bool far, const lora_weight *w, lora_error *err) {
    end_array *merged = last(r, END_FLOATS, rows_of(far) * COLS, ROWS * COLS, far);
    end_array *A = last(r, END_FLOATS, RANK * COLS, RANK * COLS, false), *B = last(r, END_FLOATS, rows_of(far) * RANK, ROWS * RANK, far);
    lora_adapter adapter = {.rank = RANK, .A = A->data, .B = B->data, .scale = 0.5f};
    LORA_TRY(lora_linear_merge(r->ctx, w, &adapter, NULL, 1, merged->data, err));
    end_keep(r, merged);
    return LORA_OK;
}
static lora_status multiply(end_run *r, bool far, const lora_weight *w, lora_error *err) {
    end_array *x = last(r, END_FLOATS, TOKENS * COLS, TOKENS * COLS, false);
    end_array *y = last(r, END_FLOATS, TOKENS * rows_of(far), ROWS, far); /* of the last token */
    lora_linear_layer layer = {.w = w, .y = lora_mat_f32(y->data, TOKENS, rows_of(far), rows_of(far))};
    LORA_TRY(lora_linear_forward(r->ctx, lora_mat_f32(x->data, TOKENS, COLS, COLS), 1, &layer, err));
    end_keep(r, y);
    return LORA_OK;
}
static lora_status everything(end_run *r, bool far, const lora_weight *w, lora_error *err) {
    LORA_TRY(embed(r, far, w, err));
    LORA_TRY(merge(r, far, w, err));
    return multiply(r, far, w, err);
}

static lora_status nf4(end_run *r, bool far, lora_error *err) {
    lora_nf4 w = nf4_of(r, far, 0);
    lora_weight weight = lora_weight_nf4(&w);
    return everything(r, far, &weight, err);
}
static lora_status nf4_unaligned(end_run *r, bool far, lora_error *err) {
    lora_nf4 w = nf4_of(r, far, 1);
    lora_weight weight = lora_weight_nf4(&w);
    return everything(r, far, &weight, err);
}
static lora_status q8(end_run *r, bool far, lora_error *err) {
    lora_weight w;
    LORA_TRY(q8_of(r, far, &w, err));
    return everything(r, far, &w, err);
}
static lora_status bf16(end_run *r, bool far, lora_error *err) {
    lora_weight w = bf16_of(r, far);
    return everything(r, far, &w, err);
}
static lora_status dequantize(end_run *r, bool far, lora_error *err) {
    enum { N = ROWS * COLS };
    lora_nf4 w = nf4_of(r, far, 0);
    int64_t begin = first_of(far) * COLS;
    end_array *to = last(r, END_FLOATS, N, N, false), *half = last(r, END_HALVES, N, N, false);
    LORA_TRY(lora_dequantize(r->ctx, &w, begin, N, to->data, LORA_F32, err));
    LORA_TRY(lora_dequantize(r->ctx, &w, begin + 3, N - 3, half->data, LORA_BF16, err));
    end_keep(r, to);
    end_keep(r, half);
    return LORA_OK;
}

static const end_case CASES[] = {
    {"dequantize", LORA_PRECISION_EXACT, dequantize},
    {"NF4", LORA_PRECISION_EXACT, nf4},
    {"NF4, codes at odd addresses", LORA_PRECISION_EXACT, nf4_unaligned},
    {"NF4 on tensor cores", LORA_PRECISION_FAST, nf4},
    {"Q8_0", LORA_PRECISION_EXACT, q8},
    {"bfloat16", LORA_PRECISION_EXACT, bf16},
};

void check_far_weights(void) { end_check(CASES, sizeof CASES / sizeof *CASES); }
