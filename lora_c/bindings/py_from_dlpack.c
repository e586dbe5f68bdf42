/* Memory of NVIDIA GPUs that other libraries own, without a copy, and copies of NumPy's arrays on a device. */
#include "lora_c/bindings/py_devicearray.h"
#include "lora_c/bindings/py_deviceweight.h"
#include "lora_c/bindings/py_dlpack.h"
#include "lora_c/bindings/py_foreign.h"

#include <string.h>

/* --- what others say of their memory ------------------------------------------------------------------------------ */

static const char TOO_LARGE[] = "an array that fits into memory, got shape";

static int fail_layout(const char *expected, int64_t ndim, const int64_t *numbers) {
    PyObject *tuple = lora_py_shape((int)ndim, numbers);
    if (tuple) PyErr_Format(PyExc_ValueError, "x: expected %s %R", expected, tuple);
    Py_XDECREF(tuple);
    return -1;
}

int lora_py_foreign_layout(lora_py_extent *e, int64_t ndim, const int64_t *shape, const int64_t *strides) {
    if (ndim < 1 || ndim > LORA_PY_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "x: expected 1 to %d dimensions, got %lld", (int)LORA_PY_MAX_DIMS, (long long)ndim);
        return -1;
    }
    if (!shape) {
        PyErr_SetString(PyExc_ValueError, "x: expected the size of each dimension, got none");
        return -1;
    }
    e->ndim = (int)ndim;
    e->n = 1;
    for (int i = e->ndim - 1; i >= 0; i--) {
        e->shape[i] = shape[i];
        if (shape[i] > 1 && strides && strides[i] != e->n)
            return fail_layout("a C-contiguous array (give x.contiguous() or its like), got strides of", ndim, strides);
        if (shape[i] < 1) return fail_layout("at least one element, got shape", ndim, shape);
        if (__builtin_mul_overflow(e->n, shape[i], &e->n)) return fail_layout(TOO_LARGE, ndim, shape);
    }
    if (!e->data) {
        PyErr_SetString(PyExc_ValueError, "x: expected memory, got a null pointer");
        return -1;
    }
    int64_t bytes;
    uintptr_t end;
    if (__builtin_mul_overflow(e->n, (int64_t)lora_py_itemsize(e->kind), &bytes) ||
        __builtin_add_overflow((uintptr_t)e->data, (uintptr_t)bytes, &end))
        return fail_layout(TOO_LARGE, ndim, shape);
    if ((uintptr_t)e->data % (size_t)lora_py_itemsize(e->kind) == 0) return 0;
    PyErr_Format(PyExc_ValueError, "x: expected memory aligned to its elements of %zd bytes, got address %p", lora_py_itemsize(e->kind),
                 e->data);
    return -1;
}

static int kind_of(const lora_dl_tensor *t, lora_py_kind *kind) {
    static const struct {
        uint8_t code, bits;
        lora_py_kind kind;
    } known[] = {{DL_FLOAT, 32, LORA_PY_F32}, {DL_BFLOAT, 16, LORA_PY_BF16}, {DL_FLOAT, 16, LORA_PY_F16}, {DL_FLOAT, 64, LORA_PY_F64},
                 {DL_UINT, 8, LORA_PY_U8},    {DL_INT, 32, LORA_PY_I32},     {DL_INT, 64, LORA_PY_I64}};
    for (size_t i = 0; t->dtype.lanes == 1 && i < sizeof known / sizeof *known; i++) {
        if (known[i].code != t->dtype.code || known[i].bits != t->dtype.bits) continue;
        *kind = known[i].kind;
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "x: expected " LORA_PY_ANY_TEXT ", got DLPack's type %d of %d bits and %d lanes", (int)t->dtype.code,
                 (int)t->dtype.bits, (int)t->dtype.lanes);
    return -1;
}

static int extent_of_tensor(const lora_dl_tensor *t, lora_dl_device expected, int readonly, lora_py_extent *e) {
    if (t->device.type != expected.type || t->device.id != expected.id) {
        PyErr_Format(PyExc_ValueError, "x: expected memory of the device that __dlpack_device__ says, (%d, %d), got (%d, %d)",
                     (int)expected.type, (int)expected.id, (int)t->device.type, (int)t->device.id);
        return -1;
    }
    uintptr_t begin;
    if (__builtin_add_overflow((uintptr_t)t->data, t->byte_offset, &begin)) begin = 0;
    *e = (lora_py_extent){.data = t->data ? (void *)begin : NULL, .readonly = readonly};
    return kind_of(t, &e->kind) < 0 ? -1 : lora_py_foreign_layout(e, t->ndim, t->shape, t->strides);
}

/* --- capsules ------------------------------------------------------------------------------------------------------ */

