/* Parameter: a float32 array with its gradient, in the library's own aligned memory. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devicearray.h"
#include "lora_c/bindings/py_dlpack.h"

#include <string.h>

typedef lora_py_parameter parameter;

static void parameter_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    parameter *self = (parameter *)o;
    lora_py_block_drop(self->block);
    Py_XDECREF(self->name);
    lora_py_delete(o);
}

static PyObject *make_parameter(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"data", "name", "requires_grad", "device", NULL};
    PyObject *source;
    const char *name = "", *device_name = "cpu";
    int requires_grad = 1;
    lora_py_device device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$sps:Parameter", names, &source, &name, &requires_grad, &device_name) ||
        lora_py_find_device(lora_py_state_of(type), device_name, &device) < 0)
        return NULL;
    lora_py_array data;
    if (lora_py_get(source, "data", LORA_PY_F32, 0, &data) < 0) return NULL;
    parameter *self = lora_py_parameter_new(lora_py_state_of(type), device, data.ndim, data.shape, name, requires_grad);
    if (self && lora_py_upload(&self->base, self->data, data.data, (size_t)data.n * sizeof(float)) < 0) Py_CLEAR(self);
    lora_py_release(&data);
    return (PyObject *)self;
}

static PyObject *parameter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    return lora_py_new_with_kept(make_parameter, type, args, kwargs);
}

/* --- several in one block ----------------------------------------------------------------------------------------- */

typedef struct block_part {
    int ndim;
    int64_t shape[LORA_PY_MAX_DIMS], n;
} block_part;

static int read_shape(PyObject *given, Py_ssize_t i, block_part *part) {
    static const char expected[] = "shapes: expected tuples of int";
    PyObject *sizes = lora_py_items(given, expected);
    if (!sizes) return -1;
    int status = PyTuple_GET_SIZE(sizes) >= 1 && PyTuple_GET_SIZE(sizes) <= LORA_PY_MAX_DIMS ? 0 : -1;
    if (status < 0)
        PyErr_Format(PyExc_ValueError, "shapes: expected 1 to %d dimensions, got %zd at index %zd", (int)LORA_PY_MAX_DIMS,
                     PyTuple_GET_SIZE(sizes), i);
    part->ndim = status < 0 ? 0 : (int)PyTuple_GET_SIZE(sizes);
    part->n = 1;
    for (int d = 0; status == 0 && d < part->ndim; d++) {
        PyObject *size = PyTuple_GET_ITEM(sizes, d);
        if (!lora_py_whole(size, &part->shape[d])) {
            if (PyErr_ExceptionMatches(PyExc_TypeError))
                PyErr_Format(PyExc_TypeError, "%s, got %s at index %zd", expected, Py_TYPE(size)->tp_name, i);
            status = -1;
        } else if (part->shape[d] < 1 || __builtin_mul_overflow(part->n, part->shape[d], &part->n)) {
            PyErr_Format(PyExc_ValueError, "shapes: expected sizes >= 1 that fit the memory, got %lld at index %zd",
                         (long long)part->shape[d], i);
            status = -1;
        }
    }
    Py_DECREF(sizes);
    return status;
}

/* The parts of a block, to be freed with PyMem_Free, and how many elements they have together; NULL with an exception. */
static block_part *read_shapes(PyObject *shapes, int64_t *total) {
    Py_ssize_t n = PyTuple_GET_SIZE(shapes);
    block_part *parts = NULL;
    *total = 0;
    if (n == 0)
        PyErr_SetString(PyExc_ValueError, "shapes: expected at least one, got none");
    else if (!(parts = PyMem_Calloc((size_t)n, sizeof *parts)))
        PyErr_NoMemory();
    int status = parts ? 0 : -1;
    for (Py_ssize_t i = 0; status == 0 && i < n; i++) {
        status = read_shape(PyTuple_GET_ITEM(shapes, i), i, &parts[i]);
        if (status == 0 && (__builtin_add_overflow(*total, parts[i].n, total) || *total > INT64_MAX / (int64_t)sizeof(float))) {
            PyErr_SetString(PyExc_MemoryError, "shapes: expected sizes that fit the memory, got more than 2**63 bytes together");
            status = -1;
        }
    }
    if (status == 0) return parts;
    PyMem_Free(parts);
    return NULL;
}

/* A str for each part, in a tuple. */
static PyObject *read_names(PyObject *given, Py_ssize_t n) {
    static const char expected[] = "names: expected a list of str";
    PyObject *names = lora_py_items(given, expected);
    if (names && PyTuple_GET_SIZE(names) != n) {
        PyErr_Format(PyExc_ValueError, "names: expected one for each of %zd shapes, got %zd", n, PyTuple_GET_SIZE(names));
        Py_CLEAR(names);
    }
    for (Py_ssize_t i = 0; names && i < n; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (PyUnicode_CheckExact(name)) continue;
        PyErr_Format(PyExc_TypeError, "%s, got %s at index %zd", expected, Py_TYPE(name)->tp_name, i);
        Py_CLEAR(names);
    }
    return names;
}

