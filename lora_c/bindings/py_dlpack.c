/* A Parameter or a DeviceArray for other libraries, without a copy. */
#include "lora_c/bindings/py_dlpack.h"

#include <stdlib.h>
#include <string.h>

#include "lora_c/bindings/py_devicearray.h"

/* What a capsule gives away: it holds the object, and with it its memory. */
typedef struct exported {
    union {
        lora_dl_managed plain;
        lora_dl_managed_versioned versioned;
    } as;
    PyObject *of;
    int64_t shape[LORA_PY_MAX_DIMS], strides[LORA_PY_MAX_DIMS];
} exported;

/* From any thread, with or without the GIL. After the interpreter's end the memory ends with the process. */
static void end_export(exported *e) {
    if (!Py_IsInitialized()) return;
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF(e->of);
    PyMem_RawFree(e);
    PyGILState_Release(gil);
}
static void end_plain(lora_dl_managed *self) { end_export(self->holder); }
static void end_versioned(lora_dl_managed_versioned *self) { end_export(self->holder); }

/* A capsule under its first name was taken by nobody; consumers rename it. */
static const char PLAIN[] = LORA_PY_DLTENSOR, VERSIONED[] = LORA_PY_DLTENSOR_VERSIONED;
static void end_capsule(PyObject *capsule) {
    if (PyCapsule_IsValid(capsule, PLAIN)) end_plain(PyCapsule_GetPointer(capsule, PLAIN));
    if (PyCapsule_IsValid(capsule, VERSIONED)) end_versioned(PyCapsule_GetPointer(capsule, VERSIONED));
}

/* --- devices --- */

int lora_py_cuda_number(const char *device) {
    if (strncmp(device, "cuda", 4) != 0 || (device[4] != '\0' && device[4] != ':')) return -1;
    return device[4] ? (int)strtol(device + 5, NULL, 10) : 0;
}

static lora_ctx *context_of(PyObject *o) { return ((lora_py_object *)o)->ctx; }

static int device_of(PyObject *o, lora_dl_device *out) {
    const char *name = lora_ctx_device(context_of(o));
    int number = lora_py_cuda_number(name), is_array = lora_py_is_devicearray(o);
    *out = (lora_dl_device){.type = DL_CPU};
    if (lora_py_is_host(context_of(o))) return 0;
    *out = (lora_dl_device){.type = DL_CUDA, .id = number};
    if (number >= 0) return 0;
    PyErr_Format(PyExc_BufferError, "%s: expected one on the CPU or on an NVIDIA GPU, got one on device %s; use its %s",
                 is_array ? "DeviceArray" : "Parameter", name, is_array ? "to('cpu')" : "read()");
    return -1;
}

PyObject *lora_py_dlpack_device(PyObject *o, PyObject *unused) {
    (void)unused;
    lora_dl_device device;
    return device_of(o, &device) < 0 ? NULL : Py_BuildValue("(ii)", (int)device.type, (int)device.id);
}

/* --- capsules --- */

static int code_of(lora_py_kind kind) {
    if (kind == LORA_PY_BF16) return DL_BFLOAT;
    if (kind == LORA_PY_U8) return DL_UINT;
    return kind == LORA_PY_I32 || kind == LORA_PY_I64 ? DL_INT : DL_FLOAT;
}

static void describe(const lora_py_extent *memory, lora_dl_device device, exported *e, lora_dl_tensor *t) {
    int64_t stride = 1;
    for (int i = memory->ndim - 1; i >= 0; i--) {
        e->shape[i] = memory->shape[i];
        e->strides[i] = stride;
        stride *= e->shape[i];
    }
    *t = (lora_dl_tensor){.data = memory->data, .device = device, .ndim = memory->ndim, .shape = e->shape, .strides = e->strides};
    t->dtype.code = (uint8_t)code_of(memory->kind);
    t->dtype.bits = (uint8_t)(8 * lora_py_itemsize(memory->kind));
    t->dtype.lanes = 1;
}

