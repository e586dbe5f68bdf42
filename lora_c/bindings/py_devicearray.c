#include "lora_c/bindings/py_devicearray.h"

#include <string.h>

#include "lora_c/bindings/py_dlpack.h"

typedef lora_py_devicearray devicearray;

static void array_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    devicearray *self = (devicearray *)o;
    lora_ctx_free(self->base.ctx, self->own); /* in the order of what was asked for: operations may still read it */
    Py_XDECREF(self->keep);
    lora_py_delete(o);
}

static int array_traverse(PyObject *o, visitproc visit, void *arg) {
    Py_VISIT(((devicearray *)o)->keep);
    return lora_py_traverse(o, visit, arg);
}

int lora_py_is_devicearray(PyObject *o) { return Py_TYPE(o)->tp_dealloc == array_dealloc; }

/* --- construction ------------------------------------------------------------------------------------------------- */

static PyObject *array_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)type, (void)args, (void)kwargs;
    PyErr_SetString(PyExc_TypeError, "DeviceArray: expected to_device(array, device) or from_dlpack(x), got a plain call");
    return NULL;
}

devicearray *lora_py_devicearray_new(lora_py_state *state, lora_py_device device, lora_py_kind kind, int ndim, const int64_t *shape) {
    devicearray *self = lora_py_new(state->devicearray_type);
    if (!self) return NULL;
    lora_py_put_on(self, device);
    self->kind = kind;
    self->ndim = ndim;
    self->n = 1;
    for (int i = 0; i < ndim; i++) self->n *= self->shape[i] = shape[i];
    return self;
}

PyObject *lora_py_devicearray_over(lora_py_state *state, lora_py_device device, const lora_py_extent *memory, PyObject *keep) {
    devicearray *self = lora_py_devicearray_new(state, device, memory->kind, memory->ndim, memory->shape);
    if (!self) return NULL;
    self->data = memory->data;
    self->readonly = memory->readonly;
    self->keep = Py_NewRef(keep);
    return lora_py_publish(self);
}

/* With memory of its own. */
static PyObject *allocated(lora_py_state *state, lora_py_device device, lora_py_kind kind, int ndim, const int64_t *shape, int clear) {
    devicearray *self = lora_py_devicearray_new(state, device, kind, ndim, shape);
    if (!self) return NULL;
    size_t bytes = (size_t)self->n * (size_t)lora_py_itemsize(kind);
    lora_error err = {0};
    if (lora_device_check(device.ctx, &err) != LORA_OK)
        lora_py_raise(state, &err);
    else if (clear)
        self->own = lora_py_alloc(device.ctx, LORA_MEM_ACTIVATION, bytes, "result");
    else if (!(self->own = lora_ctx_alloc_uncleared(device.ctx, LORA_MEM_ACTIVATION, bytes)))
        PyErr_Format(PyExc_MemoryError, "result: expected %zu bytes of memory on device %s, got none", bytes, lora_ctx_device(device.ctx));
    self->data = self->own;
    if (!self->own) Py_CLEAR(self);
    return lora_py_publish(self);
}

PyObject *lora_py_new_on(lora_py_state *state, lora_py_device device, lora_py_kind kind, int ndim, const int64_t *shape, int clear,
                         void **data) {
    if (lora_py_is_host(device.ctx)) return lora_py_new_array(kind, ndim, shape, clear, data);
    PyObject *o = allocated(state, device, kind, ndim, shape, clear);
    if (o) *data = ((devicearray *)o)->data;
    return o;
}

/* --- what it is --------------------------------------------------------------------------------------------------- */

int lora_py_extent_of(PyObject *o, lora_py_extent *out) {
    if (lora_py_is_devicearray(o)) {
        const devicearray *self = (const devicearray *)o;
        if (!out) return 1;
        *out = (lora_py_extent){.data = self->data, .kind = self->kind, .readonly = self->readonly, .ndim = self->ndim, .n = self->n};
        memcpy(out->shape, self->shape, sizeof out->shape);
        return 1;
    }
    if (!lora_py_is_parameter(o)) return 0;
    const lora_py_parameter *p = (const lora_py_parameter *)o;
    if (!out) return 1;
    *out = (lora_py_extent){.data = p->data, .kind = LORA_PY_F32, .ndim = p->ndim, .n = p->size};
    for (int i = 0; i < p->ndim; i++) out->shape[i] = p->shape[i];
    return 1;
}