static PyObject *take_locked(lora_py_state *state, lora_py_device device, PyObject *capsule, lora_dl_device expected) {
    int versioned = PyCapsule_IsValid(capsule, LORA_PY_DLTENSOR_VERSIONED);
    lora_py_foreign foreign = {0};
    lora_py_extent e;
    if (!versioned && !PyCapsule_IsValid(capsule, LORA_PY_DLTENSOR))
        return PyErr_Format(PyExc_ValueError, "x: expected __dlpack__ to give a capsule that nobody took, got %R", capsule);
    if (versioned) {
        foreign.versioned = PyCapsule_GetPointer(capsule, LORA_PY_DLTENSOR_VERSIONED);
        if (foreign.versioned->version.major != DL_MAJOR)
            return PyErr_Format(PyExc_BufferError, "x: expected DLPack %d, got %u.%u", (int)DL_MAJOR,
                                (unsigned)foreign.versioned->version.major, (unsigned)foreign.versioned->version.minor);
    } else {
        foreign.plain = PyCapsule_GetPointer(capsule, LORA_PY_DLTENSOR);
    }
    int readonly = versioned && (foreign.versioned->flags & DL_READ_ONLY);
    if (extent_of_tensor(versioned ? &foreign.versioned->tensor : &foreign.plain->tensor, expected, readonly, &e) < 0) return NULL;
    PyObject *keep = lora_py_hold_foreign(device, &foreign);
    if (!keep) return NULL;
    (void)PyCapsule_SetName(capsule, versioned ? "used_" LORA_PY_DLTENSOR_VERSIONED : "used_" LORA_PY_DLTENSOR); /* it is valid */
    PyObject *array = lora_py_devicearray_over(state, device, &e, keep);
    Py_DECREF(keep);
    return array;
}

/* Takes a capsule over: it is renamed, and its end is ours. Of two threads that are given the same one, one gets it. */
static PyObject *take_capsule(lora_py_state *state, lora_py_device device, PyObject *capsule, lora_dl_device expected) {
    PyObject *array;
    LORA_PY_BEGIN_CRITICAL(capsule);
    array = take_locked(state, device, capsule, expected);
    LORA_PY_END_CRITICAL();
    return array;
}

/* x.__dlpack__(stream=...), with the newest version that is known here where x knows of versions. */
static PyObject *ask_for_capsule(PyObject *x, lora_py_device device) {
    unsigned long long stream = (uintptr_t)lora_ctx_stream(device.ctx);
    PyObject *method = PyObject_GetAttrString(x, "__dlpack__"), *none = PyTuple_New(0), *capsule = NULL;
    PyObject *options = method && none ? Py_BuildValue("{s:K,s:(ii)}", "stream", stream, "max_version", DL_MAJOR, DL_MINOR) : NULL;
    if (options) capsule = PyObject_Call(method, none, options);
    if (options && !capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        if (PyDict_DelItemString(options, "max_version") == 0) capsule = PyObject_Call(method, none, options);
    }
    Py_XDECREF(options);
    Py_XDECREF(none);
    Py_XDECREF(method);
    return capsule;
}

/* The device that x.__dlpack_device__ says; -1 with an exception. */
static int read_device(PyObject *x, lora_dl_device *out) {
    int type, id;
    PyObject *said = PyObject_CallMethod(x, "__dlpack_device__", NULL);
    if (!said) return -1;
    int status = PyTuple_Check(said) && PyArg_ParseTuple(said, "ii", &type, &id) ? 0 : -1;
    if (status < 0) (void)lora_py_refuse(PyExc_TypeError, "x: expected __dlpack_device__ to give two int", said);
    Py_DECREF(said);
    if (status < 0) return -1;
    *out = (lora_dl_device){.type = type, .id = id};
    if (type == DL_CUDA && id >= 0) return 0;
    if (type == DL_CPU)
        PyErr_SetString(PyExc_ValueError, "x: expected memory of an NVIDIA GPU, got memory of the CPU; numpy.from_dlpack(x) reads it, and "
                                          "lora_c.to_device copies that to a device");
    else
        PyErr_Format(PyExc_ValueError, "x: expected memory of an NVIDIA GPU, DLPack's device (2, n), got (%d, %d); bring it to one", type,
                     id);
    return -1;
}

PyDoc_STRVAR(
    from_dlpack_doc,
    "from_dlpack($module, x, /, *, device=None)\n--\n\n"
    "Return a DeviceArray over the memory of an array that lies on an NVIDIA GPU, without a copy.\n\n"
    "Parameters\n----------\n"
    "x : array\n    Of any library: has __dlpack__ and __dlpack_device__, or __cuda_array_interface__ alone. float32, bfloat16, float16,\n"
    "    float64, uint8, int32 or int64, C-contiguous, not empty.\n"
    "device : str, optional\n    The device that x lies on. DLPack says it; __cuda_array_interface__ does not: 'cuda' by default.\n\n"
    "Returns\n-------\nDeviceArray\n    x is kept until its last use here has ended.\n\n"
    "Raises\n------\nTypeError\n    x is no such array, or has another element type.\n"
    "ValueError\n    It lies elsewhere, or is not contiguous.\nBufferError\n    x refuses.\nDeviceError\n    The device cannot be used.\n\n"
    "Notes\n-----\nStreams are put in order: what x's library was asked for comes before what is asked for here, and nobody waits.\n\n"
    "Source\n------\ndata-apis.org/array-api, __dlpack__; DLPack 1.0 with and without versions; Numba's __cuda_array_interface__ 3.");

