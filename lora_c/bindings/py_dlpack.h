/* Memory of this library for others, and of others for it, by DLPack.
 * Source   github.com/dmlc/dlpack, include/dlpack/dlpack.h (version 1.0); data-apis.org/array-api, __dlpack__ and __dlpack_device__ */
#ifndef LORA_PY_DLPACK_H
#define LORA_PY_DLPACK_H

#include "lora_c/bindings/py_state.h"

/* The structs as DLPack lays them out. */
enum { DL_CPU = 1, DL_CUDA = 2, DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_MAJOR = 1, DL_MINOR = 0, DL_READ_ONLY = 1 };
#define LORA_PY_DLTENSOR "dltensor"
#define LORA_PY_DLTENSOR_VERSIONED "dltensor_versioned"

typedef struct lora_dl_device {
    int32_t type, id;
} lora_dl_device;

typedef struct lora_dl_tensor {
    void *data;
    lora_dl_device device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides; /* in elements */
    uint64_t byte_offset;
} lora_dl_tensor;

typedef struct lora_dl_managed {
    lora_dl_tensor tensor;
    void *holder;
    void (*deleter)(struct lora_dl_managed *self);
} lora_dl_managed;

typedef struct lora_dl_managed_versioned {
    struct {
        uint32_t major, minor;
    } version;
    void *holder;
    void (*deleter)(struct lora_dl_managed_versioned *self);
    uint64_t flags;
    lora_dl_tensor tensor;
} lora_dl_managed_versioned;

/* Of a Parameter or a DeviceArray. */
PyObject *lora_py_dlpack(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *lora_py_dlpack_device(PyObject *o, PyObject *unused);
extern const char lora_py_dlpack_doc[], lora_py_dlpack_device_doc[];

/** The number of an NVIDIA GPU by the name of its device, "cuda" or "cuda:n"; -1 for other devices. */
int lora_py_cuda_number(const char *device);

#endif