lora_py_device lora_py_device_given(lora_py_state *state, PyObject *o) {
    PyTypeObject *type = Py_TYPE(o);
    if (type == state->devicearray_type || type == state->deviceweight_type || type == state->parameter_type) return lora_py_device_of(o);
    return lora_py_cpu(state);
}

static const struct {
    lora_py_kind kind;
    Py_ssize_t bytes;
    const char *name;
} kinds[] = {{LORA_PY_F32, 4, "float32"}, {LORA_PY_BF16, 2, "bfloat16"}, {LORA_PY_F16, 2, "float16"}, {LORA_PY_U8, 1, "uint8"},
             {LORA_PY_I32, 4, "int32"},   {LORA_PY_I64, 8, "int64"},     {LORA_PY_F64, 8, "float64"}};

Py_ssize_t lora_py_itemsize(lora_py_kind kind) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].kind == kind) return kinds[i].bytes;
    return 1;
}

const char *lora_py_kind_name(lora_py_kind kind) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].kind == kind) return kinds[i].name;
    return "another type";
}

/* --- methods ------------------------------------------------------------------------------------------------------ */

static PyObject *array_to(PyObject *o, PyObject *args) {
    devicearray *self = (devicearray *)o;
    const char *device;
    if (!PyArg_ParseTuple(args, "s:to", &device)) return NULL;
    if (strcmp(device, lora_ctx_device(self->base.ctx)) == 0) return Py_NewRef(o);
    if (strcmp(device, "cpu") != 0)
        return PyErr_Format(PyExc_ValueError, "device: expected 'cpu', got '%s'; lora_c.to_device(x.to('cpu'), '%s') brings it there",
                            device, device);
    void *to;
    PyObject *array = lora_py_new_array(self->kind, self->ndim, self->shape, 0, &to);
    size_t bytes = (size_t)self->n * (size_t)lora_py_itemsize(self->kind);
    if (array && lora_py_download(&self->base, to, self->data, bytes) < 0) Py_CLEAR(array);
    return array;
}

/* A shape of as many elements, one of whose sizes may be -1. */
static int read_shape(const devicearray *self, PyObject *sizes, lora_py_extent *e) {
    Py_ssize_t n = PyTuple_GET_SIZE(sizes);
    int64_t known = 1, free_at = -1;
    int fits = n >= 1 && n <= LORA_PY_MAX_DIMS;
    e->ndim = fits ? (int)n : 0;
    for (int i = 0; i < e->ndim; i++) {
        if (!lora_py_whole(PyTuple_GET_ITEM(sizes, i), &e->shape[i])) return -1;
        if (e->shape[i] == -1 && free_at < 0)
            free_at = i;
        else if (e->shape[i] < 1 || __builtin_mul_overflow(known, e->shape[i], &known))
            fits = 0;
    }
    if (fits && free_at >= 0) {
        fits = self->n % known == 0;
        e->shape[free_at] = self->n / known;
        known = self->n;
    }
    if (fits && known == self->n) return 0;
    PyErr_Format(PyExc_ValueError, "shape: expected 1 to %d sizes of %lld elements, got %R", (int)LORA_PY_MAX_DIMS, (long long)self->n,
                 sizes);
    return -1;
}

static PyObject *array_reshape(PyObject *o, PyObject *args) {
    devicearray *self = (devicearray *)o;
    PyObject *sizes = PyTuple_GET_SIZE(args) == 1 && PyTuple_Check(PyTuple_GET_ITEM(args, 0)) ? PyTuple_GET_ITEM(args, 0) : args;
    lora_py_extent e = {.data = self->data, .kind = self->kind, .readonly = self->readonly};
    if (read_shape(self, sizes, &e) < 0) return NULL;
    return lora_py_devicearray_over(lora_py_state_of(Py_TYPE(o)), lora_py_device_of(o), &e, self->keep ? self->keep : o);
}

