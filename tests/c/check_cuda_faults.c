/* Every call of the CUDA plug-in to its driver fails once, in turn: one error each time, nothing left over, and a new context works.
 * On the shim, which is loaded where LORA_C_BACKENDS names it. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "tests/c/check_ops.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/tiny_decoder.h"

typedef int64_t fail_at_fn(int64_t n);
typedef int64_t live_fn(void);

enum { PATH_BYTES = 1024 };

static void *symbol_of_shim(const char *name) {
    const char *at = strstr(backend_paths(), "liblora_c_shim.so");
    if (!at) return NULL;
    const char *begin = at;
    while (begin > backend_paths() && begin[-1] != ':') begin--;
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%.*s", (int)(at - begin + (int)strlen("liblora_c_shim.so")), begin);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* stays */
    return handle ? dlsym(handle, name) : NULL;
}

static lora_status train(lora_ctx *ctx, double *loss, lora_error *err) {
    tiny_decoder t;
    lora_batch batch = tiny_batch();
    lora_status status = tiny_decoder_make(ctx, 0.1f, -1, &t, err);
    if (status == LORA_OK) {
        status = MIRRORED(lora_decoder_forward_backward(t.decoder, &batch, 1, loss, err));
        const lora_error *copies = mirror_failure();
        if (status == LORA_OK && copies) status = lora_fail(err, copies->code, "%s", copies->message);
    }
    if (t.decoder) tiny_decoder_free(&t);
    return status;
}

/* From the context to its end. */
static lora_status whole_life(lora_ctx *engine, double *loss, lora_error *err) {
    lora_ctx *ctx;
    LORA_TRY(lora_ctx_create_on(engine, "shim", backend_paths(), &ctx, err));
    lora_status status = train(ctx, loss, err);
    if (status == LORA_OK) status = lora_stream_follows(ctx, lora_ctx_stream(ctx), lora_ctx_stream(ctx), err);
    mirror_forget(ctx);
    lora_ctx_destroy(ctx);
    return status;
}

void check_cuda_faults(void) {
    void *symbols[] = {symbol_of_shim("shim_fail_at"), symbol_of_shim("shim_live")};
    if (!symbols[0] || !symbols[1]) return;
    fail_at_fn *fail_at;
    live_fn *live;
    memcpy(&fail_at, &symbols[0], sizeof fail_at);
    memcpy(&live, &symbols[1], sizeof live);
    lora_ctx *engine = check_ctx(LORA_ISA_AUTO, 1);
    double right = 0, loss = 0;
    int64_t before = live();
    mirror_may_fail(true);
    (void)fail_at(0);
    OK(whole_life(engine, &right, ERR));
    int64_t calls = fail_at(0);
    CHECK(calls > 100 && live() == before, "%lld calls, %lld things left over", (long long)calls, (long long)(live() - before));
    for (int64_t n = 1; n <= calls; n++) {
        lora_error err = {0};
        (void)fail_at(n);
        lora_status status = whole_life(engine, &loss, &err);
        (void)fail_at(0);
        if (status == LORA_OK)
            CHECK(loss == right, "call %lld: its failure is lost, and the loss is %g, not %g", (long long)n, loss, right);
        if (status != LORA_OK) CHECK(strstr(err.message, ": expected "), "call %lld: message %s", (long long)n, err.message);
        CHECK(live() == before, "call %lld: %lld things left over after: %s", (long long)n, (long long)(live() - before), err.message);
    }
    mirror_may_fail(false);
    OK(whole_life(engine, &loss, ERR));
    CHECK(loss == right, "the loss is %g, not %g", loss, right);
    lora_ctx_destroy(engine);
}
