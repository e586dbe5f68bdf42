/* Parameter: a float32 array with its gradient, in the library's own aligned memory. */
#include "lora_c/bindings/py_array.h"

#include <math.h>
#include <string.h>

typedef lora_py_parameter parameter;

static void parameter_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    parameter *self = (parameter *)o;
    lora_ctx_free(self->base.ctx, self->data);
    lora_ctx_free(self->base.ctx, self->grad);
    Py_XDECREF(self->name);
    lora_py_delete(o);
}

lora_py_parameter *lora_py_parameter_new(lora_py_state *state, int ndim, const int64_t *shape, const char *name,
                                         int requires_grad) {
    parameter *self = lora_py_new(state->parameter_type);
    if (!self) return NULL;
    self->ndim = ndim;
    self->size = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        self->shape[i] = (Py_ssize_t)shape[i];
        self->strides[i] = (Py_ssize_t)(self->size * (int64_t)sizeof(float));
        self->size *= shape[i];
    }
    size_t bytes = (size_t)self->size * sizeof(float);
    self->name = PyUnicode_FromString(name);
    if (self->name) self->data = lora_py_alloc(state->ctx, LORA_MEM_PARAM, bytes, "data");
    if (self->data && requires_grad) self->grad = lora_py_alloc(state->ctx, LORA_MEM_GRAD, bytes, "grad");
    if (!self->data || (requires_grad && !self->grad)) Py_CLEAR(self);
    return (parameter *)lora_py_publish(self);
}

static PyObject *make_parameter(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"data", "name", "requires_grad", NULL};
    PyObject *source;
    const char *name = "";
    int requires_grad = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$sp:Parameter", names, &source, &name, &requires_grad)) return NULL;
    lora_py_array data;
    if (lora_py_get(source, "data", LORA_PY_F32, 0, &data) < 0) return NULL;
    parameter *self = lora_py_parameter_new(lora_py_state_of(type), data.ndim, data.shape, name, requires_grad);
    if (self) memcpy(self->data, data.data, (size_t)data.n * sizeof(float));
    lora_py_release(&data);
    return (PyObject *)self;
}

static PyObject *parameter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    return lora_py_new_with_kept(make_parameter, type, args, kwargs);
}

static PyObject *view_of(PyObject *o, float *data) {
    parameter *self = (parameter *)o;
    int64_t shape[LORA_PY_MAX_DIMS];
    for (int i = 0; i < self->ndim; i++) shape[i] = self->shape[i];
    return data ? lora_py_view(o, LORA_PY_F32, self->ndim, shape, data, 1) : Py_NewRef(Py_None);
}

static PyObject *get_data(PyObject *o, void *unused) { (void)unused; return view_of(o, ((parameter *)o)->data); }
static PyObject *get_grad(PyObject *o, void *unused) { (void)unused; return view_of(o, ((parameter *)o)->grad); }
static PyObject *get_name(PyObject *o, void *unused) { (void)unused; return Py_NewRef(((parameter *)o)->name); }
static PyObject *get_size(PyObject *o, void *unused) { (void)unused; return PyLong_FromLongLong(((parameter *)o)->size); }

static PyObject *get_requires_grad(PyObject *o, void *unused) {
    (void)unused;
    return PyBool_FromLong(((parameter *)o)->grad != NULL);
}

static PyObject *get_shape(PyObject *o, void *unused) {
    (void)unused;
    parameter *self = (parameter *)o;
    int64_t shape[LORA_PY_MAX_DIMS];
    for (int i = 0; i < self->ndim; i++) shape[i] = self->shape[i];
    return lora_py_shape(self->ndim, shape);
}

/* data[...] = x is the way to fill it; p.grad += g ends here too, with the very view that the getter gave. */
static int refuse_set(PyObject *o, PyObject *value, void *name) {
    PyObject *current = value ? PyObject_GetAttrString(o, name) : NULL;
    PyErr_Clear();
    void *here = strcmp(name, "data") == 0 ? ((parameter *)o)->data : ((parameter *)o)->grad;
    lora_py_array a;
    int same = 0;
    if (current && current != Py_None && lora_py_get(value, name, LORA_PY_F32, 0, &a) == 0) {
        same = a.data == here && a.n == ((parameter *)o)->size;
        lora_py_release(&a);
    }
    Py_XDECREF(current);
    PyErr_Clear();
    if (same) return 0;
    PyErr_Format(PyExc_AttributeError, "%s: expected an assignment to its elements, got one to the attribute; use p.%s[...] = x",
                 name, name);
    return -1;
}

