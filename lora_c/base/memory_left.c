/* How much memory this process could still take, and whether a large block can be had at all. Linux grants more than it has
 * and ends the process, or another one, when the memory is written to: whoever asks for gigabytes is told before.
 *
 * Three bounds: what the machine has, what the control groups allow (a container, a batch job), and the limits of the process
 * (ulimit). A group's use counts file pages that Linux drops when memory is short (inactive_file); these are left. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "lora_c/base/os.h"
#include "lora_c/memory.h"

enum { LARGE = 1 << 30, PATH = 1024, LINE = 1024 };

/* Where a kind of control groups lies, and what its files are called. */
typedef struct {
    const char *folder, *limit, *used, *inactive;
} group_files;

static const group_files UNIFIED = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};
static const group_files MEMORY = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};

static size_t less(size_t a, size_t b) { return a < b ? a : b; }

/* The number behind "name " in a file, or the file's only one where name is NULL; SIZE_MAX where there is none ("max"). */
static size_t number_in(const char *folder, const char *file_name, const char *name) {
    char path[2 * PATH], line[LINE];
    size_t value = SIZE_MAX;
    const int length = snprintf(path, sizeof path, "%s/%s", folder, file_name);
    FILE *file = length > 0 && length < (int)sizeof path ? fopen(path, "r") : NULL;
    while (file && fgets(line, sizeof line, file)) {
        const size_t skip = name ? strlen(name) : 0;
        if (name && (strncmp(line, name, skip) != 0 || (line[skip] != ' ' && line[skip] != ':'))) continue;
        if (sscanf(line + skip + (name != NULL), "%zu", &value) != 1) value = SIZE_MAX;
        break;
    }
    if (file) (void)fclose(file);
    return value;
}

/* Bytes that the machine counts as available; SIZE_MAX where it does not say. */
static size_t left_on_machine(const char *root, bool with_swap) {
    char folder[PATH];
    (void)snprintf(folder, sizeof folder, "%s/proc", root);
    const size_t available = number_in(folder, "meminfo", "MemAvailable");
    const size_t swap = with_swap ? number_in(folder, "meminfo", "SwapFree") : SIZE_MAX;
    if (available == SIZE_MAX) return SIZE_MAX;
    return (available + (swap == SIZE_MAX ? 0 : swap)) * 1024;
}

/* Bytes that one group may have. */
static size_t limit_of_group(const char *folder, const group_files *files) { return number_in(folder, files->limit, NULL); }

/* Bytes left in one group. Its limit may be far beyond the machine's memory, which says that there is none. */
static size_t left_in_group(const char *folder, const group_files *files) {
    const size_t limit = number_in(folder, files->limit, NULL);
    const size_t used = number_in(folder, files->used, NULL);
    if (limit == SIZE_MAX || used == SIZE_MAX) return SIZE_MAX;
    const size_t inactive = number_in(folder, "memory.stat", files->inactive);
    const size_t held = inactive < used ? used - inactive : used;
    return limit > held ? limit - held : 0;
}

typedef size_t of_group(const char *folder, const group_files *files);

/* The least of a group and the groups around it. Inside of a container the path of /proc/self/cgroup may not be
 * there: its own group is then the folder itself. */
static size_t least_of_groups(const char *root, const group_files *files, const char *group, of_group *of) {
    char folder[PATH];
    const int base = snprintf(folder, sizeof folder, "%s%s", root, files->folder);
    const int length = snprintf(folder, sizeof folder, "%s%s%s", root, files->folder, group);
    if (base < 0 || length < base || length >= (int)sizeof folder) return SIZE_MAX;
    size_t least = of(folder, files);
    for (char *end; (end = strrchr(folder + base, '/')) != NULL;) {
        *end = '\0';
        least = less(least, of(folder, files));
    }
    return least;
}

/* The least of the control groups of this process; SIZE_MAX where no group bounds it. */
static size_t least_of_own_groups(const char *root, of_group *of) {
    char path[PATH], line[LINE];
    size_t least = SIZE_MAX;
    (void)snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) { /* "0::/group" or "4:memory:/group" */
        line[strcspn(line, "\n")] = '\0';
        char *kinds = strchr(line, ':'), *group = kinds ? strchr(kinds + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        const group_files *files = kinds[1] == '\0' ? &UNIFIED : strcmp(kinds + 1, "memory") == 0 ? &MEMORY : NULL;
        if (files) least = less(least, least_of_groups(root, files, group, of));
    }
    if (file) (void)fclose(file);
    return least;
}

static size_t left_of(size_t limit, size_t used) { return limit == SIZE_MAX ? SIZE_MAX : limit - less(limit, used); }

/* What the limits on addresses and on data leave: statm counts the pages of both (its first and sixth number). */
static size_t left_of_process(const char *root) {
    const lora_process_limits limits = lora_os_limits();
    char path[PATH];
    size_t mapped = 0, written = 0;
    if (limits.addresses == SIZE_MAX && limits.data == SIZE_MAX) return SIZE_MAX;
    const int length = snprintf(path, sizeof path, "%s/proc/self/statm", root);
    FILE *file = length > 0 && length < (int)sizeof path ? fopen(path, "r") : NULL;
    const bool known = file && fscanf(file, "%zu %*u %*u %*u %*u %zu", &mapped, &written) == 2;
    if (file) (void)fclose(file);
    if (!known) return SIZE_MAX;
    return less(left_of(limits.addresses, mapped * limits.page), left_of(limits.data, written * limits.page));
}

size_t lora_memory_left(const char *root, bool with_swap) {
    const size_t of_machine = less(left_on_machine(root, with_swap), lora_os_memory_left(with_swap));
    return less(less(of_machine, least_of_own_groups(root, left_in_group)), left_of_process(root));
}

size_t lora_memory_total(const char *root) {
    char folder[PATH];
    (void)snprintf(folder, sizeof folder, "%s/proc", root);
    const size_t total = number_in(folder, "meminfo", "MemTotal");
    const size_t of_machine = less(total == SIZE_MAX ? SIZE_MAX : total * 1024, lora_os_memory_total());
    const lora_process_limits limits = lora_os_limits();
    return less(less(of_machine, least_of_own_groups(root, limit_of_group)), less(limits.addresses, limits.data));
}

bool lora_memory_fits(size_t bytes) { return bytes < LARGE || bytes <= lora_memory_left("", true); }
