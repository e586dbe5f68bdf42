/* NumPy, as far as the binding needs it: to create results and to recognise types that have no buffer format. */
#ifndef LORA_PY_ARRAY_H
#define LORA_PY_ARRAY_H

#include "lora_c/bindings/py_buffer.h"

int lora_py_import_numpy(void);

/** A new array (zeroed when clear). kind: one of LORA_PY_ANY; bfloat16 needs ml_dtypes. NULL with an exception. */
PyObject *lora_py_new_array(lora_py_kind kind, int ndim, const int64_t *shape, int clear, void **data);
/** An array over memory that owner keeps alive. */
PyObject *lora_py_view(PyObject *owner, lora_py_kind kind, int ndim, const int64_t *shape, const void *data, int writable);
/** Makes a new array read-only; -1 with an exception. */
int lora_py_set_readonly(PyObject *array);
/** A float32 copy of a bfloat16 array. */
PyObject *lora_py_float_copy(const lora_py_array *a);
/** o itself, or for bfloat16 arrays (which refuse the buffer protocol) a uint16 view and *is_bf16 = 1. New reference. */
PyObject *lora_py_exporter(PyObject *o, int *is_bf16);
int lora_py_is_array(PyObject *o);
/** The dtype of a kind; that of bfloat16 is of ml_dtypes. NULL with an exception. */
PyObject *lora_py_numpy_dtype(lora_py_kind kind);
/** Holds an array's memory where it is: an export alone stops neither resize(refcheck=False) of the array that owns it, which
 *  a weak reference does, nor the end of what that array was made over (a mapped file, a bytearray), which an export of that
 *  does. Arrays that are given other memory by way of their data attribute or __setstate__ cannot be held. */
int lora_py_pin(PyObject *exporter, lora_py_pinned *pin);
/** A float64 array of our own with what the array o holds. New reference. */
PyObject *lora_py_doubles(PyObject *o, const char *name);

#endif
