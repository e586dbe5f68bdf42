/* The checks of matrices that operations are given. */
#ifndef LORA_BASE_MAT_H
#define LORA_BASE_MAT_H

#include <stdbool.h>

#include "lora_c/status.h"
#include "lora_c/types.h"

/* A matrix and the name of the argument that it came from. */
typedef struct lora_arg {
    const char *name;
    lora_mat mat;
} lora_arg;

static inline lora_arg lora_named(const char *name, lora_mat mat) { return (lora_arg){.name = name, .mat = mat}; }

/* n elements of 4 bytes behind each other: a vector of floats, ids, positions. */
static inline lora_mat lora_mat_vector(const void *data, int64_t n) { return lora_mat_f32(data, 1, n, n); }

/* A row of a float32 matrix; NULL where the matrix is absent. */
static inline float *lora_mat_row(lora_mat m, int64_t row) { return m.data ? (float *)m.data + row * m.ld : NULL; }

/** A shape >= 0, rows that do not overlap each other, memory where there are elements.   Errors  ESHAPE, EINVAL */
lora_status lora_mat_check(lora_arg a, lora_error *err) LORA_MUST_CHECK;
/** The same, and float32 of this shape.   Errors  ESHAPE, EDTYPE, EINVAL */
lora_status lora_mat_check_f32(lora_arg a, int64_t rows, int64_t cols, lora_error *err) LORA_MUST_CHECK;

/** The same, and float32 or bfloat16. */
lora_status lora_mat_check_narrow(lora_arg a, int64_t rows, int64_t cols, lora_error *err) LORA_MUST_CHECK;

/** Whether two matrices share an element. Column blocks of one buffer (gate and up behind each other in a row) interleave
 *  without overlapping: with equal row strides the distance within a row decides, with different strides any common address
 *  counts as overlap. Absent and empty ones overlap nothing. */
bool lora_mat_overlap(lora_mat a, lora_mat b);
/** Refuses an output that overlaps another argument.   Errors  EINVAL */
lora_status lora_mat_disjoint(lora_arg out, lora_arg other, lora_error *err) LORA_MUST_CHECK;
/** The same, but the very same matrix (pointer and stride) is welcome. */
lora_status lora_mat_same_or_disjoint(lora_arg out, lora_arg other, lora_error *err) LORA_MUST_CHECK;
/** Kind, shape and pointers of a weight called name; what a quantized one holds inside is its own format's business.
 *  Errors  ESHAPE, EINVAL */
lora_status lora_mat_check_weight(const char *name, const lora_weight *w, lora_error *err) LORA_MUST_CHECK;

#endif
