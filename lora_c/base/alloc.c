#include "lora_c/base/alloc.h"

#include <string.h>

#include "lora_c/base/os.h"
#include "lora_c/base/util.h"

/* In front of every block, padded to the alignment so that the block itself stays aligned. */
typedef struct block_header {
    size_t bytes;
    lora_mem_tag tag;
} block_header;

enum { HEADER_BYTES = LORA_ALIGN, TAIL_BYTES = LORA_ALIGN };
_Static_assert(sizeof(block_header) <= HEADER_BYTES, "the header must fit in front of an aligned block");

void lora_mem_init(lora_mem *mem) {
    memset(mem, 0, sizeof *mem);
    atomic_store(&mem->fail_after, -1);
}

static void raise_peak(_Atomic size_t *peak, size_t live) {
    size_t seen = atomic_load_explicit(peak, memory_order_relaxed);
    while (seen < live && !atomic_compare_exchange_weak(peak, &seen, live)) {}
}

static bool must_fail(lora_mem *mem) {
    if (atomic_load_explicit(&mem->fail_after, memory_order_relaxed) < 0) return false;
    return atomic_fetch_sub(&mem->fail_after, 1) == 0;
}

void *lora_mem_alloc(lora_mem *mem, lora_mem_tag tag, size_t bytes) {
    if (must_fail(mem) || bytes > SIZE_MAX / 2 || !lora_memory_fits(bytes)) return NULL;
    size_t padded = ((bytes + LORA_ALIGN - 1) & ~(size_t)(LORA_ALIGN - 1)) + HEADER_BYTES + TAIL_BYTES;
    /* Frozen weights are written once, whole, and then read from end to end for every token; of other memory a part may never be touched.
     */
    unsigned char *raw = lora_os_alloc(LORA_ALIGN, padded, tag == LORA_MEM_BASE);
    if (!raw) return NULL;
    block_header *header = (block_header *)raw;
    header->bytes = bytes;
    header->tag = tag;
    memset(raw + padded - TAIL_BYTES, 0, TAIL_BYTES); /* vector code may read past the end */
    raise_peak(&mem->peak[tag], atomic_fetch_add(&mem->live[tag], bytes) + bytes);
    raise_peak(&mem->total_peak, atomic_fetch_add(&mem->total_live, bytes) + bytes);
    return raw + HEADER_BYTES;
}

void *lora_mem_calloc(lora_mem *mem, lora_mem_tag tag, size_t bytes) {
    void *p = lora_mem_alloc(mem, tag, bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

void lora_mem_free(lora_mem *mem, void *p) {
    if (!p) return;
    unsigned char *raw = (unsigned char *)p - HEADER_BYTES;
    const block_header *header = (const block_header *)raw;
    atomic_fetch_sub(&mem->live[header->tag], header->bytes);
    atomic_fetch_sub(&mem->total_live, header->bytes);
    lora_os_free(raw);
}
