/* DecoderAdapters: adapters that sequences of one decode may have instead of the decoder's own. It holds its decoder. */
#include "lora_c/bindings/py_decoder.h"
#include "lora_c/bindings/py_devices.h"

#include <math.h>

typedef lora_py_decoder_adapters adapters;

static void adapters_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    adapters *self = (adapters *)o;
    lora_decoder_adapters_destroy(self->adapters);
    for (Py_ssize_t i = 0; i < self->n_owners; i++) Py_XDECREF(self->owners[i]);
    PyMem_Free(self->owners);
    Py_XDECREF(self->decoder);
    lora_py_delete(o);
}

static int adapters_traverse(PyObject *o, visitproc visit, void *arg) {
    for (Py_ssize_t i = 0; i < ((adapters *)o)->n_owners; i++) Py_VISIT(((adapters *)o)->owners[i]);
    Py_VISIT(((adapters *)o)->decoder);
    return lora_py_traverse(o, visit, arg);
}

static PyObject *adapters_refuse(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)type, (void)args, (void)kwargs;
    PyErr_SetString(PyExc_TypeError, "DecoderAdapters: expected decoder.new_adapters(), got a plain call");
    return NULL;
}

const char lora_py_new_adapters_doc[] =
    "new_adapters($self, /)\n--\n\n"
    "Return DecoderAdapters without any adapter, for the sequences of decode() that shall have others than the decoder's own.\n\n"
    "Raises\n------\nMemoryError\n    It does not fit in memory.";

PyObject *lora_py_decoder_new_adapters(PyObject *o, PyObject *unused) {
    (void)unused;
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    lora_py_decoder *decoder = (lora_py_decoder *)o;
    adapters *self = lora_py_new(state->decoder_adapters_type);
    if (!self) return NULL;
    lora_py_put_on(self, lora_py_device_of(o));
    self->decoder = (lora_py_decoder *)Py_NewRef(o);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_decoder_adapters_create(decoder->decoder, &self->adapters, &err));
    Py_ssize_t n = (Py_ssize_t)decoder->config.num_hidden_layers * LORA_LAYER_MATRICES;
    if (status == LORA_OK) self->owners = PyMem_Calloc((size_t)n, sizeof *self->owners);
    if (self->owners) {
        self->n_owners = n;
        return lora_py_publish(self);
    }
    Py_DECREF(self);
    return status == LORA_OK ? PyErr_NoMemory() : lora_py_raise(state, &err);
}

/* Sets or removes (adapter NULL) an adapter, with keep as the owner of its arrays. */
static PyObject *change(adapters *self, const lora_py_weight_place *place, const lora_adapter *adapter, PyObject *keep) {
    if (lora_py_enter(&self->base) < 0) return NULL;
    lora_error err = {0};
    lora_status set = lora_decoder_adapters_set(self->adapters, place->layer, (lora_matrix_slot)place->slot, adapter, &err);
    PyObject *old = NULL;
    if (set == LORA_OK) {
        PyObject **owner = self->owners + place->layer * LORA_LAYER_MATRICES + place->slot;
        old = *owner;
        *owner = Py_XNewRef(keep);
    }
    lora_py_leave(&self->base);
    Py_XDECREF(old); /* may run Python code */
    if (set != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_doc, "set($self, name, A, B, /, *, scale, row=None)\n--\n\n"
                      "Put a LoRA adapter on a projection of a layer, as Decoder.set_adapter() does.\n\n"
                      "Shapes\n------\nA (r, in_features); B (out_features, r).\n\n"
                      "Parameters\n----------\n"
                      "name : str\n    layers.N.<q|k|v|o|gate|up|down>_proj.\n"
                      "A, B : Parameter\n    Shared: what is written into them holds for the next call.\n"
                      "scale : float\n    lora_alpha / r.\n"
                      "row : int, optional\n    B is that of a matrix that holds several: the rows from this one on are used.\n\n"
                      "Raises\n------\nValueError\n    Unknown name, or a shape does not fit.\n"
                      "RuntimeError\n    Another thread decodes with these adapters.");

static PyObject *adapters_set(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "scale", "row", NULL};
    const char *name;
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    lora_py_parameter *A, *B;
    lora_py_weight_place place;
    lora_adapter adapter;
    PyObject *row = Py_None;
    double scale = NAN;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!O!|$dO:set", names, &name, state->parameter_type, &A, state->parameter_type, &B,
                                     &scale, &row))
        return NULL;
    if (!isfinite(scale)) {
        PyErr_SetString(PyExc_ValueError, "scale: expected a finite number, got another");
        return NULL;
    }
    if (lora_py_find_adapter(((adapters *)o)->decoder, name, A, B, row, &place, &adapter) < 0) return NULL;
    adapter.scale = (float)scale;
    PyObject *keep = PyTuple_Pack(2, A, B);
    PyObject *result = keep ? change((adapters *)o, &place, &adapter, keep) : NULL;
    Py_XDECREF(keep);
    return result;
}

