/* The layer as Python has it. */
#ifndef LORA_BINDINGS_PY_LORALINEAR_H
#define LORA_BINDINGS_PY_LORALINEAR_H

#include "lora_c/bindings/py_devicearray.h"

typedef struct lora_py_loralinear {
    lora_py_object base;
    PyObject *given; /* the base as it was passed */
    lora_py_weight weight;
    PyObject *bias_keep;
    const float *bias;
    float *dbias;
    lora_py_parameter *A, *B, *magnitude; /* magnitude: DoRA's, or NULL */
    float *norm;                          /* (out_features), with magnitude: of the present W + s B A */
    int64_t rank;
    double lora_alpha, scaling, dropout;
    uint64_t seed;
    const char *apart;                 /* what does not lie in one block with A; NULL: all does */
    Py_ssize_t flat_size, flat_stride; /* of the buffer: A, B, ... behind each other, and bytes of an element */
} lora_py_loralinear;

lora_adapter lora_py_linear_adapter(const lora_py_loralinear *self);
/** Computes the row norms of W + s B A as A and B are now; -1 with an exception. */
int lora_py_refresh_norm(lora_py_loralinear *self);
/** A converter of PyArg_Parse: a seed is any 64 bits. */
int lora_py_seed(PyObject *o, void *out);
PyObject *lora_py_linear_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);

#endif
