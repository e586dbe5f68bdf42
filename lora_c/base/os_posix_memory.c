/* Memory where the system is a POSIX one: blocks, limits, and pages that lie in a file. */
#define _GNU_SOURCE
#include "lora_c/base/os.h"

#if !defined(_WIN32)
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "lora_c/base/paged.h"

enum { MOST_PATH = 4096 };

/* --- blocks --- */

/* In huge pages, where the system has them for those who ask, a core reads a fifth faster. */
void *lora_os_alloc(size_t alignment, size_t bytes, bool streamed) {
#if defined(MADV_HUGEPAGE)
    enum { HUGE_PAGE = 1 << 21 };
    if (streamed && bytes >= HUGE_PAGE) {
        void *p = NULL;
        if (posix_memalign(&p, HUGE_PAGE, bytes) != 0) return NULL;
        (void)madvise(p, bytes & ~(size_t)4095, MADV_HUGEPAGE); /* a wish */
        return p;
    }
#endif
    (void)streamed;
    return aligned_alloc(alignment, bytes);
}

void lora_os_free(void *p) { free(p); }

/* What the process may have of a resource; SIZE_MAX where nothing bounds it. */
static size_t limit_of_process(int resource) {
    struct rlimit limit;
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return SIZE_MAX;
    return (size_t)limit.rlim_cur;
}

lora_process_limits lora_os_limits(void) {
    return (lora_process_limits){
        .addresses = limit_of_process(RLIMIT_AS), .data = limit_of_process(RLIMIT_DATA), .page = (size_t)sysconf(_SC_PAGESIZE)};
}

#if !defined(__APPLE__)
size_t lora_os_memory_left(bool with_swap) {
    (void)with_swap;
    return SIZE_MAX;
}
size_t lora_os_memory_total(void) { return SIZE_MAX; }
#endif

/* --- pages in a file --- */

/* A file that nobody else can open: what it holds goes with the last mapping of it, however the process ends. */
static lora_status open_file(const char *folder, int *fd, lora_error *err) {
    char path[MOST_PATH];
    int n = snprintf(path, sizeof path, "%s/lora-c-state-XXXXXX", folder);
    LORA_CHECK(n > 0 && n < MOST_PATH, err, LORA_EINVAL, "folder: expected a path of less than %d bytes, got %d", MOST_PATH, n);
    *fd = mkstemp(path);
    LORA_CHECK(*fd >= 0, err, LORA_EINVAL, "folder: expected one that can be written, got %.200s; choose another folder", folder);
    (void)fcntl(*fd, F_SETFD, FD_CLOEXEC);
    (void)unlink(path);
    return LORA_OK;
}

/* Takes the blocks now: a mapping that finds the disk full later ends the process. */
static bool take_blocks(int fd, size_t bytes) {
#if defined(__APPLE__)
    fstore_t store = {.fst_flags = F_ALLOCATEALL, .fst_posmode = F_PEOFPOSMODE, .fst_length = (off_t)bytes};
    return fcntl(fd, F_PREALLOCATE, &store) != -1 && ftruncate(fd, (off_t)bytes) == 0;
#else
    return posix_fallocate(fd, 0, (off_t)bytes) == 0;
#endif
}

static lora_status take_room(const char *folder, int fd, size_t bytes, lora_error *err) {
    if (take_blocks(fd, bytes)) return LORA_OK;
    struct statvfs fs;
    unsigned long long left = fstatvfs(fd, &fs) == 0 ? (unsigned long long)fs.f_bavail * fs.f_frsize : 0;
    return lora_fail(err, LORA_ENOMEM, "folder: expected room for %zu MiB in %.200s, got %llu MiB; choose a folder on another disk",
                     bytes >> 20, folder, left >> 20);
}

lora_status lora_map_file(const char *folder, size_t bytes, void **out, lora_error *err) {
    int fd;
    LORA_CHECK(folder && bytes > 0 && bytes <= SIZE_MAX / 2, err, LORA_EINVAL, "folder: expected one, and a size above 0, got another");
    LORA_TRY(open_file(folder, &fd, err));
    lora_status status = take_room(folder, fd, bytes, err);
    void *p = status == LORA_OK ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (status == LORA_OK && p == MAP_FAILED)
        status = lora_fail(err, LORA_ENOMEM, "folder: expected addresses for %zu MiB, got none", bytes >> 20);
    (void)close(fd); /* the mapping keeps the file */
    if (status == LORA_OK) *out = p;
    return status;
}

void lora_unmap_file(void *p, size_t bytes) { (void)munmap(p, bytes); }

/* DONTNEED takes the pages from the process. They stay in the file, whose changes the system writes out when it needs the memory. */
void lora_advise_pages(void *p, size_t bytes, lora_page_use use) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)p, end = begin + bytes;
    bool soon = use == LORA_PAGE_SOON;
    begin = soon ? begin / page * page : (begin + page - 1) / page * page;
    end = soon ? (end + page - 1) / page * page : end / page * page;
    if (begin >= end) return;
#if defined(MADV_POPULATE_WRITE)
    if (soon && madvise((void *)begin, end - begin, MADV_POPULATE_WRITE) == 0) return; /* all pages at once, not one fault for each */
#endif
    (void)madvise((void *)begin, end - begin, soon ? MADV_WILLNEED : MADV_DONTNEED); /* wishes */
}
#endif