PyDoc_STRVAR(remove_doc, "remove($self, name, /)\n--\n\nTake the adapter off a projection; none there is fine.");

static PyObject *adapters_remove(PyObject *o, PyObject *args) {
    const char *name;
    lora_py_weight_place place;
    if (!PyArg_ParseTuple(args, "s:remove", &name) || lora_py_find_adapter_place(((adapters *)o)->decoder, name, &place) < 0) return NULL;
    return change((adapters *)o, &place, NULL, NULL);
}

static PyObject *adapters_repr(PyObject *o) {
    Py_ssize_t n = 0;
    for (Py_ssize_t i = 0; i < ((adapters *)o)->n_owners; i++) n += ((adapters *)o)->owners[i] != NULL;
    return PyUnicode_FromFormat("DecoderAdapters(%zd of %zd matrices)", n, ((adapters *)o)->n_owners);
}

/* --- the argument of decode ------------------------------------------------------------------------------------------ */

/* Each object once. There may be as many as a call with several may have tokens. */
static int add_distinct(lora_py_chosen *c, lora_py_decoder_adapters *one) {
    for (int i = c->n_distinct - 1; i >= 0; i--)
        if (c->distinct[i] == one) return 0;
    if (c->n_distinct == LORA_DECODE_BATCH) {
        PyErr_Format(PyExc_ValueError, "adapters: expected at most %d different ones in a call, got more", LORA_DECODE_BATCH);
        return -1;
    }
    c->distinct[c->n_distinct++] = one;
    return 0;
}

int lora_py_choose_adapters(lora_py_state *state, PyObject *given, int64_t n_segments, lora_py_chosen *out) {
    static const char expected[] = "adapters: expected a list of DecoderAdapters or None, one for each segment";
    *out = (lora_py_chosen){0};
    if (given == Py_None) return 0;
    out->items = lora_py_items(given, expected);
    if (!out->items) return -1;
    if (PyTuple_GET_SIZE(out->items) != n_segments) {
        PyErr_Format(PyExc_ValueError, "adapters: expected %lld, one for each segment, got %zd", (long long)n_segments,
                     PyTuple_GET_SIZE(out->items));
        return -1;
    }
    out->of = PyMem_Calloc((size_t)n_segments, sizeof *out->of);
    if (!out->of) {
        PyErr_NoMemory();
        return -1;
    }
    for (int64_t i = 0; i < n_segments; i++) {
        PyObject *item = PyTuple_GET_ITEM(out->items, i);
        if (item == Py_None) continue;
        if (!Py_IS_TYPE(item, state->decoder_adapters_type)) return lora_py_refuse(PyExc_TypeError, expected, item);
        if (add_distinct(out, (lora_py_decoder_adapters *)item) < 0) return -1;
        out->of[i] = ((lora_py_decoder_adapters *)item)->adapters;
    }
    return 0;
}

void lora_py_release_chosen(lora_py_chosen *c) {
    Py_XDECREF(c->items);
    PyMem_Free(c->of);
}

int lora_py_enter_chosen(lora_py_chosen *c) {
    for (int i = 0; i < c->n_distinct; i++) {
        if (lora_py_enter(&c->distinct[i]->base) >= 0) continue;
        while (i > 0) lora_py_leave(&c->distinct[--i]->base);
        return -1;
    }
    return 0;
}

void lora_py_leave_chosen(lora_py_chosen *c) {
    for (int i = 0; i < c->n_distinct; i++) lora_py_leave(&c->distinct[i]->base);
}

/* --- the type -------------------------------------------------------------------------------------------------------- */

static PyGetSetDef adapters_getset[] = {
    {"device", lora_py_get_device, NULL, "The name of the decoder's device, where Parameters must lie.", NULL},
    {0},
};

LORA_PY_KEEP(adapters_set)

static PyMethodDef adapters_methods[] = {
    {"set", LORA_PY_KEYWORDS adapters_set_kept, METH_VARARGS | METH_KEYWORDS, set_doc},
    {"remove", adapters_remove, METH_VARARGS, remove_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(adapters_doc, "Adapters that sequences of Decoder.decode() may have instead of the decoder's own, without DoRA.\n\n"
                           "Made by Decoder.new_adapters(). One decode takes sequences with different ones.");

static PyType_Slot adapters_slots[] = {
    {Py_tp_new, adapters_refuse},      {Py_tp_dealloc, adapters_dealloc}, {Py_tp_traverse, adapters_traverse}, {Py_tp_repr, adapters_repr},
    {Py_tp_methods, adapters_methods}, {Py_tp_getset, adapters_getset},   {Py_tp_doc, (void *)adapters_doc},   {0, NULL},
};

PyType_Spec lora_py_decoder_adapters_spec = {
    .name = "lora_c._core.DecoderAdapters",
    .basicsize = sizeof(adapters),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = adapters_slots,
};
