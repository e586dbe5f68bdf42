/* What a program may ask of its process. */
#ifndef LORA_C_PROCESS_H
#define LORA_C_PROCESS_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The number of this process; another one in a child after fork. */
int lora_process_id(void);

/** Writes the path of the file of this name that lies in the folder of the library (or program) whose code or data holds the address;
 *  false where no such file is there, or the path has more than bytes - 1 bytes. UTF-8. */
bool lora_file_beside(const void *address, const char *name, char *path, size_t bytes);

/** What parts the paths in a list of paths: ';' on Windows, else ':'. */
char lora_path_separator(void);

#ifdef __cplusplus
}
#endif

#endif
