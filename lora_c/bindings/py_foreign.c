#include "lora_c/bindings/py_foreign.h"

static const char FOREIGN[] = "lora_c._core.foreign";

typedef struct held {
    lora_py_foreign memory;
    lora_py_device device;
} held;

/* Their owner knows nothing of our stream: it may give the memory to somebody else at once. */
static void wait_for(lora_ctx *ctx) {
    lora_status last;
    LORA_PY_CALL(ctx, last, lora_sync(ctx, NULL));
    (void)last; /* who waits for a result is told */
}

static void give_back(PyObject *capsule) {
    held *h = PyCapsule_GetPointer(capsule, FOREIGN);
    const lora_py_foreign *m = &h->memory;
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback); /* an exception may be on its way */
    wait_for(h->device.ctx);
    if (m->versioned && m->versioned->deleter) m->versioned->deleter(m->versioned);
    if (m->plain && m->plain->deleter) m->plain->deleter(m->plain);
    Py_XDECREF(m->object);
    PyErr_Restore(kind, value, traceback);
    Py_DECREF(h->device.owner);
    PyMem_Free(h);
}

PyObject *lora_py_hold_foreign(lora_py_device device, const lora_py_foreign *memory) {
    held *h = PyMem_Calloc(1, sizeof *h);
    if (!h) return PyErr_NoMemory();
    *h = (held){.memory = *memory, .device = device};
    PyObject *capsule = PyCapsule_New(h, FOREIGN, give_back);
    if (!capsule) {
        PyMem_Free(h);
        return NULL;
    }
    Py_INCREF(device.owner);
    Py_XINCREF(memory->object);
    return capsule;
}
