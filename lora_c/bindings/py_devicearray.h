/* DeviceArray: an array in the memory of a device other than the CPU; and what it has in common with Parameters there. */
#ifndef LORA_PY_DEVICEARRAY_H
#define LORA_PY_DEVICEARRAY_H

#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devices.h"

typedef struct lora_py_devicearray {
    lora_py_object base;
    void *data;
    void *own;      /* data, where it is this object's to free */
    PyObject *keep; /* what owns the memory otherwise */
    lora_py_kind kind;
    int readonly, ndim;
    int64_t shape[LORA_PY_MAX_DIMS], n;
} lora_py_devicearray;

/* Memory of a DeviceArray, or of a Parameter wherever it lies: C-contiguous. */
typedef struct lora_py_extent {
    void *data;
    lora_py_kind kind;
    int readonly, ndim;
    int64_t shape[LORA_PY_MAX_DIMS], n;
} lora_py_extent;

/** Whether o is a DeviceArray or a Parameter, and then its memory (out may be NULL). */
int lora_py_extent_of(PyObject *o, lora_py_extent *out);
int lora_py_is_devicearray(PyObject *o);

/** An empty DeviceArray, not published, for memory that it shall have. NULL with an exception. */
lora_py_devicearray *lora_py_devicearray_new(lora_py_state *state, lora_py_device device, lora_py_kind kind, int ndim,
                                             const int64_t *shape);
/** A DeviceArray over memory that keep (a new reference is taken) owns. */
PyObject *lora_py_devicearray_over(lora_py_state *state, lora_py_device device, const lora_py_extent *memory, PyObject *keep);

/** A new array on a device: NumPy's where its memory is the host's, else a DeviceArray. Zeroed when clear. NULL with an exception. */
PyObject *lora_py_new_on(lora_py_state *state, lora_py_device device, lora_py_kind kind, int ndim, const int64_t *shape, int clear,
                         void **data);

/** The device of what the first argument of a call is: that of a DeviceArray, a DeviceWeight, a Parameter, else the CPU. */
lora_py_device lora_py_device_given(lora_py_state *state, PyObject *o);

Py_ssize_t lora_py_itemsize(lora_py_kind kind);
const char *lora_py_kind_name(lora_py_kind kind);

/* py_cuda_interface.c */
PyObject *lora_py_get_cuda_interface(PyObject *o, void *unused);
/** The DeviceArray over what x.__cuda_array_interface__ says; device NULL: "cuda". NULL with an exception. */
PyObject *lora_py_from_cuda_interface(lora_py_state *state, PyObject *x, const char *device);

/* py_from_dlpack.c */
/** Checks and fills in shape and strides (in elements; NULL: C-contiguous) of memory of others. -1 with an exception that names x. */
int lora_py_foreign_layout(lora_py_extent *e, int64_t ndim, const int64_t *shape, const int64_t *strides);
extern PyMethodDef lora_py_device_array_functions[]; /* to_device, from_dlpack */

#endif
