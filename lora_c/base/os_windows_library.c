/* Libraries and paths on Windows. */
#include "lora_c/base/os.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <stdio.h>
#include <string.h>

#include "lora_c/base/os_windows.h"

bool lora_wide_path(const char *path, wchar_t *wide) {
    static const wchar_t PREFIX[] = L"\\\\?\\", SHARE[] = L"\\\\?\\UNC\\";
    enum { ROOM = 16 };
    wchar_t *given = lora_os_alloc(sizeof(void *), 2 * LORA_WIDE_PATH * sizeof *given, false),
            *whole = given ? given + LORA_WIDE_PATH : NULL;
    bool converted = given && MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, given, LORA_WIDE_PATH) > 0;
    DWORD n = converted ? GetFullPathNameW(given, LORA_WIDE_PATH, whole, NULL) : 0;
    bool is_one = n > 0 && n < LORA_WIDE_PATH - ROOM;
    if (is_one && wcsncmp(whole, L"\\\\?", 3) == 0)
        wcscpy(wide, whole);
    else if (is_one && wcsncmp(whole, L"\\\\", 2) == 0) /* a folder that another machine shares */
        wcscat(wcscpy(wide, SHARE), whole + 2);
    else if (is_one)
        wcscat(wcscpy(wide, PREFIX), whole);
    lora_os_free(given);
    return is_one;
}

void *lora_library_open(const char *path, char *why, size_t bytes) {
    static wchar_t wide[LORA_WIDE_PATH]; /* under the lock of the engine that loads it */
    HMODULE library = lora_wide_path(path, wide) ? LoadLibraryExW(wide, NULL, LOAD_WITH_ALTERED_SEARCH_PATH) : NULL;
    if (!library) snprintf(why, bytes, "error %lu of the system for %s", (unsigned long)GetLastError(), path);
    return library;
}

void *lora_library_symbol(void *library, const char *name) {
    FARPROC found = GetProcAddress(library, name);
    void *symbol;
    memcpy(&symbol, &found, sizeof symbol); /* C has no conversion between the two kinds of pointers */
    return symbol;
}

void lora_library_close(void *library) { (void)FreeLibrary(library); }

/* The loader checks what it maps. */
const char *lora_library_fault(const char *path) {
    static wchar_t wide[LORA_WIDE_PATH];
    DWORD about = lora_wide_path(path, wide) ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;
    return about != INVALID_FILE_ATTRIBUTES && about & FILE_ATTRIBUTE_DIRECTORY ? "a folder" : NULL;
}

const char *lora_file_name(const char *path) {
    const char *name = path;
    for (const char *p = path; *p; p++)
        if (*p == '/' || *p == '\\' || *p == ':') name = p + 1;
    return name;
}

char lora_path_separator(void) { return ';'; }

bool lora_file_beside(const void *address, const char *name, char *path, size_t bytes) {
    enum { LONGEST = 4096 };
    wchar_t wide[LONGEST];
    char own[LONGEST];
    HMODULE module = NULL;
    const DWORD how = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExW(how, (const wchar_t *)address, &module)) return false;
    DWORD length = GetModuleFileNameW(module, wide, LONGEST);
    if (length == 0 || length >= LONGEST || WideCharToMultiByte(CP_UTF8, 0, wide, -1, own, LONGEST, NULL, NULL) == 0) return false;
    int folder = (int)(lora_file_name(own) - own), n = snprintf(path, bytes, "%.*s%s", folder, own, name);
    if (n <= 0 || (size_t)n >= bytes || MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, LONGEST) == 0) return false;
    return GetFileAttributesW(wide) != INVALID_FILE_ATTRIBUTES;
}
#endif
