/* The dequantize() method of the compressed matrix types. */
#ifndef LORA_PY_DEQUANTIZE_H
#define LORA_PY_DEQUANTIZE_H

#include "lora_c/bindings/py_buffer.h"

/** Decodes a whole matrix into out (rows, cols), contiguous. */
typedef lora_status (*lora_py_decode)(lora_ctx *ctx, const void *matrix, void *out, lora_dtype dtype, lora_error *err);

/** Parses dtype and out, makes the array where none was given, decodes without the GIL. o owns matrix. */
PyObject *lora_py_dequantize(PyObject *o, lora_ctx *ctx, const void *matrix, int64_t rows, int64_t cols, lora_py_decode decode,
                             PyObject *args, PyObject *kwargs);

/* The sections of its docstring that all types share. */
#define LORA_PY_DEQUANTIZE_DOC                                                                                                             \
    "Parameters\n----------\n"                                                                                                             \
    "dtype : str or dtype\n    float32, float16 or bfloat16 (needs ml_dtypes).\n"                                                          \
    "out : array, optional\n    C-contiguous and writable, of the tensor's shape and of dtype.\n\n"                                        \
    "Returns\n-------\nndarray\n    out, or a new array.\n\n"                                                                              \
    "Raises\n------\nTypeError, ValueError\n    dtype is another, or out does not fit."

#endif
