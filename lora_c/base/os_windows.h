/* Paths of Windows: UTF-8 in this library, UTF-16 and without the limit of 260 characters to the system. */
#ifndef LORA_BASE_OS_WINDOWS_H
#define LORA_BASE_OS_WINDOWS_H

#include <stdbool.h>
#include <wchar.h>

enum { LORA_WIDE_PATH = 32768 }; /* the longest that the system takes */

/** The full path as the system takes it, with the prefix that lifts the limit; wide has LORA_WIDE_PATH places. false: it is no path. */
bool lora_wide_path(const char *path, wchar_t *wide);

#endif
