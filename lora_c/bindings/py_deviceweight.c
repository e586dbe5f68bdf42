/* DeviceWeight: a frozen compressed matrix (NF4Tensor, GGMLTensor) in the memory of a device other than the CPU. */
#include "lora_c/bindings/py_deviceweight.h"

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

PyObject *lora_py_deviceweight_new(lora_py_state *state, lora_py_device device, PyObject *tensor) {
    lora_py_weight host;
    if (lora_py_get_weight(state, state->ctx, tensor, "array", &host) < 0) return NULL;
    lora_py_deviceweight *self = lora_py_new(state->deviceweight_type);
    if (self) {
        lora_status status;
        lora_error err = {0};
        lora_py_put_on(self, device);
        LORA_PY_CALL(device.ctx, status, lora_weight_place(device.ctx, &host.w, &self->w, &self->memory, &err));
        if (status != LORA_OK) lora_py_raise(state, &err);
        if (status != LORA_OK || !(self->text = PyObject_Repr(tensor))) Py_CLEAR(self);
    }
    Py_DECREF(host.keep);
    return lora_py_publish(self);
}

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

static PyMethodDef weight_methods[] = {{"__reduce__", lora_py_reduce, METH_NOARGS, NULL}, {0}};

PyDoc_STRVAR(weight_doc,
             "A copy of an NF4Tensor or a GGMLTensor in the memory of a device other than the CPU, immutable. Made by to_device().\n\n"
             "LoRALinear and lora_c.ops take it as a weight. The tensor that it was made from stays what it was.");

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
