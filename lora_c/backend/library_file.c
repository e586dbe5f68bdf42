/* What a file must be before the system's loader may see it: that waits for ever at a pipe and ends the process where a file is
 * shorter than its headers say. */
#define _DEFAULT_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__ELF__)
#include <elf.h>
#include <link.h>
#endif

#include "lora_c/backend/load.h"

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
