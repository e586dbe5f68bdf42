/* DeviceWeight: a frozen compressed matrix (NF4Tensor, GGMLTensor) in the memory of a device other than the CPU. */
#include "lora_c/bindings/py_deviceweight.h"

#include <string.h>

#include "lora_c/bindings/py_array.h"

static void weight_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    lora_py_deviceweight *self = (lora_py_deviceweight *)o;
    lora_ctx_free(self->base.ctx, self->memory);
    Py_XDECREF(self->text);
    lora_py_delete(o);
}

static PyObject *weight_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)type, (void)args, (void)kwargs;
    PyErr_SetString(PyExc_TypeError, "DeviceWeight: expected to_device(tensor, device), got a plain call");
    return NULL;
}

/* What memory of the device does not say. */
static void note_tables(lora_py_deviceweight *self, PyObject *tensor, const lora_py_state *state) {
    if (!Py_IS_TYPE(tensor, state->nf4_type)) return;
    const lora_py_nf4tensor *from = (const lora_py_nf4tensor *)tensor;
    self->type = from->type;
    self->own_lut = from->nf4.lut != lora_4bit_lut(from->type);
    self->own_map = !from->nf4.absmax && from->nf4.nested_map != lora_dynamic_map_signed();
}

PyObject *lora_py_deviceweight_new(lora_py_state *state, lora_py_device device, PyObject *tensor) {
    lora_py_weight host;
    if (lora_py_get_weight(state, state->ctx, tensor, "array", &host) < 0) return NULL;
    lora_py_deviceweight *self = lora_py_new(state->deviceweight_type);
    if (self) {
        lora_status status;
        lora_error err = {0};
        lora_py_put_on(self, device);
        note_tables(self, tensor, state);
        LORA_PY_CALL(device.ctx, status, lora_weight_place(device.ctx, &host.w, &self->w, &self->memory, &err));
        if (status != LORA_OK) lora_py_raise(state, &err);
        if (status != LORA_OK || !(self->text = PyObject_Repr(tensor))) Py_CLEAR(self);
    }
    Py_DECREF(host.keep);
    return lora_py_publish(self);
}

/* --- to and from the host ----------------------------------------------------------------------------------------- */

/* A vector of NumPy's with what lies there. */
static PyObject *fetched(const lora_py_deviceweight *self, lora_py_kind kind, int64_t n, const void *from) {
    void *to;
    PyObject *array = lora_py_new_array(kind, 1, &n, 0, &to);
    size_t bytes = (size_t)n * (kind == LORA_PY_F32 ? sizeof(float) : 1);
    if (array && lora_py_download(&self->base, to, from, bytes) < 0) Py_CLEAR(array);
    return array;
}

/* options[name] = what lies there; -1 with an exception. */
static int fetch_as(const lora_py_deviceweight *self, PyObject *options, const char *name, lora_py_kind kind, int64_t n, const void *from) {
    PyObject *array = fetched(self, kind, n, from);
    int status = array ? PyDict_SetItemString(options, name, array) : -1;
    Py_XDECREF(array);
    return status;
}

/* The scales and the tables. */
static int fetch_nf4(const lora_py_deviceweight *self, PyObject *options) {
    enum { LUT = 16, MAP = 256 };
    const lora_nf4 *q = &self->w.nf4;
    int64_t blocks = lora_nf4_blocks(q->rows, q->cols, q->block_size);
    if (self->own_lut && fetch_as(self, options, "lut", LORA_PY_F32, LUT, q->lut) < 0) return -1;
    if (q->absmax) return fetch_as(self, options, "absmax", LORA_PY_F32, blocks, q->absmax);
    int64_t nested = (blocks - 1) / q->nested_block_size + 1;
    if (self->own_map && fetch_as(self, options, "nested_map", LORA_PY_F32, MAP, q->nested_map) < 0) return -1;
    return fetch_as(self, options, "absmax_codes", LORA_PY_U8, blocks, q->absmax_codes) < 0
               ? -1
               : fetch_as(self, options, "nested_absmax", LORA_PY_F32, nested, q->nested_absmax);
}

/* What maker(parts, shape, **options) gives; options NULL: an exception is set. Takes options over. */
static PyObject *made(const lora_py_deviceweight *self, PyTypeObject *type, const char *maker, PyObject *parts, PyObject *options) {
    PyObject *method = options && parts ? PyObject_GetAttrString((PyObject *)type, maker) : NULL;
    PyObject *given = method ? Py_BuildValue("(O(LL))", parts, (long long)self->w.rows, (long long)self->w.cols) : NULL;
    PyObject *tensor = given ? PyObject_Call(method, given, options) : NULL;
    Py_XDECREF(given);
    Py_XDECREF(method);
    Py_XDECREF(options);
    Py_XDECREF(parts);
    return tensor;
}

