/* The arrays of an optimizer's step as one list on the device, cut into tasks: a block finds its array in the list. */
#ifndef LORA_CUDA_OPTIM_ARRAYS_H
#define LORA_CUDA_OPTIM_ARRAYS_H

#include "lora_c/base/util.h"
#include "lora_c/cuda/state.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LORA_CUDA_BAND = 32 }; /* columns that a block adds down the rows */

/* Where an array begins among all of them: tasks of elements and of whole rows, bands of columns; then the parts of the state. */
typedef struct lora_cuda_array {
    float *data;
    const float *grad;
    int64_t n, cols;
    int64_t task, row_task, band;
    int64_t element, block, row, col;
    double lr_ratio;
    float decay, rate; /* what an optimizer's formula has of the array's own learning rate */
    int32_t decays;
} lora_cuda_array;

typedef struct lora_cuda_arrays {
    const lora_cuda_array *list; /* on the device */
    int64_t n, per_task;
    int64_t tasks, row_tasks, bands, rows, columns;
    const void *more; /* on the device */
} lora_cuda_arrays;

/* What is asked for: elements per task (of rows: about as many), the numbers of an array (NULL: none are needed), and bytes that go with
 * the list. */
typedef struct lora_cuda_arrays_want {
    int64_t per_task;
    void (*fill)(const void *hyper, const lora_param *param, lora_cuda_array *array);
    const void *hyper;
    const void *more;
    size_t more_bytes;
} lora_cuda_arrays_want;

LORA_INLINE int64_t lora_cuda_rows_per_task(int64_t per_task, int64_t cols) { return lora_max_i64(1, per_task / cols); }

/** One upload (lora_cuda_upload_list).   Errors  ENOMEM, EDEVICE */
lora_status lora_cuda_arrays_send(lora_cuda *c, int64_t n_params, const lora_param *params, const lora_cuda_arrays_want *want,
                                  lora_cuda_arrays *out, lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
