/* NumPy, as far as the binding needs it: to create results and to recognise types that have no buffer format. */
#ifndef LORA_PY_ARRAY_H
#define LORA_PY_ARRAY_H

#include "lora_c/bindings/py_buffer.h"

int lora_py_import_numpy(void);

/** A new array (zeroed when clear). kind: LORA_PY_F32, F16, BF16 (ml_dtypes), U8. NULL with an exception. */
PyObject *lora_py_new_array(lora_py_kind kind, int ndim, const int64_t *shape, int clear, void **data);
/** An array over memory that owner keeps alive. */
PyObject *lora_py_view(PyObject *owner, lora_py_kind kind, int ndim, const int64_t *shape, const void *data, int writable);
/** A float32 copy of a bfloat16 array. */
PyObject *lora_py_float_copy(const lora_py_array *a);
/** o itself, or for bfloat16 arrays (which refuse the buffer protocol) their uint16 view and *is_bf16 = 1. */
PyObject *lora_py_exporter(PyObject *o, int *is_bf16);
/** Lists and the like as an int64 array, other things unchanged. New reference. */
PyObject *lora_py_integers(PyObject *o);
/** A contiguous float64 array of o; *data and *n describe it. New reference. */
PyObject *lora_py_doubles(PyObject *o, const char *name, const double **data, int64_t *n);

#endif
