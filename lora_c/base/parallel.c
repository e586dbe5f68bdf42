#include "lora_c/base/parallel.h"

#include <stdatomic.h>

#include "lora_c/base/os.h"
#include "lora_c/base/util.h"

/* SPIN_ROUNDS by bench_decode, 135M, two threads on an AMD EPYC (Zen 4): 100 give 0.84 of the tokens a second, 10000
 * give 0.94. */
enum { MAX_THREADS = 256, SPIN_ROUNDS = 1000 };

/* gate counts the workers inside the present job; with this bit set there is no job to enter. */
#define GATE_CLOSED (UINT64_C(1) << 63)

/* Tasks that are handed out in order. */
typedef struct range {
    _Alignas(LORA_ALIGN) _Atomic int64_t next;
    int64_t end;
} range;

typedef struct worker {
    lora_pool *pool;
    lora_thread thread;
    int id;
} worker;

struct lora_pool {
    lora_mem *mem;
    int n_threads, n_started; /* workers started: n_threads - 1, or 0 while they are not needed or after fork */
    int owner;                /* process of the threads */
    lora_mutex lock;
    lora_condition wake, finished;
    lora_task_fn fn; /* fn, arg and the ranges are written while the gate is closed, read by workers inside it */
    void *arg;
    int n_ranges;
    range *ranges; /* (n_threads) */
    _Atomic int n_asleep;
    _Atomic bool stop;
    _Alignas(LORA_ALIGN) _Atomic uint64_t job; /* rises by one per job; workers wait for it */
    _Alignas(LORA_ALIGN) _Atomic uint64_t gate;
    worker workers[];
};

int lora_default_threads(void) {
    int n = lora_cpu_count();
    return n > MAX_THREADS ? MAX_THREADS : n;
}

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void run_tasks(lora_pool *pool, int id) {
    for (int i = 0; i < pool->n_ranges; i++) {
        range *r = &pool->ranges[(id + i) % pool->n_ranges];
        for (;;) {
            int64_t task = atomic_fetch_add_explicit(&r->next, 1, memory_order_relaxed);
            if (task >= r->end) break;
            pool->fn(pool->arg, task, id);
        }
    }
}

void lora_wait_for_count(const _Atomic int64_t *count, int64_t n) {
    for (int i = 0; atomic_load_explicit(count, memory_order_acquire) < n; i++)
        if (i < SPIN_ROUNDS)
            pause_cpu();
        else
            lora_thread_yield(); /* whoever it is may need this CPU */
}

/* A worker that wakes up late finds the gate closed and goes back to waiting, so that nobody waits for it. */
static bool enter_gate(lora_pool *pool) { return !(atomic_fetch_add(&pool->gate, 1) & GATE_CLOSED); }

static void leave_gate(lora_pool *pool) {
    if (atomic_fetch_sub(&pool->gate, 1) != (GATE_CLOSED | 1)) return;
    lora_mutex_lock(&pool->lock);
    lora_condition_signal(&pool->finished);
    lora_mutex_unlock(&pool->lock);
}

/* Waits for a job other than seen: spins a little because the next one usually follows at once, then sleeps. n_asleep
 * rises before job is looked at and the caller raises job before it looks at n_asleep: one of them sees the other. */
static uint64_t wait_for_job(lora_pool *pool, uint64_t seen) {
    uint64_t job;
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if ((job = atomic_load_explicit(&pool->job, memory_order_acquire)) != seen) return job;
        pause_cpu();
    }
    lora_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->n_asleep, 1);
    while ((job = atomic_load(&pool->job)) == seen) lora_condition_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->n_asleep, 1);
    lora_mutex_unlock(&pool->lock);
    return job;
}

static void worker_main(void *argument) {
    worker *self = argument;
    lora_pool *pool = self->pool;
    for (uint64_t job = 0;;) {
        job = wait_for_job(pool, job);
        if (atomic_load(&pool->stop)) return;
        if (enter_gate(pool)) run_tasks(pool, self->id);
        leave_gate(pool);
    }
}

/* Announces a job, or the end. */
static void wake_workers(lora_pool *pool) {
    atomic_fetch_add(&pool->job, 1);
    if (atomic_load(&pool->n_asleep) == 0) return;
    lora_mutex_lock(&pool->lock);
    lora_condition_broadcast(&pool->wake);
    lora_mutex_unlock(&pool->lock);
}