/* names: a tuple, or NULL for empty ones. */
static PyObject *parameters_of_block(lora_py_state *state, lora_py_block *block, Py_ssize_t n, const block_part *parts, PyObject *names) {
    PyObject *list = PyList_New(0), *unnamed = PyUnicode_FromString(""); /* the list grows: others may see it */
    int64_t first = 0;
    if (!unnamed) Py_CLEAR(list);
    for (Py_ssize_t i = 0; list && i < n; i++) {
        PyObject *name = names ? PyTuple_GET_ITEM(names, i) : unnamed;
        PyObject *p = (PyObject *)lora_py_parameter_at(state, block, first, parts[i].ndim, parts[i].shape, name);
        if (!p || PyList_Append(list, p) < 0) Py_CLEAR(list);
        Py_XDECREF(p);
        first += parts[i].n;
    }
    Py_XDECREF(unnamed);
    return list;
}

PyDoc_STRVAR(block_doc, "block($type, shapes, /, *, names=None, requires_grad=True, device='cpu')\n--\n\n"
                        "Make Parameters of zeros whose memory lies behind each other, data and gradients, without gaps.\n\n"
                        "Parameters\n----------\n"
                        "shapes : sequence of tuple of int\n    One for each.\n"
                        "names : sequence of str, optional\n    For checkpoints and messages.\n"
                        "requires_grad : bool\n    Whether gradients are kept.\n"
                        "device : str\n    Where they lie, a name of devices().\n\n"
                        "Returns\n-------\nlist of Parameter\n\n"
                        "Raises\n------\nTypeError, ValueError\n    A shape or a name does not fit.\nMemoryError\n    The machine has no "
                        "memory for all of them.\n\n"
                        "Notes\n-----\nThe memory is given back when the last of them, and the last view, is gone.");

static PyObject *parameter_block(PyObject *cls, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {"", "names", "requires_grad", "device", NULL};
    PyObject *shapes_given, *names_given = Py_None, *names = NULL, *list = NULL;
    const char *device_name = "cpu";
    int requires_grad = 1;
    lora_py_device device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$Ops:block", keywords, &shapes_given, &names_given, &requires_grad, &device_name) ||
        lora_py_find_device(lora_py_state_of((PyTypeObject *)cls), device_name, &device) < 0)
        return NULL;
    PyObject *shapes = lora_py_items(shapes_given, "shapes: expected a list of tuples of int");
    if (!shapes) return NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(shapes);
    int64_t total;
    lora_py_state *state = lora_py_state_of((PyTypeObject *)cls);
    block_part *parts = read_shapes(shapes, &total);
    if (parts && names_given != Py_None) names = read_names(names_given, n);
    if (parts && !PyErr_Occurred()) {
        lora_py_block *block = lora_py_block_new(device, total, requires_grad);
        if (block) list = parameters_of_block(state, block, n, parts, names);
        lora_py_block_drop(block);
    }
    PyMem_Free(parts);
    Py_XDECREF(names);
    Py_DECREF(shapes);
    return list;
}

/* --- views -------------------------------------------------------------------------------------------------------- */

/* A new array with what lies at data; None for NULL. */
static PyObject *copy_of(PyObject *o, const float *data) {
    parameter *self = (parameter *)o;
    int64_t shape[LORA_PY_MAX_DIMS];
    void *to;
    for (int i = 0; i < self->ndim; i++) shape[i] = self->shape[i];
    PyObject *array = data ? lora_py_new_array(LORA_PY_F32, self->ndim, shape, 0, &to) : Py_NewRef(Py_None);
    if (array && data && lora_py_download(&self->base, to, data, (size_t)self->size * sizeof(float)) < 0) Py_CLEAR(array);
    return array;
}

/* A view; of another device's memory a copy, which does not pretend that writing to it changes anything. */
static PyObject *view_of(PyObject *o, float *data) {
    parameter *self = (parameter *)o;
    int64_t shape[LORA_PY_MAX_DIMS];
    for (int i = 0; i < self->ndim; i++) shape[i] = self->shape[i];
    if (data && lora_py_is_host(self->base.ctx)) return lora_py_view(o, LORA_PY_F32, self->ndim, shape, data, 1);
    PyObject *array = copy_of(o, data);
    if (array && array != Py_None && lora_py_set_readonly(array) < 0) Py_CLEAR(array);
    return array;
}

