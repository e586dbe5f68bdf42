/* Export: owns a buffer export, and nothing of it can be reached from Python. (A memoryview could: whoever finds it through
 * the garbage collector may release it.) */
#include "lora_c/bindings/py_array.h"

typedef struct export {
    PyObject_HEAD Py_buffer view;
    lora_py_pinned pin;
} export;

PyObject *lora_py_keep_export(lora_py_state *state, lora_py_array *a) {
    export *self = (export *)state->export_type->tp_alloc(state->export_type, 0);
    if (!self) return NULL;
    self->view = a->view;
    self->pin = a->pin;
    a->view = (Py_buffer){0};
    a->pin = (lora_py_pinned){0};
    return (PyObject *)self;
}

const Py_buffer *lora_py_exported(PyObject *o) { return &((export *)o)->view; }

static void export_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    export *self = (export *)o;
    PyTypeObject *type = Py_TYPE(o);
    lora_py_unpin(&self->pin); /* before the buffer, which may be the last reference to what is pinned */
    if (self->view.obj) PyBuffer_Release(&self->view);
    type->tp_free(o);
    Py_DECREF(type);
}

/* Only arrays are shown as ours. The garbage collector clears a memoryview that nobody else holds before it asks whether it is
 * exported, and its release is a crash then; other types may do the like. They live until this object has let go of them. */
static int export_traverse(PyObject *o, visitproc visit, void *arg) {
    PyObject *exporter = ((export *)o)->view.obj;
    if (exporter && lora_py_is_array(exporter)) Py_VISIT(exporter);
    Py_VISIT(Py_TYPE(o));
    return 0;
}

static PyType_Slot export_slots[] = {{Py_tp_dealloc, export_dealloc}, {Py_tp_traverse, export_traverse}, {0, NULL}};

PyType_Spec lora_py_export_spec = {
    .name = "lora_c._core.Export",
    .basicsize = sizeof(export),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = export_slots,
};