static PyObject *array_refuse_copy(PyObject *o, PyObject *args, PyObject *kwargs) {
    (void)args, (void)kwargs;
    PyErr_Format(PyExc_TypeError,
                 "DeviceArray: expected an array in the memory of the CPU, got one on device %s, which is copied when it is asked for; use "
                 "x.to('cpu')",
                 lora_ctx_device(((devicearray *)o)->base.ctx));
    return NULL;
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

enum { SHAPE, DTYPE, NDIM, SIZE, NBYTES };

static PyObject *array_get(PyObject *o, void *which) {
    const devicearray *self = (const devicearray *)o;
    switch ((int)(intptr_t)which) {
    case SHAPE: return lora_py_shape(self->ndim, self->shape);
    case DTYPE: return lora_py_numpy_dtype(self->kind);
    case NDIM: return PyLong_FromLong(self->ndim);
    case SIZE: return PyLong_FromLongLong(self->n);
    default: return PyLong_FromLongLong(self->n * lora_py_itemsize(self->kind));
    }
}

static PyObject *array_repr(PyObject *o) {
    const devicearray *self = (const devicearray *)o;
    PyObject *shape = lora_py_shape(self->ndim, self->shape);
    PyObject *text = shape ? PyUnicode_FromFormat("DeviceArray(shape=%R, dtype=%s, device='%s')", shape, lora_py_kind_name(self->kind),
                                                  lora_ctx_device(self->base.ctx))
                           : NULL;
    Py_XDECREF(shape);
    return text;
}

#define GETTER(name, which, doc) {name, array_get, NULL, doc, (void *)(intptr_t)(which)}
static PyGetSetDef array_getset[] = {
    GETTER("shape", SHAPE, "The shape."),
    GETTER("dtype", DTYPE, "The element type, NumPy's; bfloat16 is that of ml_dtypes."),
    GETTER("ndim", NDIM, "Number of dimensions."),
    GETTER("size", SIZE, "Number of elements."),
    GETTER("nbytes", NBYTES, "Bytes of the elements."),
    {"device", lora_py_get_device, NULL, "The name of the device that it lies on.", NULL},
    {"__cuda_array_interface__", lora_py_get_cuda_interface, NULL,
     "Version 3 of Numba's protocol: shape, typestr, data and the stream that is to be waited for. Of NVIDIA GPUs alone; bfloat16 has no "
     "typestr.",
     NULL},
    {0},
};

PyDoc_STRVAR(to_doc, "to($self, device, /)\n--\n\n"
                     "Return a copy as a NumPy array: to('cpu'). Waits for what computes it.\n\n"
                     "Raises\n------\nValueError\n    Another device than 'cpu' and its own, of which it returns itself.\nDeviceError\n    "
                     "The device failed meanwhile.");
PyDoc_STRVAR(reshape_doc, "reshape($self, /, *shape)\n--\n\n"
                          "Return the same memory in another shape; one size may be -1.\n\n"
                          "Raises\n------\nValueError\n    The shape has another number of elements.");
PyDoc_STRVAR(array_doc_, "__array__($self, /, dtype=None, *, copy=None)\n--\n\n"
                         "Refuses: nothing is copied from a device without being asked for. Use to('cpu').");

LORA_PY_KEEP(lora_py_dlpack)

static PyMethodDef array_methods[] = {
    {"to", array_to, METH_VARARGS, to_doc},
    {"reshape", array_reshape, METH_VARARGS, reshape_doc},
    {"__array__", LORA_PY_KEYWORDS array_refuse_copy, METH_VARARGS | METH_KEYWORDS, array_doc_},
    {"__dlpack__", LORA_PY_KEYWORDS lora_py_dlpack_kept, METH_VARARGS | METH_KEYWORDS, lora_py_dlpack_doc},
    {"__dlpack_device__", lora_py_dlpack_device, METH_NOARGS, lora_py_dlpack_device_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(
    devicearray_doc,
    "An array in the memory of a device other than the CPU: C-contiguous, one to eight dimensions. Made by to_device() or from_dlpack(),\n"
    "and by what computes on a device: lora_c.ops and LoRALinear give such arrays where they are given such.\n\n"
    "Nothing is copied without being asked for: to_device(array, device) brings an array there, to('cpu') back. Other libraries read\n"
    "one of an NVIDIA GPU without a copy, by DLPack or __cuda_array_interface__.\n\n"
    "What computes it may still be under way: errors of a device show when something waits, as to() does.");

static PyType_Slot array_slots[] = {
    {Py_tp_new, array_new},         {Py_tp_dealloc, array_dealloc}, {Py_tp_traverse, array_traverse},     {Py_tp_repr, array_repr},
    {Py_tp_methods, array_methods}, {Py_tp_getset, array_getset},   {Py_tp_doc, (void *)devicearray_doc}, {0, NULL},
};

PyType_Spec lora_py_devicearray_spec = {
    .name = "lora_c._core.DeviceArray",
    .basicsize = sizeof(devicearray),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = array_slots,
};