static PyObject *from_dlpack(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "device", NULL};
    lora_py_state *state = PyModule_GetState(module);
    PyObject *x;
    const char *given = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$z:from_dlpack", names, &x, &given)) return NULL;
    if (!PyObject_HasAttrString(x, "__dlpack__")) return lora_py_from_cuda_interface(state, x, given);
    lora_dl_device said;
    lora_py_device device;
    char name[32];
    if (read_device(x, &said) < 0) return NULL;
    PyOS_snprintf(name, sizeof name, said.id ? "cuda:%d" : "cuda", (int)said.id);
    if (given && strcmp(given, name) != 0)
        return PyErr_Format(PyExc_ValueError, "device: expected '%s', where x lies, got '%s'", name, given);
    if (lora_py_find_device(state, name, &device) < 0) return NULL;
    PyObject *capsule = ask_for_capsule(x, device);
    PyObject *array = capsule ? take_capsule(state, device, capsule, said) : NULL;
    Py_XDECREF(capsule);
    return array;
}

/* --- from NumPy ----------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(
    to_device_doc,
    "to_device($module, array, device, /)\n--\n\n"
    "Copy an array, or a compressed weight, to a device.\n\n"
    "Parameters\n----------\n"
    "array : array, NF4Tensor, GGMLTensor or DeviceWeight\n    float32, bfloat16, float16, float64, uint8, int32 or int64, C-contiguous, "
    "not empty.\n"
    "device : str\n    A name of devices().\n\n"
    "Returns\n-------\nDeviceArray or DeviceWeight\n    What lies there already is returned as it is. On the CPU a NumPy array, or the "
    "tensor (of a DeviceWeight a copy).\n\n"
    "Raises\n------\nTypeError, ValueError\n    The array does not fit, or lies on another device.\n"
    "DeviceError\n    The device cannot be used.\nMemoryError\n    It has no room.");

static PyObject *copy_to(lora_py_state *state, lora_py_device device, PyObject *given) {
    lora_py_array a;
    void *to;
    if (lora_py_get(given, "array", LORA_PY_ANY, 0, &a) < 0) return NULL;
    PyObject *copy = lora_py_new_on(state, device, a.kind, a.ndim, a.shape, 0, &to);
    size_t bytes = (size_t)a.n * (size_t)a.itemsize;
    if (copy && lora_py_is_host(device.ctx))
        memcpy(to, a.data, bytes);
    else if (copy && lora_py_upload((lora_py_object *)copy, to, a.data, bytes) < 0)
        Py_CLEAR(copy);
    lora_py_release(&a);
    return copy;
}

static PyObject *to_device(PyObject *module, PyObject *args) {
    lora_py_state *state = PyModule_GetState(module);
    PyObject *given;
    const char *name;
    lora_py_device device;
    if (!PyArg_ParseTuple(args, "Os:to_device", &given, &name) || lora_py_find_device(state, name, &device) < 0) return NULL;
    int is_tensor = Py_IS_TYPE(given, state->nf4_type) || Py_IS_TYPE(given, state->ggml_type);
    int is_there = Py_IS_TYPE(given, state->devicearray_type) || Py_IS_TYPE(given, state->deviceweight_type);
    if (is_there && ((lora_py_object *)given)->ctx == device.ctx) return Py_NewRef(given);
    if (is_there && lora_py_is_host(device.ctx)) return PyObject_CallMethod(given, "to", "s", "cpu");
    if (Py_IS_TYPE(given, state->deviceweight_type))
        return PyErr_Format(PyExc_TypeError,
                            "array: expected memory of the CPU or of device %s, got a DeviceWeight on device %s; use its to('cpu')", name,
                            lora_ctx_device(((lora_py_object *)given)->ctx));
    if (is_tensor) return lora_py_is_host(device.ctx) ? Py_NewRef(given) : lora_py_deviceweight_new(state, device, given);
    return copy_to(state, device, given);
}

LORA_PY_KEEP(from_dlpack)

PyMethodDef lora_py_device_array_functions[] = {
    {"to_device", to_device, METH_VARARGS, to_device_doc},
    {"from_dlpack", LORA_PY_KEYWORDS from_dlpack_kept, METH_VARARGS | METH_KEYWORDS, from_dlpack_doc},
    {0},
};
