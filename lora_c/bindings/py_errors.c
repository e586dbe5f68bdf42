/* From status to exception, and what all objects of the module have in common. */
#include "lora_c/bindings/py_state.h"

#include <string.h>

PyObject *lora_py_text(const char *text) { return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace"); }

PyObject *lora_py_raise(lora_py_state *state, const lora_error *err) {
    PyObject *type = PyExc_RuntimeError;
    switch (err->code) {
    case LORA_EINVAL:
    case LORA_ESHAPE: type = PyExc_ValueError; break;
    case LORA_EDTYPE: type = PyExc_TypeError; break;
    case LORA_ENOMEM: type = PyExc_MemoryError; break;
    case LORA_EUNSUPPORTED: type = PyExc_NotImplementedError; break;
    case LORA_EDEVICE: type = state->device_error; break;
    case LORA_ESTOPPED: type = state->stopped_error; break;
    case LORA_EBUSY:
    case LORA_OK: break;
    }
    PyObject *message = lora_py_text(err->message[0] ? err->message : lora_status_name(err->code)); /* may name a file of any bytes */
    if (message) PyErr_SetObject(type, message);
    Py_XDECREF(message);
    return NULL;
}

void *lora_py_new(PyTypeObject *type) {
    lora_py_state *state = lora_py_state_of(type);
    lora_py_object *self = (lora_py_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    PyObject_GC_UnTrack(self);
    self->owner = Py_NewRef(state->owner);
    self->ctx = state->ctx;
    atomic_init(&self->busy, 0);
    return self;
}

PyObject *lora_py_publish(void *self) {
    if (self) PyObject_GC_Track(self);
    return self;
}

int lora_py_refuse(PyObject *kind, const char *expected, PyObject *given) {
    enum { LONGEST = 80 };
    PyErr_Clear();
    PyObject *text = PyObject_Repr(given);
    if (!text && !PyErr_ExceptionMatches(PyExc_Exception)) return -1; /* an interrupt stays one */
    PyErr_Clear();
    Py_ssize_t length = text ? PyUnicode_GET_LENGTH(text) : 0;
    Py_ssize_t line = text ? PyUnicode_FindChar(text, '\n', 0, length, 1) : -1;
    if (text && line < 0 && length <= LONGEST)
        PyErr_Format(kind, "%s, got %U", expected, text);
    else
        PyErr_Format(kind, "%s, got a value of the type %s", expected, Py_TYPE(given)->tp_name);
    Py_XDECREF(text);
    return -1;
}

void lora_py_delete(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(((lora_py_object *)self)->owner);
    type->tp_free(self);
    Py_DECREF(type);
}

int lora_py_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return 0;
}

PyObject *lora_py_reduce(PyObject *self, PyObject *unused) {
    (void)unused;
    PyErr_Format(PyExc_TypeError,
                 "%s: cannot be pickled or copied; keep its arrays (data, codes, state_dict()) or save the model or the "
                 "adapter instead",
                 Py_TYPE(self)->tp_name);
    return NULL;
}

int lora_py_enter(lora_py_object *self) {
    int me = lora_process_id(), inside = 0;
    lora_error err = {0};
    if (lora_device_check(self->ctx, &err) != LORA_OK) {
        lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
        return -1;
    }
    if (atomic_compare_exchange_strong(&self->busy, &inside, me)) return 0;
    if (inside != me && atomic_compare_exchange_strong(&self->busy, &inside, me)) return 1;
    PyErr_Format(PyExc_RuntimeError, "%s: in use by another thread; give each thread its own or take a lock", Py_TYPE(self)->tp_name);
    return -1;
}

void *lora_py_alloc(lora_ctx *ctx, lora_mem_tag tag, size_t bytes, const char *name) {
    void *p;
    Py_BEGIN_ALLOW_THREADS /* clearing gigabytes takes time */
        p = lora_ctx_alloc(ctx, tag, bytes);
    Py_END_ALLOW_THREADS if (!p) PyErr_Format(PyExc_MemoryError, "%s: expected %zu bytes of memory, got none", name, bytes);
    return p;
}
