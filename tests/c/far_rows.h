/* Operations on rows that lie more than 2^31 elements and 2^32 bytes apart: on devices whose memory is taken up by what is touched, as
 * the shim's is. Results have the bits that rows close together have. */
#ifndef LORA_TESTS_FAR_ROWS_H
#define LORA_TESTS_FAR_ROWS_H

#include "tests/c/check_ops.h"

enum { FAR_MATS = 8, FAR_SMALL = 2048 };
#define FAR (((int64_t)1 << 31) + 64) /* elements */

/* What a case works on, at addresses of the device, with random numbers in it. */
typedef struct far_rows {
    lora_ctx *ctx;
    int rows, cols;
    int64_t ld;
    lora_mat m[FAR_MATS]; /* (rows, cols) each */
    float *small;         /* (FAR_SMALL), behind each other, of 0 to 1 */
    int32_t *ids;         /* (rows), the last row first */
    int64_t *rows_of;     /* (rows), the same */
} far_rows;

/* All matrices and what is small are the results. */
typedef struct far_case {
    const char *name;
    int rows, cols, mats;
    lora_precision precision;
    bool aligned; /* not at odd strides, too */
    lora_status (*run)(far_rows *, lora_error *);
} far_case;

/* On the device in use. */
void far_check(const far_case *cases, int n);
/* Whether the device in use has memory without end. */
bool far_has_room(void);

/* Copies of what is at host, on the device; freed with the run. */
void *far_send(lora_ctx *ctx, const void *host, size_t bytes);

void check_far_layers(void);
void check_far_arrays(void);
void check_far_dropout(void);
void check_far_optim(void);
void check_far_weights(void);

#endif
