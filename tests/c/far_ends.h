/* Arrays of more than 2^31 elements of which both ends have content, and what lies between is neither looked at nor written: the shim
 * runs the first and the last blocks of a launch alone. Results have the bits of short arrays with the same ends. */
#ifndef LORA_TESTS_FAR_ENDS_H
#define LORA_TESTS_FAR_ENDS_H

#include "tests/c/far_rows.h"

typedef enum end_kind { END_FLOATS, END_BYTES, END_HALVES } end_kind; /* from 0 to 1; any; bfloat16 from 0 to 1 */

/* n elements, the first head and the last tail of which have content. */
typedef struct end_array {
    void *data;
    end_kind kind;
    int64_t n, head, tail;
} end_array;

enum { END_RESULTS = 1 << 20, END_ARRAYS = 16 };

typedef struct end_run {
    lora_ctx *ctx;
    end_array arrays[END_ARRAYS];
    int n_arrays;
    unsigned char *results;
    size_t bytes;
} end_run;

/* An array of the run, freed with it. Never less than what the shim takes as it is touched where far is said. */
end_array *end_array_of(end_run *r, end_kind kind, int64_t n, int64_t head, int64_t tail, bool far);
/* Both ends become results. */
void end_keep(end_run *r, const end_array *a);

typedef struct end_case {
    const char *name;
    lora_precision precision;
    lora_status (*run)(end_run *r, bool far, lora_error *err);
} end_case;

/* Every case short and far, on the device in use, the shim. */
void end_check(const end_case *cases, int n);

#endif
