/* Status, memory accounts, halves, random numbers, and the thread pool. */
#include <stdio.h>
#include <string.h>

#include "lora_c/base/alloc.h"
#include "lora_c/base/half.h"
#include "lora_c/base/parallel.h"
#include "lora_c/base/philox.h"
#include "tests/c/check.h"
#include "tests/c/children.h"

static void check_status(void) {
    lora_error err;
    char big[600];
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = 0;
    CHECK(lora_fail(&err, LORA_ESHAPE, "%s", big) == LORA_ESHAPE && strlen(err.message) == LORA_ERROR_BYTES - 1, "long messages are cut");
    CHECK(lora_fail(NULL, LORA_EBUSY, "no error object") == LORA_EBUSY, "a NULL error is allowed");
}

static void check_memory(void) {
    lora_mem mem;
    lora_mem_init(&mem);
    char *a = lora_mem_alloc(&mem, LORA_MEM_GRAD, 1000), *b = lora_mem_calloc(&mem, LORA_MEM_BASE, 24);
    CHECK((uintptr_t)a % 64 == 0 && (uintptr_t)b % 64 == 0, "alignment");
    CHECK(mem.live[LORA_MEM_GRAD] == 1000 && mem.total_live == 1024, "live bytes");
    for (int i = 0; i < 24; i++) CHECK(b[i] == 0, "calloc clears byte %d", i);
    lora_mem_free(&mem, a);
    lora_mem_free(&mem, b);
    lora_mem_free(&mem, NULL);
    CHECK(mem.total_live == 0 && mem.total_peak == 1024 && mem.peak[LORA_MEM_GRAD] == 1000, "peaks stay");
    CHECK(lora_mem_alloc(&mem, LORA_MEM_BASE, SIZE_MAX - 10) == NULL, "absurd sizes are refused");
    mem.fail_after = 1;
    a = lora_mem_alloc(&mem, LORA_MEM_BASE, 1);
    CHECK(a && !lora_mem_alloc(&mem, LORA_MEM_BASE, 1), "the second allocation fails");
    lora_mem_free(&mem, a);
}

/* Every 16-bit pattern survives a round trip; narrowing is compared with the definition on values between neighbours. */
static void check_halves(void) {
    long bad = 0;
    for (uint32_t h = 0; h < 0x10000; h++) {
        bool f16_nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff), bf16_nan = (h & 0x7f80) == 0x7f80 && (h & 0x7f);
        bad += !f16_nan && lora_f32_to_f16(lora_f16_to_f32((uint16_t)h)) != h;
        bad += !bf16_nan && lora_f32_to_bf16(lora_bf16_to_f32((uint16_t)h)) != h;
        bad += f16_nan && !isnan(lora_f16_to_f32((uint16_t)h));
        bad += bf16_nan && !isnan(lora_bf16_to_f32(lora_f32_to_bf16(lora_bf16_to_f32((uint16_t)h))));
    }
    for (uint32_t h = 0; h < 0x7bff; h++) { /* the midpoint goes to the even neighbour, a little more goes up */
        float low = lora_f16_to_f32((uint16_t)h), high = lora_f16_to_f32((uint16_t)(h + 1)), middle = 0.5f * (low + high);
        bad += lora_f32_to_f16(middle) != (h & 1 ? h + 1 : h);
        bad += lora_f32_to_f16(nextafterf(middle, high)) != h + 1;
        bad += lora_f32_to_f16(nextafterf(middle, low)) != h;
    }
    for (uint32_t h = 0; h < 0x7f7f; h++) { /* the same for bfloat16, in bits: neighbours are 0x10000 apart */
        uint32_t low = h << 16;
        bad += lora_f32_to_bf16(lora_f32_bits(low + 0x8000)) != (h & 1 ? h + 1 : h);
        bad += lora_f32_to_bf16(lora_f32_bits(low + 0x8001)) != h + 1;
        bad += lora_f32_to_bf16(lora_f32_bits(low + 0x7fff)) != h;
    }
    CHECK(bad == 0, "%ld wrong conversions", bad);
    CHECK(lora_f32_to_f16(1e6f) == 0x7c00 && lora_f32_to_f16(-1e6f) == 0xfc00, "overflow is infinity");
}

/* Known answers of the authors' Random123 package (kat_vectors, philox4x32 10). */
static void check_philox(void) {
    uint32_t out[4];
    lora_philox4x32(0, 0, 0, out);
    CHECK(out[0] == 0x6627e8d5 && out[1] == 0xe169c58d && out[2] == 0xbc57ac4c && out[3] == 0x9b00dbd8, "zeros: %08x", out[0]);
    lora_philox4x32(UINT64_MAX, UINT64_MAX, UINT64_MAX, out);
    CHECK(out[0] == 0x408f276d && out[1] == 0x41c83b0e && out[2] == 0xa20bc7c6 && out[3] == 0x6d5451fd, "ones: %08x", out[0]);
    lora_philox4x32(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, out);
    CHECK(out[0] == 0xd16cfe09 && out[1] == 0x94fdcceb && out[2] == 0x5001e420 && out[3] == 0x24126ea1, "digits of pi: %08x", out[0]);
    lora_philox4x32(3, 1, 25, out);
    for (uint64_t i = 0; i < 4; i++) CHECK(lora_philox_uniform(3, 1, 100 + i) == lora_philox_to_uniform(out[i]), "word %d", (int)i);
    CHECK(lora_philox_to_uniform(UINT32_MAX) < 1, "1 is not reached");
    double sum = 0;
    for (int i = 0; i < 100000; i++) sum += (double)lora_philox_uniform(3, 1, (uint64_t)i);
    CHECK(fabs(sum / 100000 - 0.5) < 0.005, "mean %f", sum / 100000);
}

