/* Contexts: views of an engine on a device. */
#include <stdatomic.h>

#include "lora_c/backend/load.h"
#include "lora_c/base/cpuinfo.h"
#include "lora_c/base/util.h"
#include "lora_c/ops/ctx.h"
#include "lora_c/watch.h"

#if defined(__aarch64__)
#define ISA_NAMES {"ref", "portable", "neon"}
#define ISA_CHOICE "ref, portable or neon"
#else
#define ISA_NAMES {"ref", "portable", "avx2", "avx512"}
#define ISA_CHOICE "ref, portable, avx2 or avx512"
#endif

const char *lora_isa_name(lora_isa isa) {
    static const char *const names[] = ISA_NAMES;
    return isa >= LORA_ISA_REF && isa <= LORA_ISA_LAST ? names[isa] : "auto";
}

/* The block of the engine is not counted: the accounts lie inside it. */
static lora_engine *make_engine(lora_error *err) {
    lora_mem mem;
    lora_mem_init(&mem);
    lora_engine *engine = lora_mem_calloc(&mem, LORA_MEM_SCRATCH, sizeof *engine);
    if (!engine) {
        (void)lora_fail(err, LORA_ENOMEM, "context: expected %zu bytes, got none", sizeof *engine);
        return NULL;
    }
    lora_mem_init(&engine->mem);
    lora_mutex_init(&engine->lock);
    atomic_store(&engine->owner, lora_process_id());
    engine->cpu = (lora_device_use){.backend = &lora_cpu_backend, .state = engine, .name = "cpu"};
    return engine;
}

static void free_engine(lora_engine *engine) {
    lora_pool_destroy(engine->pool);
    lora_unload_backends(engine); /* after the threads, which may stand in code of a library that computed with them */
    for (int i = 0; i < LORA_SCRATCH_SLOTS; i++) lora_mem_free(&engine->mem, engine->scratch[i].data);
    lora_mutex_destroy(&engine->lock);
    lora_mem spare;
    lora_mem_init(&spare);
    lora_mem_free(&spare, engine);
}

/* A context of the engine on a device that the caller holds. */
static lora_status make_ctx(lora_engine *engine, lora_device_use *device, lora_ctx **out, lora_error *err) {
    *out = lora_mem_calloc(&engine->mem, LORA_MEM_SCRATCH, sizeof **out);
    LORA_CHECK(*out, err, LORA_ENOMEM, "context: expected %zu bytes, got none", sizeof **out);
    **out = (lora_ctx){.view = {.backend = device->backend, .state = device->state}, .engine = engine, .device = device};
    return LORA_OK;
}

static lora_status apply_options(lora_ctx *ctx, const lora_ctx_options *options, lora_error *err) {
    LORA_TRY(lora_ctx_set_isa(ctx, options ? options->isa : LORA_ISA_AUTO, err));
    LORA_TRY(lora_ctx_set_precision(ctx, options ? options->precision : LORA_PRECISION_EXACT, err));
    return lora_ctx_set_threads(ctx, options ? options->n_threads : 0, err);
}

lora_status lora_ctx_create(const lora_ctx_options *options, lora_ctx **out, lora_error *err) {
    *out = NULL;
    lora_engine *engine = make_engine(err);
    if (!engine) return LORA_ENOMEM;
    lora_ctx *ctx;
    lora_status status = make_ctx(engine, &engine->cpu, &ctx, err);
    if (status != LORA_OK) {
        free_engine(engine);
        return status;
    }
    ctx->owns_engine = true;
    status = apply_options(ctx, options, err);
    if (status == LORA_OK)
        *out = ctx;
    else
        lora_ctx_destroy(ctx);
    return status;
}

lora_status lora_ctx_create_view(lora_ctx *ctx, lora_ctx **out, lora_error *err) {
    LORA_TRY(make_ctx(ctx->engine, ctx->device, out, err));
    (*out)->view.precision = ctx->view.precision;
    return LORA_OK;
}

lora_status lora_ctx_create_on(lora_ctx *ctx, const char *device, const char *paths, lora_ctx **out, lora_error *err) {
    lora_device_use *use;
    *out = NULL;
    LORA_TRY(lora_device_open(ctx, device, paths, &use, err));
    lora_status status = make_ctx(ctx->engine, use, out, err);
    if (status != LORA_OK) {
        lora_device_close(ctx->engine, use);
        return status;
    }
    (*out)->owns_device = use != &ctx->engine->cpu;
    status = lora_ctx_set_precision(*out, ctx->view.precision, err);
    if (status == LORA_OK) return LORA_OK;
    lora_ctx_destroy(*out);
    *out = NULL;
    return status;
}

const char *lora_ctx_device(const lora_ctx *ctx) { return ctx->device->name; }

void lora_ctx_destroy(lora_ctx *ctx) {
    if (!ctx) return;
    lora_engine *engine = ctx->engine;
    bool last = ctx->owns_engine;
    lora_status off = lora_ctx_watch(ctx, false, NULL);
    (void)off; /* nothing is allocated for it */
    if (ctx->owns_device) lora_device_close(engine, ctx->device);
    lora_mem_free(&engine->mem, ctx);
    if (last) free_engine(engine);
}

/* After fork the lock may be held by a thread that the child does not have: the child's first caller makes a new one, and
 * brings in order what that thread had begun to change. Whoever does it stands in owner as -pid, so that a child that is
 * forked meanwhile does not wait for it. */
