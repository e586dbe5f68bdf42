/* Whether a large block can be had at all. Linux grants more than it has and ends the process, or another one, when the
 * memory is written to: whoever asks for gigabytes is told before. */
#include <stdio.h>

#include "lora_c/context.h"

enum { LARGE = 1 << 30 };

/* Bytes that Linux counts as available, swap included; SIZE_MAX where it does not say. */
static size_t memory_left(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    size_t kib = 0, value;
    int found = 0;
    while (file && fgets(line, sizeof line, file)) {
        int available = sscanf(line, "MemAvailable: %zu", &value) == 1;
        if (!available && sscanf(line, "SwapFree: %zu", &value) != 1) continue;
        found |= available;
        kib += value;
    }
    if (file) (void)fclose(file);
    return found ? kib * 1024 : SIZE_MAX;
}

bool lora_memory_fits(size_t bytes) { return bytes < LARGE || bytes <= memory_left(); }
