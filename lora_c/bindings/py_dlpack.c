/* A Parameter for other libraries, without a copy: DLPack.
 * Source   github.com/dmlc/dlpack, include/dlpack/dlpack.h (version 1.0); data-apis.org/array-api, __dlpack__ and __dlpack_device__ */
#include "lora_c/bindings/py_dlpack.h"

#include <stdlib.h>
#include <string.h>

#include "lora_c/bindings/py_devices.h"

typedef lora_py_parameter parameter;

/* The structs as DLPack lays them out. */
enum { DL_CPU = 1, DL_CUDA = 2, DL_FLOAT = 2, DL_MAJOR = 1, DL_MINOR = 0 };

typedef struct dl_device {
    int32_t type, id;
} dl_device;

typedef struct dl_tensor {
    void *data;
    dl_device device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides; /* in elements */
    uint64_t byte_offset;
} dl_tensor;

typedef struct dl_managed {
    dl_tensor tensor;
    void *holder;
    void (*deleter)(struct dl_managed *self);
} dl_managed;

typedef struct dl_managed_versioned {
    struct {
        uint32_t major, minor;
    } version;
    void *holder;
    void (*deleter)(struct dl_managed_versioned *self);
    uint64_t flags;
    dl_tensor tensor;
} dl_managed_versioned;

/* What a capsule gives away: it holds the Parameter, and with it its memory. */
typedef struct exported {
    union {
        dl_managed plain;
        dl_managed_versioned versioned;
    } as;
    PyObject *parameter;
    int64_t shape[LORA_PY_MAX_DIMS], strides[LORA_PY_MAX_DIMS];
} exported;

/* From any thread, with or without the GIL. After the interpreter's end the memory ends with the process. */
static void end_export(exported *e) {
    if (!Py_IsInitialized()) return;
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF(e->parameter);
    PyMem_RawFree(e);
    PyGILState_Release(gil);
}
static void end_plain(dl_managed *self) { end_export(self->holder); }
static void end_versioned(dl_managed_versioned *self) { end_export(self->holder); }

/* A capsule under its first name was taken by nobody; consumers rename it. */
static const char PLAIN[] = "dltensor", VERSIONED[] = "dltensor_versioned";
static void end_capsule(PyObject *capsule) {
    if (PyCapsule_IsValid(capsule, PLAIN)) end_plain(PyCapsule_GetPointer(capsule, PLAIN));
    if (PyCapsule_IsValid(capsule, VERSIONED)) end_versioned(PyCapsule_GetPointer(capsule, VERSIONED));
}

/* --- devices --- */

static int device_of(const parameter *self, dl_device *out) {
    const char *name = lora_ctx_device(self->base.ctx);
    if (lora_py_is_host(self->base.ctx)) {
        *out = (dl_device){.type = DL_CPU};
        return 0;
    }
    if (strncmp(name, "cuda", 4) == 0 && (name[4] == '\0' || name[4] == ':')) {
        *out = (dl_device){.type = DL_CUDA, .id = name[4] ? (int32_t)strtol(name + 5, NULL, 10) : 0};
        return 0;
    }
    PyErr_Format(PyExc_BufferError, "Parameter: expected one on the CPU or on an NVIDIA GPU, got one on device %s; use its read()", name);
    return -1;
}

PyObject *lora_py_dlpack_device(PyObject *o, PyObject *unused) {
    (void)unused;
    dl_device device;
    return device_of((parameter *)o, &device) < 0 ? NULL : Py_BuildValue("(ii)", (int)device.type, (int)device.id);
}

/* --- capsules --- */

static void describe(parameter *self, dl_device device, exported *e, dl_tensor *t) {
    int64_t stride = 1;
    for (int i = self->ndim - 1; i >= 0; i--) {
        e->shape[i] = self->shape[i];
        e->strides[i] = stride;
        stride *= e->shape[i];
    }
    *t = (dl_tensor){.data = self->data, .device = device, .ndim = self->ndim, .shape = e->shape, .strides = e->strides};
    t->dtype.code = DL_FLOAT;
    t->dtype.bits = 32;
    t->dtype.lanes = 1;
}

