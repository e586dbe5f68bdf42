#define _GNU_SOURCE
#include "tests/c/children.h"

#include <stdlib.h>
#if defined(_WIN32)
#include <process.h>

bool has_children(void) { return false; }

int end_of_child(int (*act)(void *arg), void *arg) {
    (void)act, (void)arg;
    return -1;
}

void end_process(int code) { _exit(code); }
void set_variable(const char *name, const char *value) { (void)_putenv_s(name, value ? value : ""); }
#else
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* ThreadSanitizer follows no child of a process that had threads: it lets it start none, and does not see that a lock is made anew. */
bool has_children(void) {
#if defined(__SANITIZE_THREAD__)
    return false;
#else
    return true;
#endif
}

int end_of_child(int (*act)(void *arg), void *arg) {
    enum { PATIENCE = 60 };
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        (void)setrlimit(RLIMIT_CORE, &(struct rlimit){0});
        (void)signal(SIGSEGV, SIG_DFL); /* sanitizers have a handler */
        alarm(PATIENCE);
        _exit(act(arg));
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

void end_process(int code) { _exit(code); }

void set_variable(const char *name, const char *value) {
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}
#endif
