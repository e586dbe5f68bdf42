/* Aligned, tagged memory: all blocks of the library come from here. Accounts live in a lora_mem, never in globals. */
#ifndef LORA_BASE_ALLOC_H
#define LORA_BASE_ALLOC_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "lora_c/memory.h"

typedef struct lora_mem {
    _Atomic size_t live[LORA_MEM_TAGS], peak[LORA_MEM_TAGS];
    _Atomic size_t total_live, total_peak;
    _Atomic int64_t fail_after; /* tests: this many more succeed, then one fails; negative: never */
} lora_mem;

void lora_mem_init(lora_mem *mem);
/** 64-byte aligned, not cleared, 64 readable bytes past the end; bytes 0 gives a valid pointer. NULL when refused. */
void *lora_mem_alloc(lora_mem *mem, lora_mem_tag tag, size_t bytes);
void *lora_mem_calloc(lora_mem *mem, lora_mem_tag tag, size_t bytes);
void lora_mem_free(lora_mem *mem, void *p); /* NULL allowed */

#endif
