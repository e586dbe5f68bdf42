/* Processes and their environment, for checks. */
#ifndef LORA_TESTS_CHILDREN_H
#define LORA_TESTS_CHILDREN_H

#include <stdbool.h>

/** Whether this system makes children that have what their parent has (fork; not Windows), and the checks can follow them. */
bool has_children(void);
/** How a child ends that does this: its exit code, what act returns; or -signal, of which one comes after a minute. */
int end_of_child(int (*act)(void *arg), void *arg);
/** Ends this process at once. */
void end_process(int code);
/** Sets a variable of the environment; takes it away where value is NULL. */
void set_variable(const char *name, const char *value);

#endif
