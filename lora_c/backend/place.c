/* Weights on the device in use. */
#include "lora_c/place.h"

#include "lora_c/device.h"
#include "lora_c/ops/ctx.h"

/* One array of a weight, and where its address is kept. */
typedef struct weight_part {
    const void **at;
    size_t bytes;
} weight_part;

enum { MOST_PARTS = 6, NF4_LUT = 16, NESTED_MAP = 256, ALIGN = 64 };

static size_t dense_bytes(const lora_weight *w) {
    return (size_t)((w->rows - 1) * w->dense.ld + w->cols) * (w->kind == LORA_WEIGHT_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* The arrays that w's pointers lead to. */
static int parts_of(lora_weight *w, weight_part *parts) {
    if (w->kind == LORA_WEIGHT_GGML) {
        int64_t row = w->cols / lora_ggml_block_values(w->ggml.type) * lora_ggml_block_bytes(w->ggml.type);
        parts[0] = (weight_part){.at = (const void **)&w->ggml.blocks, .bytes = (size_t)(w->rows * row)};
        return 1;
    }
    if (w->kind != LORA_WEIGHT_NF4) {
        parts[0] = (weight_part){.at = &w->dense.data, .bytes = dense_bytes(w)};
        return 1;
    }
    lora_nf4 *q = &w->nf4;
    int64_t blocks = lora_nf4_blocks(w->rows, w->cols, q->block_size);
    int n = 0;
    parts[n++] = (weight_part){.at = (const void **)&q->lut, .bytes = NF4_LUT * sizeof(float)};
    parts[n++] = (weight_part){.at = (const void **)&q->codes, .bytes = (size_t)lora_nf4_code_bytes(w->rows, w->cols)};
    if (q->absmax) {
        parts[n++] = (weight_part){.at = (const void **)&q->absmax, .bytes = (size_t)blocks * sizeof(float)};
        return n;
    }
    int64_t nested = (blocks + q->nested_block_size - 1) / q->nested_block_size;
    parts[n++] = (weight_part){.at = (const void **)&q->absmax_codes, .bytes = (size_t)blocks};
    parts[n++] = (weight_part){.at = (const void **)&q->nested_absmax, .bytes = (size_t)nested * sizeof(float)};
    parts[n++] = (weight_part){.at = (const void **)&q->nested_map, .bytes = NESTED_MAP * sizeof(float)};
    return n;
}

static size_t round_up(size_t bytes) { return (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1); }

lora_status lora_weight_place(lora_ctx *ctx, const lora_weight *host, lora_weight *placed, void **memory, lora_error *err) {
    weight_part parts[MOST_PARTS];
    size_t bytes = 0, at = 0;
    *placed = *host;
    *memory = NULL;
    if (ctx->view.backend->host_memory) return LORA_OK;
    LORA_TRY(lora_device_check(ctx, err));
    int n = parts_of(placed, parts);
    for (int i = 0; i < n; i++) bytes += round_up(parts[i].bytes);
    *memory = lora_ctx_alloc_uncleared(ctx, LORA_MEM_BASE, bytes);
    LORA_CHECK(*memory, err, LORA_ENOMEM, "weight: expected %zu bytes on device %s, got none", bytes, lora_ctx_device(ctx));
    lora_status status = LORA_OK;
    for (int i = 0; i < n && status == LORA_OK; i++) {
        unsigned char *to = (unsigned char *)*memory + at;
        status = lora_upload(ctx, to, *parts[i].at, parts[i].bytes, err);
        *parts[i].at = to;
        at += round_up(parts[i].bytes);
    }
    if (status == LORA_OK) status = lora_sync(ctx, err); /* host may end or change now */
    if (status == LORA_OK) return LORA_OK;
    lora_ctx_free(ctx, *memory);
    *memory = NULL;
    return status;
}

lora_status lora_vector_place(lora_ctx *ctx, const float *host, int64_t n, const float **placed, void **memory, lora_error *err) {
    lora_weight w = lora_weight_f32(host, 1, n, n), there;
    LORA_TRY(lora_weight_place(ctx, &w, &there, memory, err));
    *placed = there.dense.data;
    return LORA_OK;
}