static PyObject *parameter_read(PyObject *o, PyObject *unused) {
    (void)unused;
    return copy_of(o, ((parameter *)o)->data);
}
static PyObject *parameter_read_grad(PyObject *o, PyObject *unused) {
    (void)unused;
    return copy_of(o, ((parameter *)o)->grad);
}

/* The memory itself, wherever it lies. */
static PyObject *over(PyObject *o, float *data) {
    parameter *self = (parameter *)o;
    if (!data || lora_py_is_host(self->base.ctx)) return data ? view_of(o, data) : Py_NewRef(Py_None);
    lora_py_extent e;
    (void)lora_py_extent_of(o, &e);
    e.data = data;
    return lora_py_devicearray_over(lora_py_state_of(Py_TYPE(o)), lora_py_device_of(o), &e, o);
}
static PyObject *parameter_view(PyObject *o, PyObject *unused) {
    (void)unused;
    return over(o, ((parameter *)o)->data);
}
static PyObject *parameter_view_grad(PyObject *o, PyObject *unused) {
    (void)unused;
    return over(o, ((parameter *)o)->grad);
}

static PyObject *parameter_to(PyObject *o, PyObject *args) {
    const char *device;
    if (!PyArg_ParseTuple(args, "s:to", &device)) return NULL;
    if (strcmp(device, "cpu") == 0) return copy_of(o, ((parameter *)o)->data);
    PyErr_Format(PyExc_ValueError, "device: expected 'cpu', got '%s'; Parameter(p.read(), device='%s') makes one there", device, device);
    return NULL;
}

