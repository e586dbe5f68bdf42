/* Numba's protocol for memory of NVIDIA GPUs, version 3, out and in.
 * Source   numba.readthedocs.io, "CUDA Array Interface (Version 3)" */
#include "lora_c/bindings/py_devicearray.h"
#include "lora_c/bindings/py_dlpack.h"
#include "lora_c/bindings/py_foreign.h"

enum { VERSION = 3 };

static const struct {
    lora_py_kind kind;
    const char *text;
} types[] = {{LORA_PY_F32, "<f4"}, {LORA_PY_F16, "<f2"}, {LORA_PY_F64, "<f8"},
             {LORA_PY_U8, "|u1"},  {LORA_PY_I32, "<i4"}, {LORA_PY_I64, "<i8"}};

/* --- out ---------------------------------------------------------------------------------------------------------- */

PyObject *lora_py_get_cuda_interface(PyObject *o, void *unused) {
    (void)unused;
    const lora_py_devicearray *self = (const lora_py_devicearray *)o;
    const char *device = lora_ctx_device(self->base.ctx), *text = NULL;
    if (lora_py_cuda_number(device) < 0)
        return PyErr_Format(PyExc_AttributeError, "__cuda_array_interface__: expected memory of an NVIDIA GPU, got memory of device %s",
                            device);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].kind == self->kind) text = types[i].text;
    if (!text)
        return PyErr_Format(PyExc_TypeError, "__cuda_array_interface__: expected an element type that has a typestr, got %s; use DLPack",
                            lora_py_kind_name(self->kind));
    return Py_BuildValue("{s:N,s:s,s:(KN),s:O,s:K,s:i}", "shape", lora_py_shape(self->ndim, self->shape), "typestr", text, "data",
                         (unsigned long long)(uintptr_t)self->data, PyBool_FromLong(self->readonly), "strides", Py_None, "stream",
                         (unsigned long long)(uintptr_t)lora_ctx_stream(self->base.ctx), "version", (int)VERSION);
}

/* --- in ----------------------------------------------------------------------------------------------------------- */

static PyObject *entry(PyObject *interface, const char *key) { /* borrowed; NULL where it is absent or None */
    PyObject *value = PyDict_GetItemString(interface, key);
    return value == Py_None ? NULL : value;
}

static int read_type(PyObject *interface, lora_py_extent *e) {
    PyObject *given = entry(interface, "typestr");
    for (size_t i = 0; given && PyUnicode_Check(given) && i < sizeof types / sizeof *types; i++) {
        if (PyUnicode_CompareWithASCIIString(given, types[i].text) != 0) continue;
        e->kind = types[i].kind;
        return 0;
    }
    return lora_py_refuse(PyExc_TypeError, "x: expected the typestr of float32, float16, float64, uint8, int32 or int64",
                          given ? given : Py_None);
}

/* A tuple of up to LORA_PY_MAX_DIMS int. Returns how many; -1 with an exception. */
static int read_sizes(PyObject *given, const char *expected, int64_t *sizes) {
    if (!given || !PyTuple_Check(given) || PyTuple_GET_SIZE(given) > LORA_PY_MAX_DIMS)
        return lora_py_refuse(PyExc_ValueError, expected, given ? given : Py_None);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); i++)
        if (!lora_py_whole(PyTuple_GET_ITEM(given, i), &sizes[i])) return -1;
    return (int)PyTuple_GET_SIZE(given);
}

static int read_layout(PyObject *interface, lora_py_extent *e) {
    int64_t shape[LORA_PY_MAX_DIMS], strides[LORA_PY_MAX_DIMS];
    int ndim = read_sizes(entry(interface, "shape"), "x: expected a shape of 1 to 8 int", shape);
    PyObject *given = entry(interface, "strides");
    if (ndim < 0) return -1;
    if (!given) return lora_py_foreign_layout(e, ndim, shape, NULL);
    int n = read_sizes(given, "x: expected as many strides as sizes", strides);
    if (n < 0) return -1;
    if (n != ndim) return lora_py_refuse(PyExc_ValueError, "x: expected as many strides as sizes", given);
    for (int i = 0; i < n; i++) { /* bytes; what is no multiple of an element is no stride of a contiguous array, either */
        Py_ssize_t item = lora_py_itemsize(e->kind);
        strides[i] = strides[i] % item == 0 ? strides[i] / item : -1;
    }
    return lora_py_foreign_layout(e, ndim, shape, strides);
}

static int read_data(PyObject *interface, lora_py_extent *e) {
    PyObject *given = entry(interface, "data");
    if (entry(interface, "mask")) {
        PyErr_SetString(PyExc_ValueError, "x: expected an array without a mask, got one with it");
        return -1;
    }
    if (!given || !PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 2 || !PyLong_Check(PyTuple_GET_ITEM(given, 0)))
        return lora_py_refuse(PyExc_ValueError, "x: expected data to be an address and whether it is read-only", given ? given : Py_None);
    e->data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(given, 0));
    e->readonly = PyObject_IsTrue(PyTuple_GET_ITEM(given, 1));
    return PyErr_Occurred() ? -1 : 0;
}

/* What is asked for here comes after what x's library asked for on its stream; None: there is nothing to wait for. */
static int follow(lora_py_state *state, lora_py_device device, PyObject *interface) {
    PyObject *given = entry(interface, "stream");
    if (!given) return 0;
    int overflow = 0;
    long long number = PyLong_Check(given) ? PyLong_AsLongLongAndOverflow(given, &overflow) : 0;
    if (number <= 0 || overflow) return lora_py_refuse(PyExc_ValueError, "x: expected stream to be None or an int above 0", given);
    void *stream = (void *)(uintptr_t)number;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(device.ctx, status, lora_stream_follows(device.ctx, lora_ctx_stream(device.ctx), stream, &err));
    if (status == LORA_OK) return 0;
    lora_py_raise(state, &err);
    return -1;
}

static PyObject *over(lora_py_state *state, lora_py_device device, PyObject *x, PyObject *interface) {
    lora_py_extent e = {0};
    if (read_type(interface, &e) < 0 || read_data(interface, &e) < 0 || read_layout(interface, &e) < 0 ||
        follow(state, device, interface) < 0)
        return NULL;
    PyObject *keep = lora_py_hold_foreign(device, &(lora_py_foreign){.object = x});
    PyObject *array = keep ? lora_py_devicearray_over(state, device, &e, keep) : NULL;
    Py_XDECREF(keep);
    return array;
}

PyObject *lora_py_from_cuda_interface(lora_py_state *state, PyObject *x, const char *name) {
    lora_py_device device;
    if (!name) name = "cuda";
    PyObject *given = PyObject_GetAttrString(x, "__cuda_array_interface__");
    if (!given && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Format(PyExc_TypeError, "x: expected an array with __dlpack__ or __cuda_array_interface__, got %s", Py_TYPE(x)->tp_name);
        return NULL;
    }
    if (given && !PyDict_Check(given)) (void)lora_py_refuse(PyExc_TypeError, "x: expected __cuda_array_interface__ to be a dict", given);
    PyObject *interface = given && PyDict_Check(given) ? PyDict_Copy(given) : NULL; /* nobody else changes it */
    Py_XDECREF(given);
    if (!interface) return NULL;
    PyObject *array = NULL;
    if (lora_py_cuda_number(name) < 0)
        PyErr_Format(PyExc_ValueError, "device: expected 'cuda' or 'cuda:n' for __cuda_array_interface__, got '%s'", name);
    else if (lora_py_find_device(state, name, &device) == 0)
        array = over(state, device, x, interface);
    Py_DECREF(interface);
    return array;
}
