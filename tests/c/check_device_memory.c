/* Memory of devices: its contents, its accounts, transfers, outputs, and many threads that take and give back. */
#include <stdatomic.h>

#include "lora_c/base/os.h"
#include "tests/c/check_ops.h"
#include "tests/c/devices.h"

enum { N = 1000 };

static bool on_host(const lora_ctx *ctx) { return ctx->view.backend->host_memory; }

/* --- contents --- */

static void check_contents(lora_ctx *ctx) {
    float in[N], out[N], zeros[N] = {0};
    check_normal(in, N, 1, 1);
    float *p = lora_ctx_alloc(ctx, LORA_MEM_PARAM, sizeof in), *q = lora_ctx_alloc_uncleared(ctx, LORA_MEM_PARAM, sizeof in);
    CHECK((uintptr_t)p % 64 == 0 && (uintptr_t)q % 64 == 0, "addresses are multiples of 64");
    OK(lora_download(ctx, out, p, sizeof out, ERR));
    OK(lora_sync(ctx, ERR));
    CHECK(memcmp(out, zeros, sizeof out) == 0, "new memory is zero");
    OK(lora_upload(ctx, p, in, sizeof in, ERR));
    OK(lora_upload(ctx, q, in, sizeof in, ERR));
    OK(lora_clear(ctx, q + 10, 20 * sizeof *q, ERR)); /* in the order of the calls */
    OK(lora_download(ctx, out, p, sizeof out, ERR));
    OK(lora_sync(ctx, ERR));
    CHECK(memcmp(out, in, sizeof out) == 0, "there and back");
    OK(lora_download(ctx, out, q, sizeof out, ERR));
    OK(lora_sync(ctx, ERR));
    memset(in + 10, 0, 20 * sizeof *in);
    CHECK(memcmp(out, in, sizeof out) == 0, "cleared in the middle");
    void *empty = lora_ctx_alloc(ctx, LORA_MEM_PARAM, 0);
    CHECK(empty != NULL, "no bytes are a pointer, too");
    lora_ctx_free(ctx, empty);
    lora_ctx_free(ctx, p);
    lora_ctx_free(ctx, q);
    lora_ctx_free(ctx, NULL);
    CHECK(lora_ctx_alloc(ctx, LORA_MEM_PARAM, SIZE_MAX / 2) == NULL, "more than there can be is refused");
}

static void check_stage(lora_ctx *ctx) {
    float out[N];
    float *stage = lora_stage_alloc(ctx, N * sizeof *stage), *p = lora_ctx_alloc(ctx, LORA_MEM_PARAM, N * sizeof *stage);
    for (int round = 1; round <= 3; round++) {
        float want[N];
        check_normal(want, N, (uint64_t)round, 1);
        memcpy(stage, want, sizeof want); /* filled anew each time */
        OK(lora_upload(ctx, p, stage, sizeof want, ERR));
        OK(lora_download(ctx, out, p, sizeof out, ERR));
        OK(lora_sync(ctx, ERR));
        CHECK(memcmp(out, want, sizeof out) == 0, "round %d through the stage", round);
    }
    memset(stage, 0, sizeof out);
    OK(lora_upload(ctx, p, stage, sizeof out, ERR));
    lora_stage_free(ctx, stage); /* before a sync */
    lora_stage_free(ctx, NULL);
    OK(lora_sync(ctx, ERR));
    lora_ctx_free(ctx, p);
}

/* --- accounts --- */