static PyObject *parameter_write(PyObject *o, PyObject *given) {
    parameter *self = (parameter *)o;
    int64_t shape[LORA_PY_MAX_DIMS];
    lora_py_array data;
    for (int i = 0; i < self->ndim; i++) shape[i] = self->shape[i];
    if (lora_py_get(given, "data", LORA_PY_F32, 0, &data) < 0) return NULL;
    int status = lora_py_expect(&data, self->ndim, shape);
    if (status == 0) status = lora_py_upload(&self->base, self->data, data.data, (size_t)self->size * sizeof(float));
    lora_py_release(&data);
    if (status < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *get_data(PyObject *o, void *unused) {
    (void)unused;
    return view_of(o, ((parameter *)o)->data);
}
static PyObject *get_grad(PyObject *o, void *unused) {
    (void)unused;
    return view_of(o, ((parameter *)o)->grad);
}
static PyObject *get_name(PyObject *o, void *unused) {
    (void)unused;
    return Py_NewRef(((parameter *)o)->name);
}
static PyObject *get_size(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(((parameter *)o)->size);
}

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
    if (lora_py_is_host(((parameter *)o)->base.ctx))
        PyErr_Format(PyExc_AttributeError, "%s: expected an assignment to its elements, got one to the attribute; use p.%s[...] = x", name,
                     name);
    else
        PyErr_Format(PyExc_AttributeError, "%s: expected p.write(x) for a Parameter on another device than the CPU, got an assignment",
                     name);
    return -1;
}

static PyObject *parameter_zero_grad(PyObject *o, PyObject *unused) {
    (void)unused;
    parameter *self = (parameter *)o;
    lora_status status = LORA_OK;
    lora_error err = {0};
    if (self->grad) /* locked: not while a backward pass adds to it */
        LORA_PY_CALL(self->base.ctx, status, lora_clear(self->base.ctx, self->grad, (size_t)self->size * sizeof(float), &err));
    if (status != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}

static int parameter_getbuffer(PyObject *o, Py_buffer *view, int flags) {
    parameter *self = (parameter *)o;
    if (!lora_py_is_host(self->base.ctx)) {
        view->obj = NULL;
        PyErr_Format(PyExc_BufferError, "Parameter: expected one on the CPU, got one on device %s; use its read() and write()",
                     lora_ctx_device(self->base.ctx));
        return -1;
    }
    if (self->ndim > 1 && (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "Parameter: expected a request for rows behind each other, got one for columns (Fortran order)");
        return -1;
    }
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

int lora_py_is_parameter(PyObject *o) { return Py_TYPE(o)->tp_dealloc == parameter_dealloc; }

static PyObject *parameter_repr(PyObject *o) {
    parameter *self = (parameter *)o;
    PyObject *shape = get_shape(o, NULL), *text = NULL;
    PyObject *name = PyUnicode_GET_LENGTH(self->name) ? PyUnicode_FromFormat("%R, ", self->name) : PyUnicode_FromString("");
    PyObject *device =
        lora_py_is_host(self->base.ctx) ? PyUnicode_FromString("") : PyUnicode_FromFormat(", device='%s'", lora_ctx_device(self->base.ctx));
    if (shape && name && device)
        text = PyUnicode_FromFormat("Parameter(%Ushape=%R, requires_grad=%s%U)", name, shape, self->grad ? "True" : "False", device);
    Py_XDECREF(shape);
    Py_XDECREF(name);
    Py_XDECREF(device);
    return text;
}

static PyGetSetDef parameter_getset[] = {
    {"data", get_data, refuse_set, "The values, a writable view; on another device than the CPU a copy, see write().", "data"},
    {"grad", get_grad, refuse_set, "The gradient, likewise; backward passes add to it. None when frozen.", "grad"},
    {"device", lora_py_get_device, NULL, "The name of the device that it lies on.", NULL},
    {"name", get_name, NULL, "The name given at construction.", NULL},
    {"shape", get_shape, NULL, "The shape.", NULL},
    {"size", get_size, NULL, "Number of elements.", NULL},
    {"requires_grad", get_requires_grad, NULL, "Whether it is trained.", NULL},
    {0},
};

PyDoc_STRVAR(zero_grad_doc, "zero_grad($self, /)\n--\n\nSet the gradient to zero.");

PyDoc_STRVAR(read_doc, "read($self, /)\n--\n\nReturn a copy of the values, from whichever device they lie on.");
PyDoc_STRVAR(read_grad_doc, "read_grad($self, /)\n--\n\nReturn a copy of the gradient, from whichever device; None when frozen.");
PyDoc_STRVAR(view_doc, "view($self, /)\n--\n\n"
                       "Return the values where they lie, without a copy: a NumPy array on the CPU, else a DeviceArray. Both are "
                       "writable\nand keep the memory.");
PyDoc_STRVAR(view_grad_doc, "view_grad($self, /)\n--\n\nReturn the gradient where it lies, as view() does the values; None when frozen.");
PyDoc_STRVAR(write_doc, "write($self, data, /)\n--\n\n"
                        "Set the values, on whichever device they lie.\n\n"
                        "Raises\n------\nTypeError\n    data is not float32.\nValueError\n    Another shape.");

PyDoc_STRVAR(to_doc, "to($self, device, /)\n--\n\n"
                     "Return a copy of the values as a NumPy array: to('cpu'), which is read().\n\n"
                     "Raises\n------\nValueError\n    Another device.");
LORA_PY_KEEP(parameter_block)
LORA_PY_KEEP(lora_py_dlpack)

static PyMethodDef parameter_methods[] = {
    {"block", LORA_PY_KEYWORDS parameter_block_kept, METH_CLASS | METH_VARARGS | METH_KEYWORDS, block_doc},
    {"zero_grad", parameter_zero_grad, METH_NOARGS, zero_grad_doc},
    {"read", parameter_read, METH_NOARGS, read_doc},
    {"read_grad", parameter_read_grad, METH_NOARGS, read_grad_doc},
    {"view", parameter_view, METH_NOARGS, view_doc},
    {"view_grad", parameter_view_grad, METH_NOARGS, view_grad_doc},
    {"write", parameter_write, METH_O, write_doc},
    {"to", parameter_to, METH_VARARGS, to_doc},
    {"__dlpack__", LORA_PY_KEYWORDS lora_py_dlpack_kept, METH_VARARGS | METH_KEYWORDS, lora_py_dlpack_doc},
    {"__dlpack_device__", lora_py_dlpack_device, METH_NOARGS, lora_py_dlpack_device_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(
    parameter_doc,
    "Parameter(data, *, name=\'\', requires_grad=True, device=\'cpu\')\n--\n\n"
    "A float32 array that training may change, with its gradient.\n\n"
    "Parameters\n----------\n"
    "data : array\n    float32, C-contiguous, not empty; copied.\n"
    "name : str\n    For checkpoints and messages.\n"
    "requires_grad : bool\n    Whether a gradient is kept.\n"
    "device : str\n    Where it lies, a name of devices().\n\n"
    "Raises\n------\nTypeError\n    Another element type.\nValueError\n    Empty, or not contiguous.\n\n"
    "Notes\n-----\nThe buffer protocol gives the data, writable; on another device than the CPU it is refused. Views stay valid after the\n"
    "Parameter is gone.");

static PyType_Slot parameter_slots[] = {
    {Py_tp_new, parameter_new},         {Py_tp_dealloc, parameter_dealloc},     {Py_tp_traverse, lora_py_traverse},
    {Py_tp_repr, parameter_repr},       {Py_tp_methods, parameter_methods},     {Py_tp_getset, parameter_getset},
    {Py_tp_doc, (void *)parameter_doc}, {Py_bf_getbuffer, parameter_getbuffer}, {0, NULL},
};

PyType_Spec lora_py_parameter_spec = {
    .name = "lora_c._core.Parameter",
    .basicsize = sizeof(parameter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = parameter_slots,
};
