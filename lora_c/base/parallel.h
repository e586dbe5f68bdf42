/* A pool of threads that runs numbered tasks. The split is the caller's and must depend on the problem only, so that
 * the bits of a result never depend on the number of threads. */
#ifndef LORA_BASE_PARALLEL_H
#define LORA_BASE_PARALLEL_H

#include <stdint.h>

#include "lora_c/base/alloc.h"
#include "lora_c/status.h"

typedef struct lora_pool lora_pool;

/* task in 0 .. n_tasks-1; worker in 0 .. n_threads-1 is unique among the tasks that run at the same time. */
typedef void (*lora_task_fn)(void *arg, int64_t task, int worker);

lora_status lora_pool_create(lora_mem *mem, int n_threads, lora_pool **out, lora_error *err) LORA_MUST_CHECK;
void lora_pool_destroy(lora_pool *pool);
int lora_pool_threads(const lora_pool *pool);
int lora_default_threads(void); /* CPUs in the affinity mask, at least 1 */

/** Runs fn for every task, the caller's thread included, and returns when all are done. Tasks are handed out in index
 *  order, one at a time. Not re-entrant: fn may not call it. After fork the child re-creates its threads lazily. */
void lora_parallel_for(lora_pool *pool, int64_t n_tasks, lora_task_fn fn, void *arg);

/** The same, but each thread begins with its own run of neighbouring tasks and takes tasks of others when it is done: where
 *  two operations number their tasks alike, a thread finds in its cache what it wrote before. */
void lora_parallel_near(lora_pool *pool, int64_t n_tasks, lora_task_fn fn, void *arg);

/** Inside a task: waits until other tasks have raised *count to n. Only for tasks that have begun, as those of lower index have
 *  in lora_parallel_for. */
void lora_wait_for_count(const _Atomic int64_t *count, int64_t n);

#endif
