#include "lora_c/bindings/py_devices.h"

#include <string.h>

#include "lora_c/backend.h"
#include "lora_c/bindings/py_backend_paths.h"

static const char CAPSULE[] = "lora_c._core.device";

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
    char *paths = lora_py_backend_paths();
    if (!paths) return NULL;
    LORA_PY_CALL(state->ctx, status, lora_ctx_create_on(state->ctx, name, paths, &ctx, &err));
    PyMem_Free(paths);
    if (status != LORA_OK) return lora_py_raise(state, &err);
    PyObject *capsule = PyCapsule_New(ctx, CAPSULE, destroy_device);
    if (!capsule) {
        lora_ctx_destroy(ctx);
        return NULL;
    }
    (void)PyCapsule_SetContext(capsule, Py_NewRef(state->owner)); /* fails for what is no capsule */
    return capsule;
}

/* The place of a device's capsule, or the first empty one, with what was there. NULL with an exception where there is none. */
static _Atomic(PyObject *) *place_of(lora_py_state *state, const char *name, PyObject **there) {
    for (_Atomic(PyObject *) *at = state->devices; at < state->devices + LORA_PY_MOST_DEVICES; at++) {
        *there = atomic_load(at);
        if (!*there || strcmp(lora_ctx_device(context_of(*there)), name) == 0) return at;
    }
    PyErr_Format(PyExc_RuntimeError, "device: expected at most %d devices in use, got %s besides", LORA_PY_MOST_DEVICES, name);
    return NULL;
}

/* The capsule of a device other than the CPU, borrowed from the state. */
static PyObject *capsule_of(lora_py_state *state, const char *name) {
    PyObject *there = NULL;
    _Atomic(PyObject *) *at = place_of(state, name, &there);
    if (!at || there) return at ? there : NULL;
    PyObject *capsule = open_device(state, name);
    if (!capsule) return NULL;
    do { /* other threads may have run meanwhile, and opened the same one, or another */
        at = place_of(state, name, &there);
    } while (at && !there && !atomic_compare_exchange_strong(at, &there, capsule));
    if (at && !there) return capsule;
    Py_DECREF(capsule);
    return at ? there : NULL;
}

lora_py_device lora_py_cpu(const lora_py_state *state) { return (lora_py_device){.owner = state->owner, .ctx = state->ctx}; }

int lora_py_find_device(lora_py_state *state, const char *given, lora_py_device *out) {
    char name[LORA_DEVICE_NAME_BYTES];
    lora_device_name(given, name);
    *out = lora_py_cpu(state);
    if (strcmp(name, "cpu") == 0) return 0;
    PyObject *capsule = capsule_of(state, name);
    lora_error err = {0};
    if (!capsule) return -1;
    if (lora_device_check(context_of(capsule), &err) != LORA_OK) {
        lora_py_raise(state, &err);
        return -1;
    }
    *out = (lora_py_device){.owner = capsule, .ctx = context_of(capsule)};
    return 0;
}

int lora_py_contexts(const lora_py_state *state, lora_ctx **out) {
    int n = 0;
    out[n++] = state->ctx;
    PyObject *capsule;
    for (int i = 0; i < LORA_PY_MOST_DEVICES && (capsule = atomic_load(&state->devices[i])); i++) out[n++] = context_of(capsule);
    return n;
}

void lora_py_put_on(void *object, lora_py_device device) {
    lora_py_object *self = object;
    Py_SETREF(self->owner, Py_NewRef(device.owner));
    self->ctx = device.ctx;
}

int lora_py_is_host(const lora_ctx *ctx) { return lora_backend_of(ctx)->backend->host_memory; }

/* --- memory --- */

static const char PLACED[] = "lora_c._core.placed";

static void free_placed(PyObject *capsule) {
    PyObject *device = PyCapsule_GetContext(capsule);
    lora_ctx_free(context_of(device), PyCapsule_GetPointer(capsule, PLACED));
    Py_XDECREF(device);
}

PyObject *lora_py_hold(const lora_py_object *of, void *memory) {
    PyObject *capsule = PyCapsule_New(memory, PLACED, free_placed);
    if (capsule)
        (void)PyCapsule_SetContext(capsule, Py_NewRef(of->owner)); /* fails for what is no capsule */
    else
        lora_ctx_free(of->ctx, memory);
    return capsule;
}

static lora_status download(lora_ctx *ctx, void *to, const void *from, size_t bytes, lora_error *err) {
    LORA_TRY(lora_download(ctx, to, from, bytes, err));
    return lora_sync(ctx, err);
}

static lora_status upload(lora_ctx *ctx, void *to, const void *from, size_t bytes, lora_error *err) {
    LORA_TRY(lora_upload(ctx, to, from, bytes, err));
    return lora_sync(ctx, err);
}

static int finish(const lora_py_object *of, lora_status status, const lora_error *err) {
    if (status == LORA_OK) return 0;
    lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)of)), err);
    return -1;
}

int lora_py_download(const lora_py_object *of, void *to, const void *from, size_t bytes) {
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(of->ctx, status, download(of->ctx, to, from, bytes, &err));
    return finish(of, status, &err);
}

int lora_py_upload(const lora_py_object *of, void *to, const void *from, size_t bytes) {
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(of->ctx, status, upload(of->ctx, to, from, bytes, &err));
    return finish(of, status, &err);
}

/* --- names --- */

PyObject *lora_py_get_device(PyObject *o, void *unused) {
    (void)unused;
    return PyUnicode_FromString(lora_ctx_device(((lora_py_object *)o)->ctx));
}

int lora_py_same_memory(const lora_ctx *a, const lora_ctx *b) {
    return (lora_py_is_host(a) && lora_py_is_host(b)) || lora_backend_of(a)->state == lora_backend_of(b)->state;
}

