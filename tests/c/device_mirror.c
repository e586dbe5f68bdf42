#include "tests/c/device_mirror.h"

#include <stdlib.h>
#include <string.h>

#include "lora_c/ops/ctx.h"

typedef struct mirror {
    lora_ctx *ctx;
    float *host; /* NULL: a frozen copy */
    void *device;
    size_t bytes;
} mirror;

static mirror *mirrors;
static int64_t n_mirrors, room_for_mirrors;

static void add(mirror m) {
    if (n_mirrors == room_for_mirrors) {
        room_for_mirrors = 2 * room_for_mirrors + 64;
        mirrors = realloc(mirrors, (size_t)room_for_mirrors * sizeof *mirrors);
    }
    mirrors[n_mirrors++] = m;
}

static bool on_host(const lora_ctx *ctx) { return ctx->view.backend->host_memory; }

lora_status mirror_floats(lora_ctx *ctx, float **p, int64_t n, lora_error *err) {
    size_t bytes = (size_t)n * sizeof **p;
    if (on_host(ctx) || !*p) return LORA_OK;
    for (int64_t i = 0; i < n_mirrors; i++) {
        if (mirrors[i].ctx != ctx || mirrors[i].host != *p || mirrors[i].bytes != bytes) continue;
        *p = mirrors[i].device;
        return LORA_OK;
    }
    float *device = lora_ctx_alloc(ctx, LORA_MEM_PARAM, bytes);
    LORA_CHECK(device, err, LORA_ENOMEM, "mirror: expected %zu bytes, got none", bytes);
    add((mirror){.ctx = ctx, .host = *p, .device = device, .bytes = bytes});
    LORA_TRY(lora_upload(ctx, device, *p, bytes, err));
    *p = device;
    return lora_sync(ctx, err);
}

static lora_status mirror_read(lora_ctx *ctx, const float **p, int64_t n, lora_error *err) {
    float *both = (float *)*p;
    LORA_TRY(mirror_floats(ctx, &both, n, err));
    *p = both;
    return LORA_OK;
}

lora_status mirror_matrix(lora_ctx *ctx, lora_weight *w, float **grad, lora_error *err) {
    if (grad && *grad) {
        const float *data = w->dense.data;
        LORA_TRY(mirror_read(ctx, &data, w->rows * w->cols, err));
        w->dense.data = data;
        return mirror_floats(ctx, grad, w->rows * w->cols, err);
    }
    lora_weight host = *w;
    void *memory;
    LORA_TRY(lora_weight_place(ctx, &host, w, &memory, err));
    if (memory) add((mirror){.ctx = ctx, .device = memory});
    return LORA_OK;
}

lora_status mirror_vector(lora_ctx *ctx, const float **v, int64_t n, float **grad, lora_error *err) {
    if (grad && *grad) {
        LORA_TRY(mirror_read(ctx, v, n, err));
        return mirror_floats(ctx, grad, n, err);
    }
    void *memory;
    LORA_TRY(lora_vector_place(ctx, *v, n, v, &memory, err));
    if (memory) add((mirror){.ctx = ctx, .device = memory});
    return LORA_OK;
}

lora_status mirror_adapter(lora_ctx *ctx, lora_adapter *a, int64_t N, int64_t K, lora_error *err) {
    LORA_TRY(mirror_read(ctx, &a->A, a->rank * K, err));
    LORA_TRY(mirror_read(ctx, &a->B, N * a->rank, err));
    LORA_TRY(mirror_read(ctx, &a->magnitude, N, err));
    LORA_TRY(mirror_floats(ctx, &a->dA, a->rank * K, err));
    LORA_TRY(mirror_floats(ctx, &a->dB, N * a->rank, err));
    return mirror_floats(ctx, &a->dmagnitude, N, err);
}

static bool may_fail;
static lora_error failure; /* of the copies around a call, where they may fail */

void mirror_may_fail(bool may) { may_fail = may; }

static void copy_all(bool to_device) {
    lora_error err = {0};
    for (int64_t i = 0; i < n_mirrors; i++) {
        const mirror *m = &mirrors[i];
        lora_status status = LORA_OK;
        if (m->host)
            status = to_device ? lora_upload(m->ctx, m->device, m->host, m->bytes, &err)
                               : lora_download(m->ctx, m->host, m->device, m->bytes, &err);
        bool last = i + 1 == n_mirrors || mirrors[i + 1].ctx != m->ctx;
        lora_status synced = last ? lora_sync(m->ctx, status == LORA_OK ? &err : NULL) : LORA_OK;
        if (status == LORA_OK) status = synced;
        CHECK(status == LORA_OK || may_fail, "%s", err.message);
        if (status != LORA_OK) failure = err;
    }
}

void mirror_push(void) {
    failure = (lora_error){0};
    copy_all(true);
}

lora_status mirror_pull(lora_status status) {
    copy_all(false);
    return status;
}

const lora_error *mirror_failure(void) { return failure.code == LORA_OK ? NULL : &failure; }

void mirror_forget(lora_ctx *ctx) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n_mirrors; i++) {
        if (mirrors[i].ctx == ctx)
            lora_ctx_free(ctx, mirrors[i].device);
        else
            mirrors[kept++] = mirrors[i];
    }
    n_mirrors = kept;
    if (kept > 0) return;
    free(mirrors);
    mirrors = NULL;
    room_for_mirrors = 0;
}
