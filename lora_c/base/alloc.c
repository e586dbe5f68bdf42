#define _DEFAULT_SOURCE
#include "lora_c/base/alloc.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

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

/* Frozen weights are written once, whole, and then read from end to end for every token: in huge pages where the system has
 * them for those who ask, a core reads a fifth faster. Other memory may be touched in part only and stays in small ones. */
static unsigned char *allocate(lora_mem_tag tag, size_t padded) {
#if defined(MADV_HUGEPAGE)
    enum { HUGE_PAGE = 1 << 21 };
    if (tag == LORA_MEM_BASE && padded >= HUGE_PAGE) {
        void *p = NULL;
        if (posix_memalign(&p, HUGE_PAGE, padded) != 0) return NULL;
        (void)madvise(p, padded & ~(size_t)4095, MADV_HUGEPAGE); /* a wish */
        return p;
    }
#endif
    (void)tag;
    return aligned_alloc(LORA_ALIGN, padded);
}

void *lora_mem_alloc(lora_mem *mem, lora_mem_tag tag, size_t bytes) {
    if (must_fail(mem) || bytes > SIZE_MAX / 2 || !lora_memory_fits(bytes)) return NULL;
    size_t padded = ((bytes + LORA_ALIGN - 1) & ~(size_t)(LORA_ALIGN - 1)) + HEADER_BYTES + TAIL_BYTES;
    unsigned char *raw = allocate(tag, padded);
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
    free(raw);
}