static PyObject *make_capsule(PyObject *o, lora_dl_device device, int versioned) {
    lora_py_extent memory;
    exported *e = PyMem_RawCalloc(1, sizeof *e);
    if (!e) return PyErr_NoMemory();
    (void)lora_py_extent_of(o, &memory);
    describe(&memory, device, e, versioned ? &e->as.versioned.tensor : &e->as.plain.tensor);
    if (versioned) {
        e->as.versioned.version.major = DL_MAJOR;
        e->as.versioned.version.minor = DL_MINOR;
        e->as.versioned.holder = e;
        e->as.versioned.deleter = end_versioned;
        e->as.versioned.flags = memory.readonly ? DL_READ_ONLY : 0;
    } else {
        e->as.plain.holder = e;
        e->as.plain.deleter = end_plain;
    }
    PyObject *capsule = PyCapsule_New(e, versioned ? VERSIONED : PLAIN, end_capsule);
    if (capsule)
        e->of = Py_NewRef(o);
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

/* Whether the host's memory is wanted of what lies elsewhere; -1 with an exception. */
static int wants_host(PyObject *wanted, lora_dl_device own) {
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

enum { NO_ORDER = -1, LAST_DEFAULT = 2 };

/* The array API's standard for __dlpack__: with CUDA 0 has no meaning. */
static int check_stream(PyObject *stream, lora_dl_device own) {
    if (stream == Py_None) return 0;
    int overflow = 0;
    long long number = own.type == DL_CUDA && PyLong_Check(stream) ? PyLong_AsLongLongAndOverflow(stream, &overflow) : 0;
    if (!overflow && (number == NO_ORDER || number > 0)) return 0;
    return lora_py_refuse(PyExc_BufferError,
                          own.type == DL_CPU ? "stream: expected None on the CPU" : "stream: expected None, -1 or an int above 0", stream);
}

/* What the device was asked for comes before what the consumer asks for on its stream. Its library's default streams (1, 2, and None,
 * which is 1) are not asked to wait: the host does. -1: the consumer takes care itself. */
static lora_status settle(lora_ctx *ctx, long long stream, lora_error *err) {
    if (stream == NO_ORDER) return lora_device_check(ctx, err);
    if (stream <= LAST_DEFAULT) return lora_sync(ctx, err);
    return lora_stream_follows(ctx, (void *)(uintptr_t)stream, lora_ctx_stream(ctx), err);
}

static int order(PyObject *o, PyObject *stream) {
    lora_ctx *ctx = context_of(o);
    long long number = stream == Py_None ? 1 : PyLong_AsLongLong(stream);
    if (PyErr_Occurred()) return -1;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(ctx, status, settle(ctx, number, &err));
    if (status == LORA_OK) return 0;
    lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    return -1;
}

/* A copy is an array of NumPy's, which exports itself. */
static PyObject *export_copy(PyObject *o, PyObject *max_version) {
    PyObject *copy = PyObject_CallMethod(o, "to", "s", "cpu"), *capsule = NULL;
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
    dlpack_request r = {.stream = Py_None, .max_version = Py_None, .device = Py_None, .copy = Py_None};
    lora_dl_device own;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &r.stream, &r.max_version, &r.device, &r.copy)) return NULL;
    if (device_of(o, &own) < 0) return NULL;
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
    if (!versioned && lora_py_is_devicearray(o) && ((lora_py_devicearray *)o)->readonly) {
        PyErr_SetString(PyExc_BufferError, "max_version: expected (1, 0) or later for read-only memory, which older capsules cannot say");
        return NULL;
    }
    return order(o, r.stream) < 0 ? NULL : make_capsule(o, own, versioned);
}

const char lora_py_dlpack_doc[] =
    "__dlpack__($self, /, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
    "Return a DLPack capsule of the values, without a copy: of the CPU's memory or of an NVIDIA GPU's.\n\n"
    "What was asked for before comes first for whoever reads on stream, the number of a CUDA stream; for the default streams the host\n"
    "waits, with -1 nobody does. What a consumer writes, or reads, must have ended before the next use here, or before the end of the\n"
    "memory. dl_device=(1, 0) of a GPU's memory is a copy on the CPU.\n\n"
    "Raises\n------\nBufferError\n    What is asked for cannot be had.";
const char lora_py_dlpack_device_doc[] = "__dlpack_device__($self, /)\n--\n\n"
                                         "Return DLPack's (type, number) of the device: (1, 0) the CPU, (2, n) cuda:n.\n\n"
                                         "Raises\n------\nBufferError\n    It is another device.";