static void check_accounts(lora_ctx *ctx) {
    size_t before = lora_ctx_memory(ctx, LORA_MEM_GRAD).live_bytes, all = lora_ctx_memory_total(ctx).live_bytes;
    void *a = lora_ctx_alloc(ctx, LORA_MEM_GRAD, 1000), *b = lora_ctx_alloc(ctx, LORA_MEM_GRAD, 500);
    CHECK(lora_ctx_memory(ctx, LORA_MEM_GRAD).live_bytes == before + 1500 && lora_ctx_memory_total(ctx).live_bytes == all + 1500,
          "live bytes");
    lora_ctx_free(ctx, a);
    CHECK(lora_ctx_memory(ctx, LORA_MEM_GRAD).live_bytes == before + 500, "live bytes fall at once");
    CHECK(lora_ctx_memory(ctx, LORA_MEM_GRAD).peak_bytes >= before + 1500, "the peak stays");
    lora_ctx_reset_peak(ctx);
    CHECK(lora_ctx_memory(ctx, LORA_MEM_GRAD).peak_bytes == before + 500 && lora_ctx_memory_total(ctx).peak_bytes == all + 500,
          "until it is reset");
    lora_ctx_free(ctx, b);
    void *host = lora_host_alloc(ctx, LORA_MEM_SCRATCH, 16); /* the host's, whatever the device */
    memset(host, 1, 16);
    lora_host_free(ctx, host);
    CHECK(lora_ctx_memory_total(ctx).live_bytes == all, "all is given back");
}

/* --- outputs --- */

static void check_outputs(lora_ctx *ctx) {
    float host[N] = {0}, want[N], kept[N];
    check_normal(want, N, 3, 1);
    size_t live = lora_ctx_memory(ctx, LORA_MEM_ACTIVATION).live_bytes;
    void *out;
    OK(lora_output_open(ctx, host, sizeof host, &out, ERR));
    CHECK((out == host) == on_host(ctx), "an output is the host's array on the CPU alone");
    OK(lora_upload(ctx, out, want, sizeof want, ERR));
    OK(lora_output_close(ctx, host, sizeof host, out, LORA_OK, ERR));
    OK(lora_sync(ctx, ERR));
    CHECK(memcmp(host, want, sizeof host) == 0, "an output comes to the host");
    memcpy(kept, host, sizeof kept);
    OK(lora_output_open(ctx, host, sizeof host, &out, ERR));
    lora_error err = {.message = "as it was"};
    CHECK(lora_output_close(ctx, host, sizeof host, out, LORA_ESHAPE, &err) == LORA_ESHAPE && strcmp(err.message, "as it was") == 0,
          "a failure goes through");
    CHECK(memcmp(host, kept, sizeof host) == 0, "a failure leaves the host's array");
    OK(lora_sync(ctx, ERR)); /* given back by then */
    CHECK(lora_ctx_memory(ctx, LORA_MEM_ACTIVATION).live_bytes == live, "outputs give back their memory");
    if (!device_allocations_fail(ctx)) return;
    ctx->engine->mem.fail_after = 0;
    lora_status status = lora_output_open(ctx, host, sizeof host, &out, &err);
    ctx->engine->mem.fail_after = -1;
    CHECK(on_host(ctx) ? status == LORA_OK : status == LORA_ENOMEM && strstr(err.message, "output: expected 4000 bytes on the device"),
          "%s", err.message);
}

static void check_counts(lora_ctx *ctx) {
    char bytes[100] = {0};
    void *p = lora_ctx_alloc(ctx, LORA_MEM_PARAM, sizeof bytes);
    lora_transfers before = lora_ctx_transfers(ctx);
    OK(lora_upload(ctx, p, bytes, 100, ERR));
    OK(lora_upload(ctx, p, bytes, 10, ERR));
    OK(lora_download(ctx, bytes, p, 7, ERR));
    OK(lora_sync(ctx, ERR));
    lora_transfers after = lora_ctx_transfers(ctx);
    CHECK(after.uploads - before.uploads == 2 && after.uploaded_bytes - before.uploaded_bytes == 110, "uploads");
    CHECK(after.downloads - before.downloads == 1 && after.downloaded_bytes - before.downloaded_bytes == 7, "downloads");
    CHECK(after.syncs - before.syncs == 1, "syncs");
    lora_ctx_free(ctx, p);
}

