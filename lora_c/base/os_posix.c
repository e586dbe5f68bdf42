/* Threads, the clock and the process where the system is a POSIX one. */
#define _GNU_SOURCE
#include "lora_c/base/os.h"

#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(lora_mutex) && _Alignof(pthread_mutex_t) <= _Alignof(lora_mutex), "room for a mutex");
_Static_assert(sizeof(pthread_cond_t) <= sizeof(lora_condition), "room for a condition");
_Static_assert(sizeof(pthread_t) <= sizeof(uint64_t), "room for a thread");

int lora_process_id(void) { return (int)getpid(); }

static pthread_mutex_t *mutex_of(lora_mutex *mutex) { return (pthread_mutex_t *)(void *)mutex; }
static pthread_cond_t *condition_of(lora_condition *condition) { return (pthread_cond_t *)(void *)condition; }

void lora_mutex_init(lora_mutex *mutex) { pthread_mutex_init(mutex_of(mutex), NULL); }
void lora_mutex_destroy(lora_mutex *mutex) { pthread_mutex_destroy(mutex_of(mutex)); }
void lora_mutex_lock(lora_mutex *mutex) { pthread_mutex_lock(mutex_of(mutex)); }
void lora_mutex_unlock(lora_mutex *mutex) { pthread_mutex_unlock(mutex_of(mutex)); }

void lora_condition_init(lora_condition *condition) { pthread_cond_init(condition_of(condition), NULL); }
void lora_condition_destroy(lora_condition *condition) { pthread_cond_destroy(condition_of(condition)); }
void lora_condition_wait(lora_condition *condition, lora_mutex *mutex) { pthread_cond_wait(condition_of(condition), mutex_of(mutex)); }
void lora_condition_signal(lora_condition *condition) { pthread_cond_signal(condition_of(condition)); }
void lora_condition_broadcast(lora_condition *condition) { pthread_cond_broadcast(condition_of(condition)); }

/* Threads inherit the mask, which the caller then gets back. Faults stay with the thread that made them. */
static sigset_t block_signals(void) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    return before;
}

static void *run(void *argument) {
    lora_thread *thread = argument;
    thread->main(thread->arg);
    return NULL;
}

bool lora_thread_start(lora_thread *thread, void (*main)(void *), void *arg) {
    thread->main = main;
    thread->arg = arg;
    sigset_t before = block_signals();
    bool started = pthread_create((pthread_t *)(void *)thread->room, NULL, run, thread) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

void lora_thread_join(lora_thread *thread) { pthread_join(*(pthread_t *)(void *)thread->room, NULL); }
void lora_thread_yield(void) { sched_yield(); }

int64_t lora_clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#if !defined(__APPLE__)
int lora_cpu_count(void) {
    cpu_set_t set;
    long n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : (int)n;
}

/* Bits by number: older headers lack their names. */
static bool has_capability(unsigned long type, int bit) {
#if defined(__aarch64__) && defined(__linux__)
    return getauxval(type) >> bit & 1;
#else
    (void)type, (void)bit;
    return false;
#endif
}

enum { HWCAP = 16, HWCAP2 = 26, ASIMDDP = 20, I8MM = 13, BF16 = 14 }; /* AT_HWCAP, AT_HWCAP2, HWCAP_ASIMDDP, HWCAP2_I8MM, HWCAP2_BF16 */

bool lora_os_arm_bf16(void) { return has_capability(HWCAP2, BF16); }
bool lora_os_arm_dotprod(void) { return has_capability(HWCAP, ASIMDDP); }
bool lora_os_arm_i8mm(void) { return has_capability(HWCAP2, I8MM); }
#endif
#endif
