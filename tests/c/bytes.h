/* Bytes between guard bands at any address: what a kernel must not touch around its elements; and how many elements it is given. */
#ifndef LORA_TESTS_BYTES_H
#define LORA_TESTS_BYTES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Below, at and above the widths of vectors, and some that leave every rest. */
static const int64_t LENGTHS[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 97, 127, 172, 257, 509, 1031, 4099};
enum { N_LENGTHS = sizeof LENGTHS / sizeof *LENGTHS };

enum { BYTES_GUARD = 32 };

/* n bytes between guard bands, shifted by offset bytes. */
typedef struct bytes {
    uint8_t *all, *p;
    int64_t n, offset;
} bytes;

static inline bytes bytes_make(int64_t n, int64_t offset) {
    bytes b = {.all = malloc((size_t)(n + 2 * BYTES_GUARD + offset + 64)), .n = n, .offset = offset};
    memset(b.all, 0xff, (size_t)(n + 2 * BYTES_GUARD + offset + 64)); /* 0xffffffff is a NaN as float */
    b.p = b.all + BYTES_GUARD + offset;
    return b;
}
static inline bool bytes_guarded(bytes b) {
    for (int64_t i = 0; i < BYTES_GUARD + b.offset; i++)
        if (b.all[i] != 0xff) return false;
    for (int64_t i = 0; i < BYTES_GUARD; i++)
        if (b.p[b.n + i] != 0xff) return false;
    return true;
}

#endif