static void own_lock(lora_ctx *ctx) {
    int self = lora_process_id(), owner = atomic_load(&ctx->engine->owner);
    while (owner != self) {
        if (owner != -self && atomic_compare_exchange_strong(&ctx->engine->owner, &owner, -self)) {
            lora_mutex_init(&ctx->engine->lock);
            lora_kernels_init(&ctx->engine->kernels, ctx->engine->kernels.isa);
            atomic_store(&ctx->engine->owner, self);
        }
        owner = atomic_load(&ctx->engine->owner);
    }
}

void lora_ctx_lock(lora_ctx *ctx) {
    own_lock(ctx);
    lora_mutex_lock(&ctx->engine->lock);
}

void lora_ctx_unlock(lora_ctx *ctx) { lora_mutex_unlock(&ctx->engine->lock); }

lora_status lora_ctx_set_threads(lora_ctx *ctx, int n_threads, lora_error *err) {
    lora_pool *pool, *old = ctx->engine->pool;
    LORA_TRY(lora_pool_create(&ctx->engine->mem, n_threads == 0 ? lora_default_threads() : n_threads, &pool, err));
    ctx->engine->pool = pool; /* first: a child forked right here must not have a freed one */
    lora_pool_destroy(old);
    return LORA_OK;
}

int lora_ctx_threads(const lora_ctx *ctx) { return lora_pool_threads(ctx->engine->pool); }

lora_status lora_ctx_set_isa(lora_ctx *ctx, lora_isa isa, lora_error *err) {
    lora_isa best = lora_cpu_best_isa();
    if (isa == LORA_ISA_AUTO) isa = best;
    LORA_CHECK(isa >= LORA_ISA_REF && isa <= LORA_ISA_LAST, err, LORA_EINVAL, "isa: expected " ISA_CHOICE ", got %d", (int)isa);
    LORA_CHECK(isa <= best, err, LORA_EUNSUPPORTED, "isa: expected at most %s on this CPU, got %s", lora_isa_name(best),
               lora_isa_name(isa));
    lora_kernels_init(&ctx->engine->kernels, isa);
    return LORA_OK;
}

bool lora_ctx_has_int8(const lora_ctx *ctx) { return ctx->view.backend->has_int8; }

lora_status lora_ctx_set_precision(lora_ctx *ctx, lora_precision precision, lora_error *err) {
    LORA_CHECK(precision >= LORA_PRECISION_EXACT && precision <= LORA_PRECISION_INT8, err, LORA_EINVAL,
               "precision: expected exact, fast or int8, got %d", (int)precision);
    LORA_CHECK(precision != LORA_PRECISION_INT8 || lora_ctx_has_int8(ctx), err, LORA_EUNSUPPORTED,
               "precision: expected exact or fast on device %s, got int8", ctx->device->name);
    ctx->view.precision = precision;
    return LORA_OK;
}

lora_precision lora_ctx_precision(const lora_ctx *ctx) { return ctx->view.precision; }

const char *lora_precision_name(lora_precision precision) {
    return precision == LORA_PRECISION_INT8 ? "int8" : precision == LORA_PRECISION_FAST ? "fast" : "exact";
}

_Static_assert((int)LORA_OPERANDS_FLOAT32 == (int)LORA_GEMM_EXACT && (int)LORA_OPERANDS_BFLOAT16 == (int)LORA_GEMM_BF16 &&
                   (int)LORA_OPERANDS_INT16 == (int)LORA_GEMM_INT16,
               "operands are the paths of the products");

lora_status lora_ctx_set_fast_operands(lora_ctx *ctx, lora_operands operands, lora_error *err) {
    if (operands == LORA_OPERANDS_AUTO) return lora_ctx_set_isa(ctx, ctx->engine->kernels.isa, err);
    LORA_CHECK(operands >= LORA_OPERANDS_FLOAT32 && operands <= LORA_OPERANDS_INT16, err, LORA_EINVAL,
               "operands: expected float32, bfloat16 or int16, got %d", (int)operands);
    LORA_CHECK(lora_kernels_set_fast(&ctx->engine->kernels, (lora_gemm_arithmetic)operands), err, LORA_EUNSUPPORTED,
               "operands: expected what the kernels %s of this CPU have, got %s", lora_isa_name(ctx->engine->kernels.isa),
               lora_operands_name(operands));
    return LORA_OK;
}

lora_operands lora_ctx_fast_operands(const lora_ctx *ctx) { return (lora_operands)ctx->engine->kernels.gemm.fast; }

const char *lora_operands_name(lora_operands operands) {
    static const char *const names[] = {"float32", "bfloat16", "int16"};
    return operands >= LORA_OPERANDS_FLOAT32 && operands <= LORA_OPERANDS_INT16 ? names[operands] : "auto";
}

const char *lora_ctx_operands(const lora_ctx *ctx) {
    if (ctx->view.precision == LORA_PRECISION_INT8) return "int8";
    return lora_operands_name(ctx->view.precision == LORA_PRECISION_FAST ? lora_ctx_fast_operands(ctx) : LORA_OPERANDS_FLOAT32);
}

lora_isa lora_ctx_isa(const lora_ctx *ctx) { return ctx->engine->kernels.isa; }
