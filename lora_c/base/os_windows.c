/* Threads, the clock and the process on Windows. */
#include "lora_c/base/os.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

_Static_assert(sizeof(SRWLOCK) <= sizeof(lora_mutex), "room for a mutex");
_Static_assert(sizeof(CONDITION_VARIABLE) <= sizeof(lora_condition), "room for a condition");
_Static_assert(sizeof(HANDLE) <= sizeof(uint64_t), "room for a thread");

int lora_process_id(void) { return (int)GetCurrentProcessId(); }

static SRWLOCK *lock_of(lora_mutex *mutex) { return (SRWLOCK *)(void *)mutex; }
static CONDITION_VARIABLE *variable_of(lora_condition *condition) { return (CONDITION_VARIABLE *)(void *)condition; }

void lora_mutex_init(lora_mutex *mutex) { InitializeSRWLock(lock_of(mutex)); }
void lora_mutex_destroy(lora_mutex *mutex) { (void)mutex; /* holds nothing */ }
void lora_mutex_lock(lora_mutex *mutex) { AcquireSRWLockExclusive(lock_of(mutex)); }
void lora_mutex_unlock(lora_mutex *mutex) { ReleaseSRWLockExclusive(lock_of(mutex)); }

void lora_condition_init(lora_condition *condition) { InitializeConditionVariable(variable_of(condition)); }
void lora_condition_destroy(lora_condition *condition) { (void)condition; }
void lora_condition_wait(lora_condition *condition, lora_mutex *mutex) {
    (void)SleepConditionVariableSRW(variable_of(condition), lock_of(mutex), INFINITE, 0);
}
void lora_condition_signal(lora_condition *condition) { WakeConditionVariable(variable_of(condition)); }
void lora_condition_broadcast(lora_condition *condition) { WakeAllConditionVariable(variable_of(condition)); }

static DWORD WINAPI run(void *argument) {
    lora_thread *thread = argument;
    thread->main(thread->arg);
    return 0;
}

/* Ctrl-C comes in a thread of its own on Windows: there is nothing to keep from this one. */
bool lora_thread_start(lora_thread *thread, void (*main)(void *), void *arg) {
    thread->main = main;
    thread->arg = arg;
    HANDLE handle = CreateThread(NULL, 0, run, thread, 0, NULL);
    *(HANDLE *)(void *)thread->room = handle;
    return handle != NULL;
}

void lora_thread_join(lora_thread *thread) {
    HANDLE handle = *(HANDLE *)(void *)thread->room;
    (void)WaitForSingleObject(handle, INFINITE);
    (void)CloseHandle(handle);
}

void lora_thread_yield(void) { (void)SwitchToThread(); }

/* Of one group of processors, which has up to 64: a process is in one unless it asks for more. */
int lora_cpu_count(void) {
    DWORD_PTR own = 0, of_system = 0;
    int n = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &own, &of_system))
        for (; own; own &= own - 1) n++;
    if (n) return n;
    SYSTEM_INFO about;
    GetSystemInfo(&about);
    return about.dwNumberOfProcessors < 1 ? 1 : (int)about.dwNumberOfProcessors;
}

bool lora_os_arm_bf16(void) { return false; } /* not asked: there is no build for Windows on ARM */
bool lora_os_arm_dotprod(void) { return false; }
bool lora_os_arm_i8mm(void) { return false; }

int64_t lora_clock_ns(void) {
    LARGE_INTEGER ticks, rate;
    (void)QueryPerformanceCounter(&ticks);
    (void)QueryPerformanceFrequency(&rate);
    int64_t seconds = ticks.QuadPart / rate.QuadPart, rest = ticks.QuadPart % rate.QuadPart; /* apart: the product would overflow */
    return seconds * 1000000000 + rest * 1000000000 / rate.QuadPart;
}
#endif
