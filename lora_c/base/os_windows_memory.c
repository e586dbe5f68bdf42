/* Memory on Windows: blocks, what the machine has, and pages that lie in a file. */
#include "lora_c/base/os.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <malloc.h>

#include "lora_c/base/os_windows.h"
#include "lora_c/base/paged.h"

/* Large pages need a right that users do not have. */
void *lora_os_alloc(size_t alignment, size_t bytes, bool streamed) {
    (void)streamed;
    return _aligned_malloc(bytes, alignment);
}

void lora_os_free(void *p) { _aligned_free(p); }

lora_process_limits lora_os_limits(void) {
    SYSTEM_INFO about;
    GetSystemInfo(&about);
    return (lora_process_limits){.addresses = SIZE_MAX, .data = SIZE_MAX, .page = about.dwPageSize};
}

/* Windows promises memory only where it has it, in RAM or in the file that it swaps to: what it could still promise is what is left. */
size_t lora_os_memory_left(bool with_swap) {
    MEMORYSTATUSEX found = {.dwLength = sizeof found};
    if (!GlobalMemoryStatusEx(&found)) return SIZE_MAX;
    DWORDLONG left = with_swap || found.ullAvailPageFile < found.ullAvailPhys ? found.ullAvailPageFile : found.ullAvailPhys;
    return left < SIZE_MAX ? (size_t)left : SIZE_MAX;
}

size_t lora_os_memory_total(void) {
    MEMORYSTATUSEX found = {.dwLength = sizeof found};
    return GlobalMemoryStatusEx(&found) && found.ullTotalPhys < SIZE_MAX ? (size_t)found.ullTotalPhys : SIZE_MAX;
}

/* --- pages in a file --- */

enum { MOST_TRIES = 64 };

/* Opens a new file that goes with its last handle, however the process ends. */
static HANDLE new_file(const char *folder) {
    static LONG counter;
    wchar_t *path = _aligned_malloc(2 * LORA_WIDE_PATH * sizeof *path, sizeof(void *)), *whole = path ? path + LORA_WIDE_PATH : NULL;
    HANDLE file = INVALID_HANDLE_VALUE;
    for (int i = 0; path && i < MOST_TRIES && file == INVALID_HANDLE_VALUE; i++) {
        if (!lora_wide_path(folder, path) || wcslen(path) > LORA_WIDE_PATH - 64) break;
        LONG number = InterlockedIncrement(&counter);
        (void)swprintf(whole, LORA_WIDE_PATH, L"%ls\\lora-c-state-%08lx-%08lx", path, (unsigned long)GetCurrentProcessId(),
                       (unsigned long)number);
        file = CreateFileW(whole, GENERIC_READ | GENERIC_WRITE, 0, NULL, CREATE_NEW, FILE_ATTRIBUTE_TEMPORARY | FILE_FLAG_DELETE_ON_CLOSE,
                           NULL);
        if (file == INVALID_HANDLE_VALUE && GetLastError() != ERROR_FILE_EXISTS) break;
    }
    _aligned_free(path);
    return file;
}

/* A mapping takes its size of the disk when it is made. The view keeps the mapping, and that the file, though its name is gone. */
lora_status lora_map_file(const char *folder, size_t bytes, void **out, lora_error *err) {
    LORA_CHECK(folder && bytes > 0 && bytes <= SIZE_MAX / 2, err, LORA_EINVAL, "folder: expected one, and a size above 0, got another");
    HANDLE file = new_file(folder);
    LORA_CHECK(file != INVALID_HANDLE_VALUE, err, LORA_EINVAL,
               "folder: expected one that can be written, got %.200s; choose another folder", folder);
    HANDLE mapping = CreateFileMappingW(file, NULL, PAGE_READWRITE, (DWORD)((uint64_t)bytes >> 32), (DWORD)bytes, NULL);
    (void)CloseHandle(file);
    LORA_CHECK(mapping, err, LORA_ENOMEM, "folder: expected room for %zu MiB in %.200s, got less; choose a folder on another disk",
               bytes >> 20, folder);
    void *p = MapViewOfFile(mapping, FILE_MAP_ALL_ACCESS, 0, 0, bytes);
    (void)CloseHandle(mapping);
    LORA_CHECK(p, err, LORA_ENOMEM, "folder: expected addresses for %zu MiB, got none", bytes >> 20);
    *out = p;
    return LORA_OK;
}

void lora_unmap_file(void *p, size_t bytes) {
    (void)bytes;
    (void)UnmapViewOfFile(p);
}

/* What is done with leaves the working set when it is unlocked a second time than it was locked. */
void lora_advise_pages(void *p, size_t bytes, lora_page_use use) {
    if (use == LORA_PAGE_SOON) return; /* the system reads ahead by itself */
    uintptr_t page = lora_os_limits().page, begin = ((uintptr_t)p + page - 1) / page * page, end = ((uintptr_t)p + bytes) / page * page;
    if (begin < end) (void)VirtualUnlock((void *)begin, end - begin);
}
#endif
