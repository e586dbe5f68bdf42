/* What systems do differently, behind one set of functions. Each is defined once for every system: os_posix*.c, with what only macOS
 * does otherwise in os_macos.c, or os_windows*.c. Nothing else asks which system it is. Mapped files: paged.h. */
#ifndef LORA_BASE_OS_H
#define LORA_BASE_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lora_c/process.h"

/* --- threads --- */

/* Room for the system's own objects, whose headers stay out of this one. */
typedef struct lora_mutex {
    uint64_t room[8];
} lora_mutex;
typedef struct lora_condition {
    uint64_t room[8];
} lora_condition;
typedef struct lora_thread {
    uint64_t room[1];
    void (*main)(void *);
    void *arg;
} lora_thread;

void lora_mutex_init(lora_mutex *mutex);
void lora_mutex_destroy(lora_mutex *mutex);
void lora_mutex_lock(lora_mutex *mutex);
void lora_mutex_unlock(lora_mutex *mutex);

void lora_condition_init(lora_condition *condition);
void lora_condition_destroy(lora_condition *condition);
void lora_condition_wait(lora_condition *condition, lora_mutex *mutex); /* may return unasked */
void lora_condition_signal(lora_condition *condition);
void lora_condition_broadcast(lora_condition *condition);

/** Starts main(arg) in a thread, whose struct stays where it is until lora_thread_join, and that signals do not reach, faults excepted:
 * they are the caller's threads' to answer, Ctrl-C above all. false where the system gives no more threads. */
bool lora_thread_start(lora_thread *thread, void (*main)(void *), void *arg);
void lora_thread_join(lora_thread *thread);
void lora_thread_yield(void); /* to whoever may need this CPU */

/** CPUs that this process may use and that compute at full speed (not the efficient ones of Apple's), at least 1. */
int lora_cpu_count(void);

/* --- time and memory --- */

int64_t lora_clock_ns(void); /* since some moment; only rises */
/** Whether the system says that an aarch64 CPU has FEAT_BF16: bfmmla, bfdot, bfcvtn. False on others. */
bool lora_os_arm_bf16(void);
bool lora_os_arm_dotprod(void); /* FEAT_DotProd: sdot */
bool lora_os_arm_i8mm(void);    /* FEAT_I8MM: smmla */

/** bytes, a multiple of the alignment, which is a power of two; NULL when refused. streamed: written once and read from end to end
 *  again and again, for which the largest pages are wished. */
void *lora_os_alloc(size_t alignment, size_t bytes, bool streamed);
void lora_os_free(void *p); /* NULL allowed */

/** The limits on the addresses and on the data of this process (ulimit -v, -d), and the bytes of a page; SIZE_MAX: no limit. */
typedef struct lora_process_limits {
    size_t addresses, data, page;
} lora_process_limits;
lora_process_limits lora_os_limits(void);

/** Bytes that the machine could still give, with what it would swap out, and has in all; SIZE_MAX on Linux, which says so in /proc. */
size_t lora_os_memory_left(bool with_swap);
size_t lora_os_memory_total(void);

/* --- libraries --- */

/** Loads a library; NULL, and in words why, where it cannot be. A bare name is a file here before it is one of the system's. */
void *lora_library_open(const char *path, char *why, size_t bytes);
void *lora_library_symbol(void *library, const char *name); /* NULL where there is none */
void lora_library_close(void *library);
/** What a file is that the loader must not see ("a folder", "one that is cut off"), or NULL. */
const char *lora_library_fault(const char *path);
/** The name behind the folders of a path. */
const char *lora_file_name(const char *path);

#endif