static void stop_workers(lora_pool *pool) {
    atomic_store(&pool->stop, true);
    wake_workers(pool);
    for (int i = 0; i < pool->n_started; i++) lora_thread_join(&pool->workers[i].thread);
    pool->n_started = 0;
}

static void reset_sync(lora_pool *pool) {
    lora_mutex_init(&pool->lock);
    lora_condition_init(&pool->wake);
    lora_condition_init(&pool->finished);
    atomic_store(&pool->job, 0);
    atomic_store(&pool->gate, GATE_CLOSED);
    atomic_store(&pool->n_asleep, 0);
    atomic_store(&pool->stop, false);
    pool->n_started = 0;
    pool->owner = lora_process_id();
}

/* Starts the workers on first use, and again in a child after fork (threads do not survive it). Where the system gives
 * fewer threads than asked for, the others do their tasks: the bits stay the same. */
static void start_workers(lora_pool *pool) {
    if (pool->owner != lora_process_id()) reset_sync(pool);
    if (pool->n_started || pool->n_threads == 1) return;
    for (int i = 0; i < pool->n_threads - 1; i++) {
        worker *w = &pool->workers[i];
        *w = (worker){.pool = pool, .id = i + 1};
        if (!lora_thread_start(&w->thread, worker_main, w)) break;
        pool->n_started = i + 1;
    }
}

lora_status lora_pool_create(lora_mem *mem, int n_threads, lora_pool **out, lora_error *err) {
    *out = NULL;
    LORA_CHECK(n_threads >= 1 && n_threads <= MAX_THREADS, err, LORA_EINVAL, "n_threads: expected 1 to %d, got %d", MAX_THREADS, n_threads);
    size_t bytes = (size_t)lora_round_up((int64_t)(sizeof(lora_pool) + (size_t)n_threads * sizeof(worker)), LORA_ALIGN);
    lora_pool *pool = lora_mem_calloc(mem, LORA_MEM_SCRATCH, bytes + (size_t)n_threads * sizeof(range));
    LORA_CHECK(pool, err, LORA_ENOMEM, "thread pool: expected memory for %d threads, got none", n_threads);
    pool->ranges = (range *)((char *)pool + bytes);
    pool->mem = mem;
    pool->n_threads = n_threads;
    reset_sync(pool);
    *out = pool;
    return LORA_OK;
}

/* In a child after fork the lock may have been held by a thread that no longer exists: it is left alone. */
void lora_pool_destroy(lora_pool *pool) {
    if (!pool) return;
    if (pool->owner == lora_process_id()) {
        if (pool->n_started) stop_workers(pool);
        lora_mutex_destroy(&pool->lock);
        lora_condition_destroy(&pool->wake);
        lora_condition_destroy(&pool->finished);
    }
    lora_mem_free(pool->mem, pool);
}

int lora_pool_threads(const lora_pool *pool) { return pool->n_threads; }

/* Closes the gate and waits for the workers that are still inside. */
static void close_gate(lora_pool *pool) {
    atomic_fetch_or(&pool->gate, GATE_CLOSED);
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool->gate, memory_order_acquire) == GATE_CLOSED) return;
        pause_cpu();
    }
    lora_mutex_lock(&pool->lock);
    while (atomic_load(&pool->gate) != GATE_CLOSED) lora_condition_wait(&pool->finished, &pool->lock);
    lora_mutex_unlock(&pool->lock);
}

static void run_job(lora_pool *pool, int64_t n_tasks, int n_ranges, lora_task_fn fn, void *arg) {
    if (n_tasks > 1) start_workers(pool);
    if (n_tasks <= 1 || pool->n_started == 0) {
        for (int64_t task = 0; task < n_tasks; task++) fn(arg, task, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->n_ranges = n_ranges;
    for (int r = 0; r < n_ranges; r++) {
        atomic_store_explicit(&pool->ranges[r].next, lora_div_up(r * n_tasks, n_ranges), memory_order_relaxed);
        pool->ranges[r].end = lora_div_up((r + 1) * n_tasks, n_ranges);
    }
    atomic_fetch_and(&pool->gate, ~GATE_CLOSED);
    wake_workers(pool);
    run_tasks(pool, 0);
    close_gate(pool);
}

void lora_parallel_for(lora_pool *pool, int64_t n_tasks, lora_task_fn fn, void *arg) { run_job(pool, n_tasks, 1, fn, arg); }

void lora_parallel_near(lora_pool *pool, int64_t n_tasks, lora_task_fn fn, void *arg) { run_job(pool, n_tasks, pool->n_threads, fn, arg); }
