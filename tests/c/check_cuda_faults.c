/* Every call of the CUDA plug-in to its driver fails once, in turn: one error each time, nothing left over, and a new context works.
 * On the shim, which is loaded where LORA_C_BACKENDS names it. */
#include <string.h>

#include "tests/c/check_ops.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/shim_symbols.h"
#include "tests/c/tiny_decoder.h"

/* What is done between the begin of a context and its end; *result: a number that comes out. */
typedef lora_status life_fn(lora_decoder *d, double *result, lora_error *err);

static lora_status train(lora_decoder *d, double *result, lora_error *err) {
    lora_batch batch = tiny_batch();
    return MIRRORED(lora_decoder_forward_backward(d, &batch, 1, result, err));
}

/* Three tokens: the launches of the second one are made a graph, which changes for the third. */
static lora_status decode(lora_decoder *d, double *result, lora_error *err) {
    static float logits[TINY_VOCAB];
    lora_kv_cache *cache = NULL;
    lora_status status = MIRRORED(lora_kv_cache_create(d, 1, 8, &cache, err));
    for (int32_t id = 1; status == LORA_OK && id <= 3; id++)
        status = lora_decoder_decode(d, cache, 1, (int32_t[]){0, 1}, (int32_t[]){0}, &id, NULL, logits, err);
    lora_kv_cache_destroy(cache);
    *result = logits[0];
    return status;
}

static lora_status with_decoder(lora_ctx *ctx, life_fn *life, double *result, lora_error *err) {
    tiny_decoder t;
    lora_status status = tiny_decoder_make(ctx, 0.1f, -1, &t, err);
    if (status == LORA_OK) {
        status = life(t.decoder, result, err);
        const lora_error *copies = mirror_failure();
        if (status == LORA_OK && copies) status = lora_fail(err, copies->code, "%s", copies->message);
    }
    if (t.decoder) tiny_decoder_free(&t);
    return status;
}

/* From the context to its end. */
static lora_status whole_life(lora_ctx *engine, life_fn *life, double *result, lora_error *err) {
    lora_ctx *ctx;
    LORA_TRY(lora_ctx_create_on(engine, "shim", backend_paths(), &ctx, err));
    lora_status status = with_decoder(ctx, life, result, err);
    if (status == LORA_OK) status = lora_stream_follows(ctx, lora_ctx_stream(ctx), lora_ctx_stream(ctx), err);
    mirror_forget(ctx);
    lora_ctx_destroy(ctx);
    return status;
}

static void each_call_fails(const shim_symbols *shim, lora_ctx *engine, const char *name, life_fn *life) {
    double right = 0, result = 0;
    int64_t before = shim->live();
    mirror_may_fail(true);
    (void)shim->fail_at(0);
    OK(whole_life(engine, life, &right, ERR));
    int64_t calls = shim->fail_at(0), left = shim->live() - before;
    CHECK(calls > 100 && left == 0, "%s: %lld calls, %lld things left over", name, (long long)calls, (long long)left);
    for (int64_t n = 1; n <= calls; n++) {
        lora_error err = {0};
        (void)shim->fail_at(n);
        lora_status status = whole_life(engine, life, &result, &err);
        (void)shim->fail_at(0);
        left = shim->live() - before;
        if (status == LORA_OK)
            CHECK(result == right, "%s: the failure of call %lld is lost, and %g is not %g", name, (long long)n, result, right);
        if (status != LORA_OK) CHECK(strstr(err.message, ": expected "), "%s, call %lld: message %s", name, (long long)n, err.message);
        CHECK(left == 0, "%s, call %lld: %lld things left over after: %s", name, (long long)n, (long long)left, err.message);
    }
    mirror_may_fail(false);
    OK(whole_life(engine, life, &result, ERR));
    CHECK(result == right, "%s: the result is %g, not %g", name, result, right);
}

void check_cuda_faults(void) {
    shim_symbols shim;
    if (!find_shim_symbols(&shim)) return;
    lora_ctx *engine = check_ctx(LORA_ISA_AUTO, 1);
    each_call_fails(&shim, engine, "training", train);
    each_call_fails(&shim, engine, "decoding", decode);
    lora_ctx_destroy(engine);
}
