#include "lora_c/bindings/py_quantize.h"

#include "lora_c/bindings/py_devices.h"

static lora_dtype dtype_of(const lora_py_array *w) {
    return w->kind == LORA_PY_F32 ? LORA_F32 : w->kind == LORA_PY_F16 ? LORA_F16 : LORA_BF16;
}

static lora_status fill_on_host(lora_py_nf4tensor *self, const lora_py_array *w, lora_error *err) {
    const lora_nf4 *q = &self->nf4;
    lora_ctx *ctx = self->base.ctx;
    LORA_TRY(lora_4bit_quantize(ctx, self->type, w->data, dtype_of(w), q->rows, q->cols, q->block_size, self->codes, self->absmax, err));
    if (!self->absmax_codes) return LORA_OK;
    return lora_nf4_double_quantize(ctx, self->absmax, self->n_blocks, self->absmax_codes, self->nested_absmax, &self->nf4.nested_offset,
                                    err);
}

/* --- on another device --- */

/* What lies there, behind each other in one piece of memory. */
enum { SRC, CODES, ABSMAX, FIRST_BAD, ABSMAX_CODES, NESTED_ABSMAX, NESTED_OFFSET, PARTS, PART_ALIGN = 256 };

typedef struct device_parts {
    size_t bytes[PARTS];
    unsigned char *at[PARTS];
} device_parts;

static void count_parts(const lora_py_nf4tensor *self, const lora_py_array *w, device_parts *p) {
    size_t blocks = (size_t)self->n_blocks, nested = self->absmax_codes ? (size_t)self->n_nested : 0;
    const size_t bytes[PARTS] = {(size_t)w->n * (size_t)w->itemsize,
                                 (size_t)self->code_bytes,
                                 blocks * sizeof(float),
                                 sizeof(int64_t),
                                 nested ? blocks : 0,
                                 nested * sizeof(float),
                                 nested ? sizeof(float) : 0};
    for (int i = 0; i < PARTS; i++) p->bytes[i] = bytes[i];
}

static lora_status compute(lora_ctx *ctx, const lora_py_nf4tensor *self, const lora_py_array *w, const device_parts *p, lora_error *err) {
    const lora_nf4 *q = &self->nf4;
    lora_mat src = {.data = p->at[SRC], .rows = q->rows, .cols = q->cols, .ld = q->cols, .dtype = dtype_of(w)};
    float *absmax = (float *)(void *)p->at[ABSMAX];
    LORA_TRY(lora_upload(ctx, p->at[SRC], w->data, p->bytes[SRC], err));
    LORA_TRY(lora_quantize_4bit(ctx, self->type, src, q->block_size, p->at[CODES], absmax, (int64_t *)(void *)p->at[FIRST_BAD], err));
    if (!self->absmax_codes) return LORA_OK;
    return lora_double_quantize(ctx, absmax, self->n_blocks, p->at[ABSMAX_CODES], (float *)(void *)p->at[NESTED_ABSMAX],
                                (float *)(void *)p->at[NESTED_OFFSET], err);
}

/* first_bad is filled by the next sync, as all that is downloaded. */
static lora_status fetch(lora_ctx *ctx, lora_py_nf4tensor *self, const device_parts *p, int64_t *first_bad, lora_error *err) {
    void *const to[PARTS] = {[CODES] = self->codes,
                             [ABSMAX] = self->absmax_codes ? NULL : self->absmax,
                             [FIRST_BAD] = first_bad,
                             [ABSMAX_CODES] = self->absmax_codes,
                             [NESTED_ABSMAX] = self->nested_absmax,
                             [NESTED_OFFSET] = self->absmax_codes ? &self->nf4.nested_offset : NULL};
    for (int i = 0; i < PARTS; i++)
        if (to[i]) LORA_TRY(lora_download(ctx, to[i], p->at[i], p->bytes[i], err));
    return LORA_OK;
}

static lora_status fill_there(lora_ctx *ctx, lora_py_nf4tensor *self, const lora_py_array *w, lora_error *err) {
    device_parts p;
    size_t all = 0;
    int64_t first_bad = 0;
    count_parts(self, w, &p);
    for (int i = 0; i < PARTS; i++) all += (p.bytes[i] + PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN;
    unsigned char *memory = lora_ctx_alloc_uncleared(ctx, LORA_MEM_SCRATCH, all), *at = memory;
    LORA_CHECK(memory, err, LORA_ENOMEM, "w: expected %zu bytes on device %s to quantize it there, got none", all, lora_ctx_device(ctx));
    for (int i = 0; i < PARTS; at += (p.bytes[i] + PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN, i++) p.at[i] = at;
    lora_status status = compute(ctx, self, w, &p, err);
    if (status == LORA_OK) status = fetch(ctx, self, &p, &first_bad, err);
    lora_status ended = lora_sync(ctx, status == LORA_OK ? err : NULL); /* in any case: what was asked for reads w and writes self */
    lora_ctx_free(ctx, memory);
    if (status != LORA_OK || ended != LORA_OK) return status != LORA_OK ? status : ended;
    return first_bad < 0 ? LORA_OK : fill_on_host(self, w, err); /* which says what is wrong */
}

lora_status lora_py_fill_nf4(lora_ctx *ctx, lora_py_nf4tensor *self, const lora_py_array *w, lora_error *err) {
    return lora_py_is_host(ctx) ? fill_on_host(self, w, err) : fill_there(ctx, self, w, err);
}