/* --- streams --- */

/* The stream of another context of the device waits, and not the host: what was asked of the first has happened when the second ends. */
static void check_streams(lora_ctx *ctx) {
    lora_ctx *other = device_ctx(LORA_ISA_AUTO, 1);
    float in[N], out[N];
    check_normal(in, N, 4, 1);
    float *p = lora_ctx_alloc(ctx, LORA_MEM_PARAM, sizeof in);
    OK(lora_sync(ctx, ERR));
    lora_transfers before = lora_ctx_transfers(ctx);
    OK(lora_upload(ctx, p, in, sizeof in, ERR));
    OK(lora_download(ctx, out, p, sizeof out, ERR));
    OK(lora_stream_follows(ctx, lora_ctx_stream(other), lora_ctx_stream(ctx), ERR));
    CHECK(lora_ctx_transfers(ctx).syncs == before.syncs, "nobody waits");
    OK(lora_sync(other, ERR));
    CHECK(memcmp(out, in, sizeof out) == 0, "the stream of another context goes on after this one's");
    CHECK(!on_host(ctx) || !lora_ctx_stream(ctx), "the CPU has no stream");
    lora_ctx_free(ctx, p);
    device_ctx_free(other);
}

/* --- threads --- */

enum { THREADS = 4, ROUNDS = 12000, HELD = 8 };

typedef struct block {
    char *begin;
    size_t bytes;
} block;

typedef struct taker {
    lora_ctx *ctx;
    uint64_t random;
    block held[HELD];
    int refused;
    atomic_bool done;
} taker;

static void take_and_give(void *arg) {
    taker *t = arg;
    for (int i = 0; i < ROUNDS; i++) {
        t->random = t->random * 6364136223846793005u + 1442695040888963407u;
        block *b = &t->held[(t->random >> 33) % HELD];
        lora_ctx_free(t->ctx, b->begin);
        b->bytes = (t->random >> 40) % 5000;
        b->begin = i % 2 ? lora_ctx_alloc(t->ctx, LORA_MEM_GRAD, b->bytes) : lora_ctx_alloc_uncleared(t->ctx, LORA_MEM_GRAD, b->bytes);
        if (!b->begin) t->refused++;
    }
    atomic_store(&t->done, true);
}

static bool apart(const taker *takers) {
    for (int i = 0; i < THREADS * HELD; i++)
        for (int j = 0; j < i; j++) {
            const block *a = &takers[i / HELD].held[i % HELD], *b = &takers[j / HELD].held[j % HELD];
            if (a->begin && b->begin && a->begin < b->begin + b->bytes && b->begin < a->begin + a->bytes) return false;
        }
    return true;
}

/* Where one block goes that is larger than all that the threads hold: the same place again when nothing is left between. */
static void *place_of_large_block(lora_ctx *ctx) {
    void *p = lora_ctx_alloc_uncleared(ctx, LORA_MEM_GRAD, THREADS * HELD * 2 * 5000);
    lora_ctx_free(ctx, p);
    OK(lora_sync(ctx, ERR));
    return p;
}

/* Whether p (N) on the device holds twice in, once it was sent and doubled there. */
static bool doubled(lora_ctx *ctx, float *p, const float *in) {
    float out[N];
    lora_mat there = lora_mat_f32(p, 1, N, N);
    bool done = lora_upload(ctx, p, in, sizeof out, NULL) == LORA_OK && lora_scale_rows(ctx, 2, there, there, false, NULL) == LORA_OK &&
                lora_download(ctx, out, p, sizeof out, NULL) == LORA_OK && lora_sync(ctx, NULL) == LORA_OK;
    for (int i = 0; i < N; i++) done &= out[i] == 2 * in[i];
    return done;
}