static PyObject *nf4_here(const lora_py_deviceweight *self, lora_py_state *state) {
    const lora_nf4 *q = &self->w.nf4;
    PyObject *codes = fetched(self, LORA_PY_U8, lora_nf4_code_bytes(q->rows, q->cols), q->codes);
    PyObject *options = !codes ? NULL
                               : Py_BuildValue("{s:L,s:s,s:d,s:L}", "block_size", (long long)q->block_size, "quant_type",
                                               lora_4bit_name(self->type), "nested_offset", (double)q->nested_offset, "nested_block_size",
                                               (long long)(q->absmax ? LORA_NF4_NESTED_BLOCK : q->nested_block_size));
    if (options && fetch_nf4(self, options) < 0) Py_CLEAR(options);
    return made(self, state->nf4_type, "from_parts", codes, options);
}

static PyObject *ggml_here(const lora_py_deviceweight *self, lora_py_state *state) {
    const lora_ggml *g = &self->w.ggml;
    int64_t bytes = g->rows * (g->cols / lora_ggml_block_values(g->type)) * lora_ggml_block_bytes(g->type);
    PyObject *blocks = fetched(self, LORA_PY_U8, bytes, g->blocks);
    PyObject *options = blocks ? Py_BuildValue("{s:s}", "type", lora_ggml_type_name(g->type)) : NULL;
    return made(self, state->ggml_type, "from_blocks", blocks, options);
}

static PyObject *weight_to(PyObject *o, PyObject *args) {
    const lora_py_deviceweight *self = (const lora_py_deviceweight *)o;
    const char *device;
    if (!PyArg_ParseTuple(args, "s:to", &device)) return NULL;
    if (strcmp(device, lora_ctx_device(self->base.ctx)) == 0) return Py_NewRef(o);
    if (strcmp(device, "cpu") != 0)
        return PyErr_Format(PyExc_ValueError, "device: expected 'cpu', got '%s'; lora_c.to_device(w.to('cpu'), '%s') brings it there",
                            device, device);
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    return self->w.kind == LORA_WEIGHT_NF4 ? nf4_here(self, state) : ggml_here(self, state);
}

PyObject *lora_py_weight_to(PyObject *tensor, PyObject *args) {
    lora_py_state *state = lora_py_state_of(Py_TYPE(tensor));
    const char *name;
    lora_py_device device;
    if (!PyArg_ParseTuple(args, "s:to", &name) || lora_py_find_device(state, name, &device) < 0) return NULL;
    return lora_py_is_host(device.ctx) ? Py_NewRef(tensor) : lora_py_deviceweight_new(state, device, tensor);
}

const char lora_py_weight_to_doc[] =
    "to($self, device, /)\n--\n\n"
    "Return a copy on a device, a name of devices(): a DeviceWeight; on the CPU the tensor itself.\n\n"
    "Raises\n------\nValueError\n    There is no such device.\nDeviceError\n    It cannot be used.\nMemoryError\n    It has no room.";

/* --- what it is --------------------------------------------------------------------------------------------------- */

static PyObject *get_shape(PyObject *o, void *unused) {
    (void)unused;
    const lora_py_deviceweight *self = (const lora_py_deviceweight *)o;
    const int64_t shape[] = {self->w.rows, self->w.cols};
    return lora_py_shape(2, shape);
}

static PyObject *weight_repr(PyObject *o) {
    const lora_py_deviceweight *self = (const lora_py_deviceweight *)o;
    return PyUnicode_FromFormat("DeviceWeight(%U, device='%s')", self->text, lora_ctx_device(self->base.ctx));
}

static PyGetSetDef weight_getset[] = {
    {"shape", get_shape, NULL, "(out_features, in_features).", NULL},
    {"device", lora_py_get_device, NULL, "The name of the device that it lies on.", NULL},
    {0},
};

PyDoc_STRVAR(to_doc, "to($self, device, /)\n--\n\n"
                     "Return a copy as what it was made from, an NF4Tensor or a GGMLTensor of the same bytes: to('cpu'). Waits.\n\n"
                     "Raises\n------\nValueError\n    Another device than 'cpu' and its own, of which it returns itself.\nDeviceError\n    "
                     "The device failed meanwhile.");

static PyMethodDef weight_methods[] = {
    {"to", weight_to, METH_VARARGS, to_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(
    weight_doc,
    "A copy of an NF4Tensor or a GGMLTensor in the memory of a device other than the CPU, immutable. Made by to_device().\n\n"
    "LoRALinear and lora_c.ops take it as a weight. The tensor that it was made from stays what it was; to('cpu') makes another one.");

static PyType_Slot weight_slots[] = {
    {Py_tp_new, weight_new},         {Py_tp_dealloc, weight_dealloc}, {Py_tp_traverse, lora_py_traverse}, {Py_tp_repr, weight_repr},
    {Py_tp_methods, weight_methods}, {Py_tp_getset, weight_getset},   {Py_tp_doc, (void *)weight_doc},    {0, NULL},
};

PyType_Spec lora_py_deviceweight_spec = {
    .name = "lora_c._core.DeviceWeight",
    .basicsize = sizeof(lora_py_deviceweight),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = weight_slots,
};