const char *lora_py_other_loading(const lora_ctx *expected, const lora_ctx *given) {
    return strcmp(lora_ctx_device(expected), lora_ctx_device(given)) == 0 ? " of another loading of lora_c" : "";
}

int lora_py_same_device(const lora_ctx *ctx, const lora_py_object *o, const char *what) {
    const char *expected = lora_ctx_device(ctx);
    if (lora_py_same_memory(ctx, o->ctx)) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected a Parameter on device %s, got one on %s%s; make it with device='%s'", what, expected,
                 lora_ctx_device(o->ctx), lora_py_other_loading(ctx, o->ctx), expected);
    return -1;
}

lora_py_parameter *lora_py_trained_parameter(void *object, const lora_py_state *state, PyObject *o, Py_ssize_t i) {
    if (!Py_IS_TYPE(o, state->parameter_type)) {
        PyErr_Format(PyExc_TypeError, "params: expected Parameter objects, got %s at index %zd", Py_TYPE(o)->tp_name, i);
        return NULL;
    }
    lora_py_parameter *p = (lora_py_parameter *)o;
    if (!p->grad) {
        PyErr_Format(PyExc_ValueError, "params: expected parameters with requires_grad=True, got a frozen one at index %zd", i);
        return NULL;
    }
    if (i == 0)
        lora_py_put_on(object, lora_py_device_of(p));
    else if (lora_py_same_device(((lora_py_object *)object)->ctx, &p->base, "params") < 0)
        return NULL;
    return p;
}

int lora_py_traverse_devices(lora_py_state *state, visitproc visit, void *arg) {
    for (int i = 0; i < LORA_PY_MOST_DEVICES; i++) Py_VISIT(atomic_load(&state->devices[i]));
    return 0;
}

void lora_py_clear_devices(lora_py_state *state) {
    for (int i = 0; i < LORA_PY_MOST_DEVICES; i++) Py_XDECREF(atomic_exchange(&state->devices[i], NULL));
}

PyDoc_STRVAR(
    devices_doc,
    "devices($module, /)\n--\n\n"
    "Return [{'name': str, 'description': str, 'reason': str}, ...]: the devices that Decoder() and Parameter() accept, the CPU first.\n\n"
    "reason is empty where the device can be used; else it says why not and what helps. Backends are the plug-in for NVIDIA GPUs, where\n"
    "it was built, and the files in the environment variable LORA_C_BACKENDS, separated by ':'.");

static PyObject *entry_of(const lora_device *device) {
    PyObject *name = lora_py_text(device->name), *description = lora_py_text(device->description), *reason = lora_py_text(device->reason);
    PyObject *entry =
        name && description && reason ? Py_BuildValue("{s:O,s:O,s:O}", "name", name, "description", description, "reason", reason) : NULL;
    Py_XDECREF(name);
    Py_XDECREF(description);
    Py_XDECREF(reason);
    return entry;
}

static PyObject *devices(PyObject *module, PyObject *unused) {
    (void)unused;
    lora_py_state *state = PyModule_GetState(module);
    int64_t n = 0, written = 0;
    char *paths = lora_py_backend_paths();
    if (!paths) return NULL;
    LORA_PY_CALL(state->ctx, n, lora_devices(state->ctx, paths, 0, NULL));
    lora_device *found = PyMem_Calloc((size_t)n, sizeof *found);
    if (found) LORA_PY_CALL(state->ctx, written, lora_devices(state->ctx, paths, n, found));
    PyMem_Free(paths);
    if (!found) return PyErr_NoMemory();
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list && i < n && i < written; i++) {
        PyObject *entry = entry_of(&found[i]);
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
    lora_py_device device;
    if (lora_py_find_device(state, name, &device) < 0) return NULL;
    lora_transfers t;
    LORA_PY_CALL(device.ctx, t, lora_ctx_transfers(device.ctx));
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L}", "uploads", (long long)t.uploads, "downloads", (long long)t.downloads, "syncs",
                         (long long)t.syncs, "uploaded_bytes", (long long)t.uploaded_bytes, "downloaded_bytes",
                         (long long)t.downloaded_bytes);
}

PyDoc_STRVAR(
    memory_info_doc,
    "memory_info($module, device='cpu', /)\n--\n\n"
    "Return {'free': bytes, 'total': bytes} of a device, None where it does not say.\n\n"
    "free is what this process could still take beside all others: of the CPU memory_left(). total is what the device has: of the\n"
    "CPU the machine's memory, within the limits of the process's control groups.");

static PyObject *bytes_or_none(size_t bytes) { return bytes == SIZE_MAX ? Py_NewRef(Py_None) : PyLong_FromSize_t(bytes); }

static PyObject *memory_info(PyObject *module, PyObject *args) {
    const char *name = "cpu";
    lora_py_state *state = PyModule_GetState(module);
    lora_py_device device;
    if (!PyArg_ParseTuple(args, "|s:memory_info", &name) || lora_py_find_device(state, name, &device) < 0) return NULL;
    lora_memory_info info;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(device.ctx, status, lora_ctx_memory_info(device.ctx, &info, &err));
    if (status != LORA_OK) return lora_py_raise(state, &err);
    return Py_BuildValue("{s:N,s:N}", "free", bytes_or_none(info.free_bytes), "total", bytes_or_none(info.total_bytes));
}

PyMethodDef lora_py_device_functions[] = {
    {"devices", devices, METH_NOARGS, devices_doc},
    {"memory_info", memory_info, METH_VARARGS, memory_info_doc},
    {"transfers", transfers, METH_VARARGS, transfers_doc},
    {0},
};