/* Threads take and give back while this one computes: lora_ctx_alloc and lora_ctx_free need no lock. */
static void check_threads(lora_ctx *ctx) {
    size_t before = lora_ctx_memory(ctx, LORA_MEM_GRAD).live_bytes;
    static taker takers[THREADS];
    static lora_thread threads[THREADS];
    float in[N];
    check_normal(in, N, 2, 1);
    float *p = lora_ctx_alloc(ctx, LORA_MEM_PARAM, sizeof in);
    void *place = place_of_large_block(ctx);
    for (int t = 0; t < THREADS; t++) {
        takers[t] = (taker){.ctx = ctx, .random = (uint64_t)t};
        CHECK(lora_thread_start(&threads[t], take_and_give, &takers[t]), "a thread");
    }
    bool right = true;
    for (int running = THREADS; running > 0;) {
        right &= doubled(ctx, p, in);
        running = 0;
        for (int t = 0; t < THREADS; t++) running += !atomic_load(&takers[t].done);
    }
    CHECK(right, "an operation beside other threads");
    size_t held = 0;
    for (int t = 0; t < THREADS; t++) {
        lora_thread_join(&threads[t]);
        CHECK(takers[t].refused == 0, "thread %d was refused memory", t);
        for (int i = 0; i < HELD; i++) held += takers[t].held[i].bytes;
    }
    CHECK(apart(takers), "two blocks overlap");
    CHECK(lora_ctx_memory(ctx, LORA_MEM_GRAD).live_bytes == before + held, "live bytes of all threads");
    for (int t = 0; t < THREADS; t++)
        for (int i = 0; i < HELD; i++) lora_ctx_free(ctx, takers[t].held[i].begin);
    OK(lora_sync(ctx, ERR));
    CHECK(lora_ctx_memory(ctx, LORA_MEM_GRAD).live_bytes == before, "all is given back");
    CHECK(strcmp(lora_ctx_device(ctx), "fake") != 0 || place_of_large_block(ctx) == place, "a block was given back and is still there");
    lora_ctx_free(ctx, p);
}

/* What a device has, and that it knows of what is taken: to the byte of the tests' own, elsewhere others take and give, too. What
 * the CUDA plug-in's pool keeps unused is free: its emulated driver gives nothing back. */
static void check_info(lora_ctx *ctx) {
    enum { TAKEN = 1 << 20, READABLE = 64 /* bytes past the end */ };
    lora_memory_info before, after;
    OK(lora_ctx_memory_info(ctx, &before, ERR));
    CHECK(before.total_bytes > 0 && before.free_bytes <= before.total_bytes, "%zu of %zu bytes are free", before.free_bytes,
          before.total_bytes);
    void *p = lora_ctx_alloc(ctx, LORA_MEM_GRAD, TAKEN);
    OK(lora_ctx_memory_info(ctx, &after, ERR));
    CHECK(after.total_bytes == before.total_bytes, "the total stays");
    bool shim = strcmp(lora_ctx_device(ctx), "shim") == 0, exact = shim || strcmp(lora_ctx_device(ctx), "fake") == 0;
    size_t taken = TAKEN + (shim ? READABLE : 0);
    CHECK(!exact || after.free_bytes == before.free_bytes - taken, "%zu bytes are free, then %zu", before.free_bytes, after.free_bytes);
    lora_ctx_free(ctx, p);
    OK(lora_ctx_memory_info(ctx, &after, ERR));
    CHECK(!exact || after.free_bytes == before.free_bytes, "%zu bytes are free, at the end %zu", before.free_bytes, after.free_bytes);
}

static void check_on_device(void) {
    lora_ctx *ctx = device_ctx(LORA_ISA_AUTO, 2);
    check_contents(ctx);
    check_stage(ctx);
    check_accounts(ctx);
    check_info(ctx);
    check_outputs(ctx);
    check_counts(ctx);
    check_streams(ctx);
    check_threads(ctx);
    device_ctx_free(ctx);
}

void check_device_memory(void) { on_every_device(check_on_device); }
