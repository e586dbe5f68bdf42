#define _GNU_SOURCE
#include "lora_c/base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "lora_c/base/util.h"

enum { MAX_THREADS = 256, SPIN_ROUNDS = 4000 };

typedef struct worker {
    lora_pool *pool;
    pthread_t thread;
    int id;
} worker;

struct lora_pool {
    lora_mem *mem;
    int n_threads, n_started; /* workers started: n_threads - 1, or 0 while they are not needed or after fork */
    pid_t owner;
    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    lora_task_fn fn;
    void *arg;
    int64_t n_tasks;
    _Atomic int64_t next_task;
    _Atomic uint64_t job; /* rises by one per job; workers wait for it */
    _Atomic int n_busy;
    bool stop;
    worker workers[];
};

int lora_default_threads(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int n = CPU_COUNT(&set);
        return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
    }
    return 1;
}

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __asm__ volatile("pause");
#endif
}

static void run_tasks(lora_pool *pool, int id) {
    for (;;) {
        int64_t task = atomic_fetch_add_explicit(&pool->next_task, 1, memory_order_relaxed);
        if (task >= pool->n_tasks) return;
        pool->fn(pool->arg, task, id);
    }
}

/* Waits for a job other than seen: spins a little because the next one usually follows at once, then sleeps. */
static bool wait_for_job(lora_pool *pool, uint64_t seen) {
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool->job, memory_order_acquire) != seen) return !pool->stop;
        pause_cpu();
    }
    pthread_mutex_lock(&pool->lock);
    while (atomic_load(&pool->job) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    bool go = !pool->stop;
    pthread_mutex_unlock(&pool->lock);
    return go;
}

static void *worker_main(void *argument) {
    worker *self = argument;
    lora_pool *pool = self->pool;
    uint64_t seen = 0;
    while (wait_for_job(pool, seen)) {
        seen = atomic_load(&pool->job);
        run_tasks(pool, self->id);
        if (atomic_fetch_sub(&pool->n_busy, 1) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->lock);
        }
    }
    return NULL;
}

static void stop_workers(lora_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    atomic_fetch_add(&pool->job, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i].thread, NULL);
    pool->n_started = 0;
}

static void reset_sync(lora_pool *pool) {
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finished, NULL);
    atomic_store(&pool->job, 0);
    pool->n_started = 0;
    pool->stop = false;
    pool->owner = getpid();
}

/* Starts the workers on first use, and again in a child after fork (threads do not survive it). Where the system gives
 * fewer threads than asked for, the others do their tasks: the bits stay the same. */
static void start_workers(lora_pool *pool) {
    if (pool->owner != getpid()) reset_sync(pool);
    if (pool->n_started || pool->n_threads == 1) return;
    for (int i = 0; i < pool->n_threads - 1; i++) {
        worker *w = &pool->workers[i];
        *w = (worker){.pool = pool, .id = i + 1};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) break;
        pool->n_started = i + 1;
    }
}

lora_status lora_pool_create(lora_mem *mem, int n_threads, lora_pool **out, lora_error *err) {
    *out = NULL;
    LORA_CHECK(n_threads >= 1 && n_threads <= MAX_THREADS, err, LORA_EINVAL, "n_threads: expected 1 to %d, got %d",
               MAX_THREADS, n_threads);
    lora_pool *pool = lora_mem_calloc(mem, LORA_MEM_SCRATCH, sizeof *pool + (size_t)n_threads * sizeof(worker));
    LORA_CHECK(pool, err, LORA_ENOMEM, "thread pool: expected memory for %d threads, got none", n_threads);
    pool->mem = mem;
    pool->n_threads = n_threads;
    reset_sync(pool);
    *out = pool;
    return LORA_OK;
}

void lora_pool_destroy(lora_pool *pool) {
    if (!pool) return;
    if (pool->owner == getpid()) {
        if (pool->n_started) stop_workers(pool);
        pthread_mutex_destroy(&pool->lock);
        pthread_cond_destroy(&pool->wake);
        pthread_cond_destroy(&pool->finished);
    }
    lora_mem_free(pool->mem, pool);
}

int lora_pool_threads(const lora_pool *pool) { return pool->n_threads; }

static void wait_for_workers(lora_pool *pool) {
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool->n_busy, memory_order_acquire) == 0) return;
        pause_cpu();
    }
    pthread_mutex_lock(&pool->lock);
    while (atomic_load(&pool->n_busy) != 0) pthread_cond_wait(&pool->finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

void lora_parallel_for(lora_pool *pool, int64_t n_tasks, lora_task_fn fn, void *arg) {
    if (n_tasks > 1) start_workers(pool);
    if (n_tasks <= 1 || pool->n_started == 0) {
        for (int64_t task = 0; task < n_tasks; task++) fn(arg, task, 0);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->fn = fn;
    pool->arg = arg;
    pool->n_tasks = n_tasks;
    atomic_store(&pool->next_task, 0);
    atomic_store(&pool->n_busy, pool->n_started);
    atomic_fetch_add(&pool->job, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    run_tasks(pool, 0);
    wait_for_workers(pool);
}