enum { TASKS = 1000 };

static void count_task(void *arg, int64_t task, int worker) {
    (void)worker;
    _Atomic int *counts = arg;
    counts[task]++;
}

static bool every_task_ran_once(lora_pool *pool) {
    static _Atomic int counts[TASKS];
    memset((void *)counts, 0, sizeof counts);
    for (int round = 1; round <= 40; round++) {
        int n = round <= 20 ? TASKS : round % 11; /* fewer than threads too */
        (round % 2 ? lora_parallel_for : lora_parallel_near)(pool, n, count_task, (void *)counts);
        for (int i = 0; i < TASKS; i++) {
            if (counts[i] != (i < n)) return false;
            counts[i] = 0;
        }
    }
    return true;
}

static void use_worker(void *arg, int64_t task, int worker) {
    (void)task;
    _Atomic int *users = arg;
    if (atomic_fetch_add(&users[worker], 1) != 0) users[256] = 1;
    for (volatile int i = 0; i < 200; i++) {}
    atomic_fetch_sub(&users[worker], 1);
}

/* Two tasks that run at the same time never have the same worker number: per-thread scratch relies on it. */
static void check_workers_are_distinct(lora_pool *pool) {
    static _Atomic int users[257];
    for (int round = 0; round < 200; round++)
        (round % 2 ? lora_parallel_for : lora_parallel_near)(pool, 2 + round % 7, use_worker, (void *)users);
    CHECK(users[256] == 0, "a worker number was used twice at a time");
}

static int runs_tasks(void *pool) { return every_task_ran_once(pool) ? 0 : 1; }

static void check_pool(void) {
    static const int sizes[] = {1, 2, 3, 8, 64};
    lora_error err;
    lora_mem mem;
    lora_mem_init(&mem);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        lora_pool *pool;
        CHECK(lora_pool_create(&mem, sizes[i], &pool, &err) == LORA_OK, "%s", err.message);
        CHECK(every_task_ran_once(pool), "%d threads", sizes[i]);
        check_workers_are_distinct(pool);
        /* threads do not survive fork: the child makes its own */
        CHECK(!has_children() || end_of_child(runs_tasks, pool) == 0, "%d threads after fork", sizes[i]);
        lora_pool_destroy(pool);
    }
    lora_pool *none;
    CHECK(lora_pool_create(&mem, 0, &none, &err) == LORA_EINVAL && none == NULL, "0 threads are refused");
    CHECK(mem.total_live == 0, "%zu bytes left", mem.total_live);
}

/* A child may be forked while another thread of its parent holds the context: its own first call must not wait for ever. */
static int takes_the_lock(void *ctx) {
    lora_ctx_lock(ctx);
    lora_ctx_unlock(ctx);
    lora_ctx_destroy(ctx);
    return 0;
}

static void check_lock_after_fork(void) {
    lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 2);
    lora_ctx_lock(ctx);
    int end = has_children() ? end_of_child(takes_the_lock, ctx) : 0;
    CHECK(end == 0, "child ended with %d", end);
    lora_ctx_unlock(ctx);
    lora_ctx_destroy(ctx);
}

static void check_context(void) {
    lora_error err;
    lora_ctx *none = (lora_ctx *)&err;
    CHECK(lora_ctx_create(&(lora_ctx_options){.n_threads = 257, .isa = LORA_ISA_AUTO}, &none, &err) == LORA_EINVAL && !none, "257 threads");
    CHECK(lora_ctx_create(&(lora_ctx_options){.n_threads = 1, .isa = (lora_isa)9}, &none, &err) == LORA_EINVAL && !none, "rung 9");
    lora_ctx *ctx = check_ctx(LORA_ISA_AUTO, 1);
    CHECK(lora_ctx_isa(ctx) == lora_cpu_best_isa(), "AUTO is the best rung, got %s", lora_isa_name(lora_ctx_isa(ctx)));
    for (int isa = lora_cpu_best_isa() + 1; isa <= LORA_ISA_LAST; isa++)
        CHECK(lora_ctx_set_isa(ctx, (lora_isa)isa, &err) == LORA_EUNSUPPORTED, "%s is above this CPU", lora_isa_name((lora_isa)isa));
    CHECK(lora_ctx_set_threads(ctx, -1, &err) == LORA_EINVAL && lora_ctx_threads(ctx) == 1, "a refused number changes nothing");
    lora_ctx_destroy(ctx);
    lora_ctx_destroy(NULL);
}

void check_base(void) {
    check_status();
    check_memory();
    check_halves();
    check_philox();
    check_pool();
    check_context();
    check_lock_after_fork();
}
