/* KVCache: keys and values of past tokens. It holds its decoder. */
#include "lora_c/bindings/py_decoder.h"

typedef lora_py_kvcache kvcache;

static void kvcache_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    kvcache *self = (kvcache *)o;
    lora_kv_cache_destroy(self->cache);
    Py_XDECREF(self->decoder);
    lora_py_delete(o);
}

static int kvcache_traverse(PyObject *o, visitproc visit, void *arg) {
    Py_VISIT(((kvcache *)o)->decoder);
    return lora_py_traverse(o, visit, arg);
}

static PyObject *kvcache_refuse(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)type, (void)args, (void)kwargs;
    PyErr_SetString(PyExc_TypeError, "KVCache: expected decoder.new_cache(max_tokens), got a plain call");
    return NULL;
}

PyObject *lora_py_kvcache_new(lora_py_decoder *decoder, int64_t n_sequences, int64_t max_tokens) {
    lora_py_state *state = lora_py_state_of(Py_TYPE((PyObject *)decoder));
    kvcache *self = lora_py_new(state->kv_cache_type);
    if (!self) return NULL;
    self->decoder = (lora_py_decoder *)Py_NewRef((PyObject *)decoder);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(state->ctx, status, lora_kv_cache_create(decoder->decoder, n_sequences, max_tokens, &self->cache, &err));
    if (status == LORA_OK) return lora_py_publish(self);
    Py_DECREF(self);
    return lora_py_raise(state, &err);
}

static int check_sequence(const kvcache *self, int64_t sequence) {
    int64_t n = lora_kv_cache_sequences(self->cache);
    if (sequence >= 0 && sequence < n) return 0;
    PyErr_Format(PyExc_ValueError, "sequence: expected 0 <= sequence < %lld, got %lld", (long long)n, (long long)sequence);
    return -1;
}

PyDoc_STRVAR(length_doc, "length($self, sequence=0, /)\n--\n\nReturn the number of tokens that a sequence holds.");

static PyObject *kvcache_length(PyObject *o, PyObject *args) {
    int64_t sequence = 0;
    kvcache *self = (kvcache *)o;
    if (!PyArg_ParseTuple(args, "|O&:length", lora_py_whole, &sequence) || check_sequence(self, sequence) < 0) return NULL;
    return PyLong_FromLongLong(lora_kv_cache_length(self->cache, sequence));
}

PyDoc_STRVAR(
    truncate_doc,
    "truncate($self, sequence, length, /)\n--\n\n"
    "Cut a sequence to its first tokens; 0 forgets all.\n\n"
    "Parameters\n----------\n"
    "sequence : int\n    Which one.\n"
    "length : int\n    How many of its tokens stay.\n\n"
    "Raises\n------\nValueError\n    length is larger than the present one.\nRuntimeError\n    Another thread is using this cache.");

static PyObject *kvcache_truncate(PyObject *o, PyObject *args) {
    int64_t sequence, length;
    kvcache *self = (kvcache *)o;
    if (!PyArg_ParseTuple(args, "O&O&:truncate", lora_py_whole, &sequence, lora_py_whole, &length) || check_sequence(self, sequence) < 0)
        return NULL;
    if (lora_py_enter(&self->base) < 0) return NULL;
    lora_error err = {0};
    lora_status status = lora_kv_cache_truncate(self->cache, sequence, length, &err);
    lora_py_leave(&self->base);
    if (status != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    copy_doc,
    "copy($self, source, target, length, /)\n--\n\n"
    "Make the first tokens of one sequence the content of another, which forgets its own.\n\n"
    "Parameters\n----------\n"
    "source, target : int\n    Which ones.\n"
    "length : int\n    How many tokens of the source.\n\n"
    "Raises\n------\nValueError\n    length is larger than that of the source.\nRuntimeError\n    Another thread is using this cache.");

static PyObject *kvcache_copy(PyObject *o, PyObject *args) {
    int64_t source, target, length;
    kvcache *self = (kvcache *)o;
    if (!PyArg_ParseTuple(args, "O&O&O&:copy", lora_py_whole, &source, lora_py_whole, &target, lora_py_whole, &length) ||
        check_sequence(self, source) < 0 || check_sequence(self, target) < 0)
        return NULL;
    if (lora_py_enter(&self->base) < 0) return NULL;
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(state->ctx, status, lora_kv_cache_copy(self->cache, source, target, length, &err));
    lora_py_leave(&self->base);
    if (status != LORA_OK) return lora_py_raise(state, &err);
    Py_RETURN_NONE;
}

static PyObject *get_sequences(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(lora_kv_cache_sequences(((kvcache *)o)->cache));
}

static PyObject *get_max_tokens(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(lora_kv_cache_max_tokens(((kvcache *)o)->cache));
}

static PyObject *kvcache_repr(PyObject *o) {
    const lora_kv_cache *cache = ((kvcache *)o)->cache;
    return PyUnicode_FromFormat("KVCache(max_tokens=%lld, n_sequences=%lld)", (long long)lora_kv_cache_max_tokens(cache),
                                (long long)lora_kv_cache_sequences(cache));
}

static PyGetSetDef kvcache_getset[] = {
    {"n_sequences", get_sequences, NULL, "Number of sequences.", NULL},
    {"max_tokens", get_max_tokens, NULL, "Tokens that each sequence can hold.", NULL},
    {0},
};

static PyMethodDef kvcache_methods[] = {
    {"length", kvcache_length, METH_VARARGS, length_doc},
    {"truncate", kvcache_truncate, METH_VARARGS, truncate_doc},
    {"copy", kvcache_copy, METH_VARARGS, copy_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(kvcache_doc, "Keys and values of past tokens. Made by Decoder.new_cache(); one thread at a time.");

static PyType_Slot kvcache_slots[] = {
    {Py_tp_new, kvcache_refuse},      {Py_tp_dealloc, kvcache_dealloc}, {Py_tp_traverse, kvcache_traverse}, {Py_tp_repr, kvcache_repr},
    {Py_tp_methods, kvcache_methods}, {Py_tp_getset, kvcache_getset},   {Py_tp_doc, (void *)kvcache_doc},   {0, NULL},
};

PyType_Spec lora_py_kvcache_spec = {
    .name = "lora_c._core.KVCache",
    .basicsize = sizeof(kvcache),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = kvcache_slots,
};
