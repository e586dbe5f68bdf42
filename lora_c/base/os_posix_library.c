/* Libraries that are loaded, where the system is a POSIX one. */
#define _GNU_SOURCE
#include "lora_c/base/os.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__ELF__)
#include <elf.h>
#include <link.h>
#endif

void *lora_library_open(const char *path, char *why, size_t bytes) {
    enum { LONGEST = 4096 };
    char file[LONGEST];
    bool here = !strchr(path, '/') && access(path, F_OK) == 0;
    int n = snprintf(file, sizeof file, "%s%s", here ? "./" : "", path);
    void *library = n > 0 && n < LONGEST ? dlopen(file, RTLD_NOW | RTLD_LOCAL) : NULL;
    const char *said = library ? "" : dlerror();
    snprintf(why, bytes, "%s", said ? said : "no reason");
    return library;
}

void *lora_library_symbol(void *library, const char *name) { return dlsym(library, name); }
void lora_library_close(void *library) { dlclose(library); }

const char *lora_file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char lora_path_separator(void) { return ':'; }

bool lora_file_beside(const void *address, const char *name, char *path, size_t bytes) {
    Dl_info self = {0};
    if (!dladdr(address, &self) || !self.dli_fname) return false;
    int folder = (int)(lora_file_name(self.dli_fname) - self.dli_fname), n = snprintf(path, bytes, "%.*s%s", folder, self.dli_fname, name);
    return n > 0 && (size_t)n < bytes && access(path, F_OK) == 0;
}

/* --- what a file must be before the loader may see it, which waits for ever at a pipe and ends the process where a file is shorter
 * than its headers say --- */

#if defined(__ELF__)
/* Whether every part that is loaded lies inside the file. Files that are no ELF are the loader's to explain. */
static bool is_whole(int file, off_t size) {
    ElfW(Ehdr) header;
    if (pread(file, &header, sizeof header, 0) != (ssize_t)sizeof header || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return true;
    for (int i = 0; i < header.e_phnum; i++) {
        ElfW(Phdr) part;
        off_t at = (off_t)header.e_phoff + (off_t)i * header.e_phentsize;
        if (pread(file, &part, sizeof part, at) != (ssize_t)sizeof part) return false;
        if (part.p_filesz > (uint64_t)size || part.p_offset > (uint64_t)size - part.p_filesz) return false;
    }
    return true;
}
#else
static bool is_whole(int file, off_t size) { return file >= 0 && size >= 0; }
#endif

const char *lora_library_fault(const char *path) {
    struct stat about;
    if (stat(path, &about) != 0) return NULL; /* the loader says why */
    if (S_ISDIR(about.st_mode)) return "a folder";
    if (!S_ISREG(about.st_mode)) return "no regular file";
    int file = open(path, O_RDONLY | O_CLOEXEC);
    bool whole = file < 0 || is_whole(file, about.st_size);
    if (file >= 0) close(file);
    return whole ? NULL : "one that is cut off";
}
#endif
