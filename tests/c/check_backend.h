/* What the files of the family "backend" share. */
#ifndef LORA_TESTS_CHECK_BACKEND_H
#define LORA_TESTS_CHECK_BACKEND_H

#include "tests/c/op_run.h"

/* A random weight of the host of one of the kinds and formats. */
typedef struct backend_weight {
    const char *name;
    lora_weight w;
    void *memory[4];
} backend_weight;

int backend_weights(void);                                             /* how many kinds there are; the first is float32 */
backend_weight backend_make_weight(op_run *r, int kind, int64_t rows); /* of BACKEND_COLS columns */
void backend_free_weight(backend_weight *w);

enum { BACKEND_COLS = 256, BACKEND_LINEAR_ENTRIES = 14, BACKEND_QUANTIZE_ENTRIES = 3 }; /* check_backend_quantize.c */

void check_backend_linear(void);

#endif
