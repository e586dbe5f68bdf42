/* A device that does what the CPU does, in memory that the host may not touch and later than it is asked: code that is right on
 * it is right on any device. What it catches:
 *   a host access to device memory      the address that callers see has no permissions: SIGSEGV
 *   a host address given to an operation   an error that names it
 *   a result that is read before a sync    downloads are filled with 0xA5 until then
 *   an upload that is changed too early    sources are read at the sync, staging memory is overwritten with 0xA5 after it
 *   memory that is used after its end      freed memory is filled with 0xA5 */
#ifndef LORA_FAKE_H
#define LORA_FAKE_H

#include <pthread.h>

#include "lora_c/backend.h"

enum { FAKE_POISON = 0xA5 };

typedef struct fake_device fake_device;

/* Runs on the device: args is a copy of what the job was queued with. */
typedef lora_status fake_run_fn(fake_device *f, void *args, lora_error *err);

typedef struct fake_job {
    fake_run_fn *run;
    void *args;
    lora_precision precision;
    bool always; /* after a job that failed, too: what frees or clears memory */
} fake_job;

typedef struct fake_block {
    size_t begin, bytes;
    lora_mem_tag tag;
    bool used;
} fake_block;

typedef struct fake_stage {
    unsigned char *data;
    size_t bytes;
    bool read; /* by an upload since the last sync */
} fake_stage;

struct fake_device {
    lora_ctx *cpu; /* computes */
    int fd;
    size_t reserved;
    unsigned char *seen, *real; /* the same memory: without permissions, as callers see it; for the device itself */
    pthread_mutex_t lock;       /* of all that follows; no job runs inside it */
    fake_block *blocks;         /* by address */
    int64_t n_blocks, room_for_blocks;
    lora_mem_usage usage[LORA_MEM_TAGS + 1];
    fake_stage *stages;
    int64_t n_stages;
    fake_job *jobs;
    int64_t n_jobs, room_for_jobs;
};

/* fake_memory.c */
extern const lora_backend_memory fake_memory;
/** Two views of one piece of memory, and the lock. After an error, too, fake_close_memory must follow. */
lora_status fake_open_memory(fake_device *f, lora_error *err);
void fake_close_memory(fake_device *f);
/** The device's own address of one that a caller has. NULL stays NULL; a host address is refused: NULL and *bad set. */
void *fake_at(const fake_device *f, const void *seen, const void **bad);

/* fake_queue.c */
/** Puts a job behind the others, with a copy of its args. Any thread. */
lora_status fake_enqueue(fake_device *f, fake_job job, const void *args, size_t bytes, lora_error *err);
/** The jobs so far, in order; after one that fails only those that run always. Returns its status. One thread at a time. */
lora_status fake_run_queue(fake_device *f, lora_error *err);

/* fake_ops.c */
extern const lora_backend_ops fake_ops;

#endif