static PyObject *parameter_zero_grad(PyObject *o, PyObject *unused) {
    (void)unused;
    parameter *self = (parameter *)o;
    if (self->grad) {
        lora_ctx *ctx = self->base.ctx;
        Py_BEGIN_ALLOW_THREADS
        lora_ctx_lock(ctx); /* not while a backward pass adds to it */
        memset(self->grad, 0, (size_t)self->size * sizeof(float));
        lora_ctx_unlock(ctx);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static int parameter_getbuffer(PyObject *o, Py_buffer *view, int flags) {
    parameter *self = (parameter *)o;
    *view = (Py_buffer){
        .buf = self->data,
        .obj = Py_NewRef(o),
        .len = (Py_ssize_t)self->size * 4,
        .itemsize = 4,
        .format = flags & PyBUF_FORMAT ? "f" : NULL,
        .ndim = self->ndim,
        .shape = flags & PyBUF_ND ? self->shape : NULL,
        .strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->strides : NULL,
    };
    return 0;
}

static PyObject *parameter_repr(PyObject *o) {
    parameter *self = (parameter *)o;
    PyObject *shape = get_shape(o, NULL), *text = NULL;
    if (shape && PyUnicode_GET_LENGTH(self->name))
        text = PyUnicode_FromFormat("Parameter(%R, shape=%R, requires_grad=%s)", self->name, shape, self->grad ? "True" : "False");
    else if (shape)
        text = PyUnicode_FromFormat("Parameter(shape=%R, requires_grad=%s)", shape, self->grad ? "True" : "False");
    Py_XDECREF(shape);
    return text;
}

static PyGetSetDef parameter_getset[] = {
    {"data", get_data, refuse_set, "The values, a writable view.", "data"},
    {"grad", get_grad, refuse_set, "The gradient, a writable view; backward passes add to it. None when frozen.", "grad"},
    {"name", get_name, NULL, "The name given at construction.", NULL},
    {"shape", get_shape, NULL, "The shape.", NULL},
    {"size", get_size, NULL, "Number of elements.", NULL},
    {"requires_grad", get_requires_grad, NULL, "Whether it is trained.", NULL},
    {0},
};

PyDoc_STRVAR(zero_grad_doc, "zero_grad($self, /)\n--\n\nSet the gradient to zero.");

static PyMethodDef parameter_methods[] = {
    {"zero_grad", parameter_zero_grad, METH_NOARGS, zero_grad_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(parameter_doc,
"Parameter(data, *, name=\'\', requires_grad=True)\n--\n\n"
"A float32 array that training may change, with its gradient.\n\n"
"Parameters\n----------\n"
"data : array\n    float32, C-contiguous, not empty; copied.\n"
"name : str\n    For checkpoints and messages.\n"
"requires_grad : bool\n    Whether a gradient is kept.\n\n"
"Raises\n------\nTypeError\n    Another element type.\nValueError\n    Empty, or not contiguous.\n\n"
"Notes\n-----\nThe buffer protocol gives the data, writable. Views stay valid after the Parameter is gone.");

static PyType_Slot parameter_slots[] = {
    {Py_tp_new, parameter_new},          {Py_tp_dealloc, parameter_dealloc}, {Py_tp_traverse, lora_py_traverse},
    {Py_tp_repr, parameter_repr},        {Py_tp_methods, parameter_methods}, {Py_tp_getset, parameter_getset},
    {Py_tp_doc, (void *)parameter_doc},  {Py_bf_getbuffer, parameter_getbuffer}, {0, NULL},
};

PyType_Spec lora_py_parameter_spec = {
    .name = "lora_c._core.Parameter",
    .basicsize = sizeof(parameter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = parameter_slots,
};
