#include "lora_c/bindings/py_devices.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_LISTED = 64 };

static const char CAPSULE[] = "lora_c._core.device";

/* Files of backends, separated by ':'. */
static const char *backend_paths(void) { return getenv("LORA_C_BACKENDS"); }

/* A device's context ends before the one that it is a view of, which its capsule holds. */
static void destroy_device(PyObject *capsule) {
    PyObject *parent = PyCapsule_GetContext(capsule);
    lora_ctx_destroy(PyCapsule_GetPointer(capsule, CAPSULE));
    Py_XDECREF(parent);
}

static lora_ctx *context_of(PyObject *capsule) { return PyCapsule_GetPointer(capsule, CAPSULE); }

static PyObject *open_device(lora_py_state *state, const char *name) {
    lora_ctx *ctx = NULL;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(state->ctx, status, lora_ctx_create_on(state->ctx, name, backend_paths(), &ctx, &err));
    if (status != LORA_OK) return lora_py_raise(state, &err);
    PyObject *capsule = PyCapsule_New(ctx, CAPSULE, destroy_device);
    if (!capsule) {
        lora_ctx_destroy(ctx);
        return NULL;
    }
    (void)PyCapsule_SetContext(capsule, Py_NewRef(state->owner)); /* fails for what is no capsule */
    return capsule;
}

/* The capsule of a device other than the CPU, borrowed from the state. */
static PyObject *device_of(lora_py_state *state, const char *name) {
    int i = 0;
    for (; i < LORA_PY_MOST_DEVICES && state->devices[i]; i++)
        if (strcmp(lora_ctx_device(context_of(state->devices[i])), name) == 0) return state->devices[i];
    if (i == LORA_PY_MOST_DEVICES) {
        PyErr_Format(PyExc_RuntimeError, "device: expected at most %d devices in use, got %s besides", LORA_PY_MOST_DEVICES, name);
        return NULL;
    }
    PyObject *capsule = open_device(state, name);
    for (i = 0; capsule && i < LORA_PY_MOST_DEVICES; i++) /* others may have run meanwhile */
        if (!state->devices[i]) return state->devices[i] = capsule;
    Py_XDECREF(capsule);
    return NULL;
}

int lora_py_put_on(lora_py_state *state, void *object, const char *device) {
    lora_py_object *self = object;
    if (strcmp(device, "cpu") == 0) return 0;
    PyObject *capsule = device_of(state, device);
    if (!capsule) return -1;
    Py_SETREF(self->owner, Py_NewRef(capsule));
    self->ctx = context_of(capsule);
    return 0;
}

PyObject *lora_py_get_device(PyObject *o, void *unused) {
    (void)unused;
    return PyUnicode_FromString(lora_ctx_device(((lora_py_object *)o)->ctx));
}

int lora_py_same_device(const lora_ctx *ctx, const lora_py_object *o, const char *what) {
    const char *expected = lora_ctx_device(ctx), *given = lora_ctx_device(o->ctx);
    if (strcmp(expected, given) == 0) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected a Parameter on device %s, got one on %s; make it with device='%s'", what, expected, given, expected);
    return -1;
}

int lora_py_traverse_devices(lora_py_state *state, visitproc visit, void *arg) {
    for (int i = 0; i < LORA_PY_MOST_DEVICES; i++) Py_VISIT(state->devices[i]);
    return 0;
}

void lora_py_clear_devices(lora_py_state *state) {
    for (int i = 0; i < LORA_PY_MOST_DEVICES; i++) Py_CLEAR(state->devices[i]);
}

PyDoc_STRVAR(devices_doc,
"devices($module, /)\n--\n\n"
"Return [{'name': str, 'description': str, 'reason': str}, ...]: the devices that Decoder() and Parameter() accept, the CPU first.\n\n"
"reason is empty where the device can be used; else it says why not and what helps. Backends are loaded from the files in\n"
"the environment variable LORA_C_BACKENDS, separated by ':'.");

static PyObject *devices(PyObject *module, PyObject *unused) {
    (void)unused;
    lora_py_state *state = PyModule_GetState(module);
    lora_device *found = PyMem_Calloc(MOST_LISTED, sizeof *found);
    if (!found) return PyErr_NoMemory();
    int64_t n;
    LORA_PY_CALL(state->ctx, n, lora_devices(state->ctx, backend_paths(), MOST_LISTED, found));
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list && i < n && i < MOST_LISTED; i++) {
        PyObject *entry = Py_BuildValue("{s:s,s:s,s:s}", "name", found[i].name, "description", found[i].description, "reason", found[i].reason);
        if (!entry || PyList_Append(list, entry) < 0) Py_CLEAR(list);
        Py_XDECREF(entry);
    }
    PyMem_Free(found);
    return list;
}

PyDoc_STRVAR(transfers_doc,
"transfers($module, device='cpu', /)\n--\n\n"
"Return how often and how much was moved to and from a device, and how often its end was waited for.\n\n"
"Returns\n-------\ndict\n    uploads, downloads, syncs, uploaded_bytes, downloaded_bytes, since the device is in use.");

static PyObject *transfers(PyObject *module, PyObject *args) {
    const char *name = "cpu";
    lora_py_state *state = PyModule_GetState(module);
    if (!PyArg_ParseTuple(args, "|s:transfers", &name)) return NULL;
    PyObject *capsule = strcmp(name, "cpu") == 0 ? NULL : device_of(state, name);
    if (PyErr_Occurred()) return NULL;
    lora_ctx *ctx = capsule ? context_of(capsule) : state->ctx;
    lora_transfers t;
    LORA_PY_CALL(ctx, t, lora_ctx_transfers(ctx));
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L}", "uploads", (long long)t.uploads, "downloads", (long long)t.downloads, "syncs",
                         (long long)t.syncs, "uploaded_bytes", (long long)t.uploaded_bytes, "downloaded_bytes",
                         (long long)t.downloaded_bytes);
}

PyMethodDef lora_py_device_functions[] = {
    {"devices", devices, METH_NOARGS, devices_doc},
    {"transfers", transfers, METH_VARARGS, transfers_doc},
    {0},
};