static PyObject *make_capsule(parameter *self, dl_device device, int versioned) {
    exported *e = PyMem_RawCalloc(1, sizeof *e);
    if (!e) return PyErr_NoMemory();
    describe(self, device, e, versioned ? &e->as.versioned.tensor : &e->as.plain.tensor);
    if (versioned) {
        e->as.versioned.version.major = DL_MAJOR;
        e->as.versioned.version.minor = DL_MINOR;
        e->as.versioned.holder = e;
        e->as.versioned.deleter = end_versioned;
    } else {
        e->as.plain.holder = e;
        e->as.plain.deleter = end_plain;
    }
    PyObject *capsule = PyCapsule_New(e, versioned ? VERSIONED : PLAIN, end_capsule);
    if (capsule)
        e->parameter = Py_NewRef((PyObject *)self);
    else
        PyMem_RawFree(e);
    return capsule;
}

/* --- the method --- */

typedef struct dlpack_request {
    PyObject *stream, *max_version, *device, *copy;
} dlpack_request;

/* Whether the consumer knows version 1; -1 with an exception. */
static int knows_versions(PyObject *max_version) {
    int major, minor;
    if (max_version == Py_None) return 0;
    if (!PyTuple_Check(max_version) || !PyArg_ParseTuple(max_version, "ii", &major, &minor)) {
        PyErr_Clear();
        return lora_py_refuse(PyExc_TypeError, "max_version: expected a tuple of two int", max_version);
    }
    return major >= DL_MAJOR;
}

/* Whether the host's memory is wanted of a Parameter that lies elsewhere; -1 with an exception. */
static int wants_host(PyObject *wanted, dl_device own) {
    int type, id;
    if (wanted == Py_None) return 0;
    if (!PyTuple_Check(wanted) || !PyArg_ParseTuple(wanted, "ii", &type, &id)) {
        PyErr_Clear();
        return lora_py_refuse(PyExc_TypeError, "dl_device: expected a tuple of two int", wanted);
    }
    if (type == own.type && id == own.id) return 0;
    if (type == DL_CPU && id == 0) return 1;
    PyErr_Format(PyExc_BufferError, "dl_device: expected (%d, %d), or (1, 0) for a copy on the CPU, got (%d, %d)", (int)own.type,
                 (int)own.id, type, id);
    return -1;
}

static int check_stream(PyObject *stream, dl_device own) {
    if (stream == Py_None) return 0;
    if (own.type == DL_CUDA && PyLong_Check(stream)) return 0;
    return lora_py_refuse(PyExc_BufferError, own.type == DL_CPU ? "stream: expected None on the CPU" : "stream: expected an int or None",
                          stream);
}

/* What the device was asked for has ended, whichever stream the consumer reads on. -1 with an exception. */
static int settle(parameter *self) {
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_sync(self->base.ctx, &err));
    if (status == LORA_OK) return 0;
    lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
    return -1;
}

/* A copy is an array of NumPy's, which exports itself. */
static PyObject *export_copy(PyObject *o, PyObject *max_version) {
    PyObject *copy = PyObject_CallMethod(o, "read", NULL), *capsule = NULL;
    PyObject *method = copy ? PyObject_GetAttrString(copy, "__dlpack__") : NULL, *none = method ? PyTuple_New(0) : NULL;
    PyObject *options = !none ? NULL : max_version == Py_None ? PyDict_New() : Py_BuildValue("{s:O}", "max_version", max_version);
    if (options) capsule = PyObject_Call(method, none, options);
    Py_XDECREF(options);
    Py_XDECREF(none);
    Py_XDECREF(method);
    Py_XDECREF(copy);
    return capsule;
}

PyObject *lora_py_dlpack(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    parameter *self = (parameter *)o;
    dlpack_request r = {.stream = Py_None, .max_version = Py_None, .device = Py_None, .copy = Py_None};
    dl_device own;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &r.stream, &r.max_version, &r.device, &r.copy)) return NULL;
    if (device_of(self, &own) < 0) return NULL;
    int versioned = knows_versions(r.max_version), host = versioned < 0 ? -1 : wants_host(r.device, own);
    int copy = host < 0 || r.copy == Py_None ? -1 : PyObject_IsTrue(r.copy);
    if (host < 0 || PyErr_Occurred() || check_stream(r.stream, own) < 0) return NULL;
    if (host && copy == 0) {
        PyErr_SetString(PyExc_BufferError, "copy: expected None or True for memory of another device, got False");
        return NULL;
    }
    if (copy == 1 && !host && own.type != DL_CPU) {
        PyErr_SetString(PyExc_BufferError, "copy: expected None or False, or dl_device=(1, 0) for a copy on the CPU, got True");
        return NULL;
    }
    if (host || copy == 1) return export_copy(o, r.max_version);
    return settle(self) < 0 ? NULL : make_capsule(self, own, versioned);
}
