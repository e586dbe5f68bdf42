/* How the operations of optimizers cut a list of arrays into tasks: a task lies in one array, by sizes alone. */
#ifndef LORA_OPS_OPTIM_CHUNKS_H
#define LORA_OPS_OPTIM_CHUNKS_H

#include "lora_c/ops/ctx.h"
#include "lora_c/optim.h"

enum { LORA_OPTIM_ELEMENTS = 16384 }; /* per task, about */

/* Where an array begins: its first task, and its first element, block of 8-bit moments, row and column among those of all arrays. */
typedef struct lora_array_start {
    int64_t task, element, block, row, col;
} lora_array_start;

/* n_params + 1 starts, the last one the ends. */
typedef struct lora_chunks {
    int64_t n_params;
    const lora_param *params;
    lora_array_start *starts;
    int64_t per_task;
    bool whole_rows; /* a task has whole rows of a matrix */
} lora_chunks;

/* What one task has: count elements of an array from first on. */
typedef struct lora_chunk {
    const lora_param *param;
    const lora_array_start *start;
    int64_t index, task, first, count;
} lora_chunk;

typedef void (*lora_chunk_fn)(void *job, const lora_chunk *chunk);

/** In LORA_SCRATCH_REDUCE, with bytes_per_task more for each task behind the starts (8-byte aligned) in *more. */
lora_status lora_chunks_make(lora_ctx *ctx, int64_t n_params, const lora_param *params, int64_t per_task, bool whole_rows,
                             size_t bytes_per_task, lora_chunks *out, void **more, lora_error *err) LORA_MUST_CHECK;
/** Calls fn for every task, in parallel. */
void lora_each_chunk(lora_ctx *ctx, const lora_chunks *chunks, lora_chunk_fn fn, void *job);
/** The sum of what the tasks of an array left, in their order. */
double lora_chunk_sum(const lora_chunks *chunks, int64_t index, const double *partial);

#endif
