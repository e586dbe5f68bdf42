#include "tests/c/far_rows.h"

#include <stdlib.h>
#include <string.h>

#include "tests/c/devices.h"

bool far_has_room(void) { return strncmp(device_in_use()->name, "shim", 4) == 0; }

void *far_send(lora_ctx *ctx, const void *host, size_t bytes) {
    void *p = lora_ctx_alloc_uncleared(ctx, LORA_MEM_SCRATCH, bytes);
    OK(lora_upload(ctx, p, host, bytes, ERR));
    OK(lora_sync(ctx, ERR));
    return p;
}

static void send_rows(far_rows *f, int index, int64_t ld) {
    size_t bytes = (size_t)((f->rows - 1) * ld + f->cols) * sizeof(float);
    float *data = lora_ctx_alloc_uncleared(f->ctx, LORA_MEM_SCRATCH, bytes), *row = malloc((size_t)f->cols * sizeof *row);
    f->m[index] = lora_mat_f32(data, f->rows, f->cols, ld);
    CHECK(data != NULL, "no memory for rows %lld elements apart", (long long)ld);
    for (int m = 0; data && m < f->rows; m++) {
        check_normal(row, f->cols, (uint64_t)(1000 * index + m), 1);
        OK(lora_upload(f->ctx, data + m * ld, row, (size_t)f->cols * sizeof *row, ERR));
        OK(lora_sync(f->ctx, ERR));
    }
    free(row);
}

static void begin(far_rows *f, const far_case *c, int64_t ld) {
    float small[FAR_SMALL];
    int32_t *ids = malloc((size_t)c->rows * sizeof *ids);
    int64_t *rows_of = malloc((size_t)c->rows * sizeof *rows_of);
    *f = (far_rows){.ctx = device_ctx(LORA_ISA_AUTO, 1), .rows = c->rows, .cols = c->cols, .ld = ld};
    OK(lora_ctx_set_precision(f->ctx, c->precision, ERR));
    restart_random();
    for (int i = 0; i < FAR_SMALL; i++) small[i] = uniform(0, 1);
    for (int i = 0; i < c->rows; i++) rows_of[i] = ids[i] = c->rows - 1 - i;
    f->small = far_send(f->ctx, small, sizeof small);
    f->ids = far_send(f->ctx, ids, (size_t)c->rows * sizeof *ids);
    f->rows_of = far_send(f->ctx, rows_of, (size_t)c->rows * sizeof *rows_of);
    for (int i = 0; i < c->mats; i++) send_rows(f, i, ld);
    free(ids);
    free(rows_of);
}

/* The results, which the caller frees. */
static float *finish(far_rows *f, const far_case *c) {
    int64_t n = FAR_SMALL;
    float *results = malloc((size_t)(n + (int64_t)c->mats * c->rows * c->cols) * sizeof *results);
    OK(lora_download(f->ctx, results, f->small, sizeof(float) * FAR_SMALL, ERR));
    for (int i = 0; i < c->mats; i++)
        for (int m = 0; m < c->rows; m++, n += c->cols)
            OK(lora_download(f->ctx, results + n, (float *)f->m[i].data + m * f->m[i].ld, (size_t)c->cols * sizeof(float), ERR));
    OK(lora_sync(f->ctx, ERR));
    for (int i = 0; i < c->mats; i++) lora_ctx_free(f->ctx, f->m[i].data);
    lora_ctx_free(f->ctx, f->small);
    lora_ctx_free(f->ctx, f->ids);
    lora_ctx_free(f->ctx, f->rows_of);
    device_ctx_free(f->ctx);
    return results;
}

static float *run(const far_case *c, int64_t ld) {
    far_rows f;
    begin(&f, c, ld);
    OK(c->run(&f, ERR));
    return finish(&f, c);
}

static void compare(const far_case *c, int64_t padding) {
    float *near = run(c, c->cols + padding), *apart = run(c, FAR + padding);
    size_t row = (size_t)c->cols * sizeof(float);
    CHECK(memcmp(near, apart, FAR_SMALL * sizeof(float)) == 0, "%s: other sums from rows 2^31 elements apart", c->name);
    for (int i = 0; i < c->mats * c->rows; i++)
        CHECK(memcmp(near + FAR_SMALL + i * c->cols, apart + FAR_SMALL + i * c->cols, row) == 0,
              "%s: row %d of matrix %d is another where rows are 2^31 elements apart", c->name, i % c->rows, i / c->rows);
    free(near);
    free(apart);
}

void far_check(const far_case *cases, int n) {
    for (int i = 0; i < n; i++) {
        compare(&cases[i], 0);
        if (!cases[i].aligned) compare(&cases[i], 1);
    }
}
