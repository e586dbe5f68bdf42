/* LoRALinear: y = W x + b + s B A x with a frozen W. No state is kept between forward and backward. */
#include "lora_c/bindings/py_loralinear.h"

#include <string.h>

static int linear_traverse(PyObject *o, visitproc visit, void *arg) {
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    Py_VISIT(self->given);
    Py_VISIT(self->weight.keep);
    Py_VISIT(self->bias_keep);
    return lora_py_traverse(o, visit, arg);
}

static void linear_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    Py_XDECREF(self->given);
    Py_XDECREF(self->weight.keep);
    Py_XDECREF(self->bias_keep);
    Py_XDECREF(self->A);
    Py_XDECREF(self->B);
    Py_XDECREF(self->magnitude);
    lora_ctx_free(self->base.ctx, self->norm);
    lora_py_delete(o);
}

/* --- calls -------------------------------------------------------------------------------------------------------- */

static lora_adapter_pass pass_of(const lora_py_loralinear *self, int training, uint64_t step) {
    return (lora_adapter_pass){.dropout = training ? (float)self->dropout : 0.0f, .dropout_stream = step, .norm = self->norm};
}

/* The step that chooses the dropout mask. One that is left out would be the same mask in every step. */
static int read_step(const lora_py_loralinear *self, PyObject *given, int training, uint64_t *step) {
    *step = 0;
    if (given != Py_None) return lora_py_seed(given, step) ? 0 : -1;
    if (!training || self->dropout == 0.0) return 0;
    PyErr_SetString(PyExc_ValueError, "step: expected the number of the training step with lora_dropout, which draws another mask in each, "
                                      "got none; give forward() and backward() of a step the same");
    return -1;
}

static PyObject *new_result(const lora_py_loralinear *self, int ndim, const int64_t *shape, float **data) {
    lora_py_state *state = lora_py_state_of(Py_TYPE((PyObject *)self));
    return lora_py_new_on(state, lora_py_device_of(self), LORA_PY_F32, ndim, shape, 0, (void **)data);
}

/* The output for the leading dimensions of like and a last one of cols: out itself, checked, or a new array. */
static PyObject *output(const lora_py_loralinear *self, PyObject *out, const lora_py_array *like, int64_t cols, lora_py_array *held,
                        float **data, int64_t *ld) {
    *held = (lora_py_array){0};
    if (out == Py_None) {
        int64_t shape[LORA_PY_MAX_DIMS];
        memcpy(shape, like->shape, sizeof shape);
        shape[like->ndim - 1] = cols;
        *ld = cols;
        return new_result(self, like->ndim, shape, data);
    }
    if (lora_py_get_on(self->base.ctx, out, "out", LORA_PY_F32, LORA_PY_WRITABLE | LORA_PY_ROWS, held) < 0) return NULL;
    *data = held->data;
    *ld = held->ld;
    return lora_py_expect_last(held, cols, like) == 0 ? Py_NewRef(out) : NULL;
}

/* What the layer reads and adds to, by name. */
typedef struct linear_memory {
    const char *name;
    PyObject *owner;
} linear_memory;

enum { MEMORIES = 5 };

static void list_memory(const lora_py_loralinear *self, linear_memory all[MEMORIES]) {
    const linear_memory list[MEMORIES] = {{"base", self->weight.keep},
                                          {"bias", self->bias_keep},
                                          {"A", (PyObject *)self->A},
                                          {"B", (PyObject *)self->B},
                                          {"magnitude", (PyObject *)self->magnitude}};
    memcpy(all, list, sizeof list);
}

/* Writing over the layer's own weights through out= must fail, too. */
static int apart_from_weights(const lora_py_loralinear *self, const lora_py_array *out) {
    linear_memory all[MEMORIES];
    list_memory(self, all);
    for (int i = 0; i < MEMORIES; i++)
        if (lora_py_apart_from_owner(lora_py_state_of(Py_TYPE((PyObject *)self)), out, all[i].name, all[i].owner) < 0) return -1;
    return 0;
}

/* An input of backward() in the memory of a gradient would change while it is read. */
static int apart_from_gradients(const lora_py_loralinear *self, const lora_py_array *in) {
    linear_memory all[MEMORIES];
    list_memory(self, all);
    for (int i = 0; i < MEMORIES; i++)
        if (lora_py_apart_from_gradient(lora_py_state_of(Py_TYPE((PyObject *)self)), in, all[i].name, all[i].owner) < 0) return -1;
    return 0;
}

static PyObject *finish(lora_py_loralinear *self, PyObject *result, lora_status status, const lora_error *err) {
    if (status == LORA_OK) return result;
    Py_DECREF(result);
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
}

PyDoc_STRVAR(
    forward_doc,
    "forward($self, x, /, *, out=None, training=False, step=None)\n--\n\n"
    "Compute y = x W^T + bias + s (drop(x) A^T) B^T.\n\n"
    "Shapes\n------\nx (..., in_features); result (..., out_features).\n\n"
    "Parameters\n----------\n"
    "x : array\n    float32; rows may lie apart, elements of a row may not.\n"
    "out : array, optional\n    float32, writable, apart from x and the weights.\n"
    "training : bool\n    Apply lora_dropout.\n"
    "step : int, optional\n    Chooses the dropout mask; give backward() the same. Needed where training with lora_dropout.\n\n"
    "Returns\n-------\nndarray or DeviceArray\n    out, or a new array.\n\n"
    "Raises\n------\nValueError\n    A shape or stride does not fit, or out overlaps an input.\n"
    "TypeError\n    Another element type, or an array that lies elsewhere than the layer.\nRuntimeError\n    Another thread is using this "
    "layer.\n\n"
    "Notes\n-----\nError bound (2 K + R + 16) 2^-24 (|x||W| + s |x||A||B| + |bias|); the same bits for any number of threads.\n\n"
    "Source\n------\nLoRA, arXiv:2106.09685, eq. 3; QLoRA, arXiv:2305.14314, eq. 5.");

static PyObject *linear_forward(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "out", "training", "step", NULL};
    PyObject *x_given, *out = Py_None, *step_given = Py_None;
    int training = 0;
    uint64_t step;
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$OpO:forward", names, &x_given, &out, &training, &step_given) ||
        read_step(self, step_given, training, &step) < 0)
        return NULL;
    lora_weight w = self->weight.w;
    lora_py_array x, held = {0};
    if (lora_py_get_on(self->base.ctx, x_given, "x", LORA_PY_F32, LORA_PY_ROWS, &x) < 0) return NULL;
    float *y;
    int64_t ldy;
    PyObject *result = lora_py_expect_last(&x, w.cols, NULL) < 0 ? NULL : output(self, out, &x, w.rows, &held, &y, &ldy);
    if (result && (lora_py_apart(&held, &x) < 0 || apart_from_weights(self, &held) < 0 || lora_py_enter(&self->base) < 0)) Py_CLEAR(result);
    if (result && lora_py_refresh_norm(self) < 0) {
        lora_py_leave(&self->base);
        Py_CLEAR(result);
    }
    if (result) {
        lora_adapter adapter = lora_py_linear_adapter(self);
        lora_linear_layer layer = {.w = &w,
                                   .bias = self->bias,
                                   .adapter = &adapter,
                                   .pass = pass_of(self, training, step),
                                   .y = lora_mat_f32(y, x.rows, w.rows, ldy)};
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status,
                     lora_linear_forward(self->base.ctx, lora_mat_f32(x.data, x.rows, w.cols, x.ld), 1, &layer, &err));
        lora_py_leave(&self->base);
        result = finish(self, result, status, &err);
    }
    lora_py_release(&held);
    lora_py_release(&x);
    return result;
}

PyDoc_STRVAR(backward_doc,
             "backward($self, dy, x, /, *, out=None, training=False, step=None)\n--\n\n"
             "Compute dx = dy W + s drop\'((dy B) A) and add to A.grad and B.grad.\n\n"
             "Shapes\n------\ndy (..., out_features); x (..., in_features) as given to forward(); result like x.\n\n"
             "Parameters\n----------\n"
             "dy, x : array\n    float32; rows may lie apart.\n"
             "out : array, optional\n    float32, writable, apart from dy, x and the weights.\n"
             "training, step\n    As given to forward().\n\n"
             "Returns\n-------\nndarray or DeviceArray\n    dx: out, or a new array. Overwritten, while the gradients are added to.\n\n"
             "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward().\n\n"
             "Notes\n-----\nx A^T is computed again, so that the layer keeps no activation.\n\n"
             "Source\n------\nLoRA, arXiv:2106.09685, eq. 3.");

static PyObject *linear_backward(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "out", "training", "step", NULL};
    PyObject *dy_given, *x_given, *out = Py_None, *step_given = Py_None;
    int training = 0;
    uint64_t step;
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OpO:backward", names, &dy_given, &x_given, &out, &training, &step_given) ||
        read_step(self, step_given, training, &step) < 0)
        return NULL;
    lora_weight w = self->weight.w;
    lora_py_array dy = {0}, x = {0}, held = {0};
    PyObject *result = NULL;
    float *dx;
    int64_t lddx;
    if (lora_py_get_on(self->base.ctx, dy_given, "dy", LORA_PY_F32, LORA_PY_ROWS, &dy) < 0) return NULL;
    if (lora_py_get_on(self->base.ctx, x_given, "x", LORA_PY_F32, LORA_PY_ROWS, &x) < 0) goto done;
    if (lora_py_expect_last(&x, w.cols, NULL) < 0 || lora_py_expect_last(&dy, w.rows, &x) < 0) goto done;
    result = output(self, out, &x, w.cols, &held, &dx, &lddx);
    if (!result) goto done;
    if (lora_py_apart(&held, &x) < 0 || lora_py_apart(&held, &dy) < 0 || apart_from_weights(self, &held) < 0 ||
        apart_from_gradients(self, &x) < 0 || apart_from_gradients(self, &dy) < 0 || lora_py_enter(&self->base) < 0) {
        Py_CLEAR(result);
        goto done;
    }
    if (lora_py_refresh_norm(self) < 0) {
        lora_py_leave(&self->base);
        Py_CLEAR(result);
        goto done;
    }
    lora_adapter adapter = lora_py_linear_adapter(self);
    lora_linear_gradient gradient = {.dy = lora_mat_f32(dy.data, x.rows, w.rows, dy.ld),
                                     .w = &w,
                                     .adapter = &adapter,
                                     .pass = pass_of(self, training, step),
                                     .dW = self->weight.grad,
                                     .dbias = self->dbias};
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status,
                 lora_linear_backward(self->base.ctx, lora_mat_f32(x.data, x.rows, w.cols, x.ld), 1, &gradient,
                                      lora_mat_f32(dx, x.rows, w.cols, lddx), false, &err));
    lora_py_leave(&self->base);
    result = finish(self, result, status, &err);
done:
    lora_py_release(&held);
    lora_py_release(&x);
    lora_py_release(&dy);
    return result;
}

PyDoc_STRVAR(merge_doc,
             "merge($self, /, *, sign=1.0)\n--\n\n"
             "Return W + sign s B A; with DoRA g (W + s B A).\n\n"
             "Parameters\n----------\nsign : float\n    1 to merge, -1 to take a merged adapter out (not with DoRA: keep the base).\n\n"
             "Returns\n-------\nndarray or DeviceArray\n    float32, (out_features, in_features); each element is rounded once.\n\n"
             "Source\n------\nLoRA, arXiv:2106.09685, section 4.1.");

static PyObject *linear_merge(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sign", NULL};
    double sign = 1.0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$d:merge", names, &sign)) return NULL;
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    lora_weight w = self->weight.w;
    const int64_t shape[] = {w.rows, w.cols};
    float *merged;
    PyObject *result = new_result(self, 2, shape, &merged);
    if (!result || lora_py_enter(&self->base) < 0) {
        Py_XDECREF(result);
        return NULL;
    }
    if (lora_py_refresh_norm(self) < 0) {
        lora_py_leave(&self->base);
        Py_DECREF(result);
        return NULL;
    }
    lora_adapter adapter = lora_py_linear_adapter(self);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_linear_merge(self->base.ctx, &w, &adapter, self->norm, (float)sign, merged, &err));
    lora_py_leave(&self->base);
    return finish(self, result, status, &err);
}

PyDoc_STRVAR(parameters_doc, "parameters($self, /)\n--\n\nReturn the trained parameters: A, B, DoRA\'s magnitude, then a base and a bias "
                             "that were given as Parameter.");

static PyObject *linear_parameters(PyObject *o, PyObject *unused) {
    (void)unused;
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    PyObject *list = PyList_New(0);
    struct {
        PyObject *parameter;
        float *grad;
    } all[] = {{(PyObject *)self->A, self->A->grad},
               {(PyObject *)self->B, self->B->grad},
               {(PyObject *)self->magnitude, self->magnitude ? self->magnitude->grad : NULL},
               {self->weight.keep, self->weight.grad},
               {self->bias_keep, self->dbias}};
    for (size_t i = 0; list && i < sizeof all / sizeof *all; i++)
        if (all[i].grad && PyList_Append(list, all[i].parameter) < 0) Py_CLEAR(list);
    return list;
}

/* --- buffer ------------------------------------------------------------------------------------------------------- */

static int linear_getbuffer(PyObject *o, Py_buffer *view, int flags) {
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    if (!lora_py_is_host(self->base.ctx)) {
        view->obj = NULL;
        PyErr_Format(PyExc_BufferError,
                     "LoRALinear: expected one on the CPU, got one on device %s; use read() and write() of its parameters()",
                     lora_ctx_device(self->base.ctx));
        return -1;
    }
    if (self->apart) {
        view->obj = NULL;
        PyErr_Format(PyExc_BufferError,
                     "LoRALinear: expected A, B%s behind each other in one block of memory, got %s elsewhere; give arrays, "
                     "which are copied, or Parameters of one Parameter.block()",
                     self->magnitude ? " and the magnitude" : "", self->apart);
        return -1;
    }
    *view = (Py_buffer){
        .buf = self->A->data,
        .obj = Py_NewRef(o),
        .len = self->flat_size * self->flat_stride,
        .itemsize = self->flat_stride,
        .format = flags & PyBUF_FORMAT ? "f" : NULL,
        .ndim = 1,
        .shape = flags & PyBUF_ND ? &self->flat_size : NULL,
        .strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? &self->flat_stride : NULL,
    };
    return 0;
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

enum { ATTR_A, ATTR_B, MAGNITUDE, BASE, IN, OUT, RANK, ALPHA, SCALING, DROPOUT };

static PyObject *linear_get(PyObject *o, void *which) {
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    switch ((int)(intptr_t)which) {
    case ATTR_A: return Py_NewRef((PyObject *)self->A);
    case ATTR_B: return Py_NewRef((PyObject *)self->B);
    case MAGNITUDE: return Py_NewRef(self->magnitude ? (PyObject *)self->magnitude : Py_None);
    case BASE: return Py_NewRef(self->given);
    case IN: return PyLong_FromLongLong(self->weight.w.cols);
    case OUT: return PyLong_FromLongLong(self->weight.w.rows);
    case RANK: return PyLong_FromLongLong(self->rank);
    case ALPHA: return PyFloat_FromDouble(self->lora_alpha);
    case SCALING: return PyFloat_FromDouble(self->scaling);
    default: return PyFloat_FromDouble(self->dropout);
    }
}

static PyObject *linear_repr(PyObject *o) {
    lora_py_loralinear *self = (lora_py_loralinear *)o;
    static const char *const kinds[] = {"float32", "bfloat16", "NF4", "GGML"};
    PyObject *alpha = PyFloat_FromDouble(self->lora_alpha);
    int is_host = lora_py_is_host(self->base.ctx);
    PyObject *text = alpha ? PyUnicode_FromFormat("LoRALinear(in_features=%lld, out_features=%lld, r=%lld, lora_alpha=%R, base=%s%s%s%s)",
                                                  (long long)self->weight.w.cols, (long long)self->weight.w.rows, (long long)self->rank,
                                                  alpha, kinds[self->weight.w.kind], is_host ? "" : ", device='",
                                                  is_host ? "" : lora_ctx_device(self->base.ctx), is_host ? "" : "'")
                           : NULL;
    Py_XDECREF(alpha);
    return text;
}

#define GETTER(name, which, doc) {name, linear_get, NULL, doc, (void *)(intptr_t)(which)}
static PyGetSetDef linear_getset[] = {
    GETTER("A", ATTR_A, "(r, in_features)."),
    GETTER("B", ATTR_B, "(out_features, r)."),
    GETTER("magnitude", MAGNITUDE, "(out_features,) with DoRA, else None."),
    GETTER("base", BASE, "The frozen matrix as it was given."),
    GETTER("in_features", IN, "Columns of the base."),
    GETTER("out_features", OUT, "Rows of the base."),
    GETTER("r", RANK, "Rank of the adapter."),
    GETTER("lora_alpha", ALPHA, "Numerator of the scale."),
    GETTER("scaling", SCALING, "s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."),
    GETTER("lora_dropout", DROPOUT, "Probability of zeroing an element of x on its way to A in training."),
    {"device", lora_py_get_device, NULL, "The name of the device that it lies and computes on.", NULL},
    {0},
};

LORA_PY_KEEP(linear_forward)
LORA_PY_KEEP(linear_backward)
LORA_PY_KEEP(linear_merge)

static PyObject *linear_repr_html(PyObject *o, PyObject *unused) {
    (void)unused;
    static const char *const attributes[] = {"in_features", "out_features", "base", "r", "lora_alpha", "scaling", "lora_dropout", NULL};
    return lora_py_html(o, attributes);
}

static PyMethodDef linear_methods[] = {
    {"forward", LORA_PY_KEYWORDS linear_forward_kept, METH_VARARGS | METH_KEYWORDS, forward_doc},
    {"backward", LORA_PY_KEYWORDS linear_backward_kept, METH_VARARGS | METH_KEYWORDS, backward_doc},
    {"merge", LORA_PY_KEYWORDS linear_merge_kept, METH_VARARGS | METH_KEYWORDS, merge_doc},
    {"parameters", linear_parameters, METH_NOARGS, parameters_doc},
    {"_repr_html_", linear_repr_html, METH_NOARGS, "A table for notebooks."},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(
    linear_doc,
    "LoRALinear(base, r=8, *, lora_alpha=8.0, lora_dropout=0.0, bias=None, A=None, B=None, seed=0, use_rslora=False, "
    "use_dora=False, magnitude=None, device=None)\n--\n\n"
    "A linear layer with a LoRA adapter: y = W x + bias + s B A x.\n\n"
    "Shapes\n------\nbase (out_features, in_features); bias (out_features,); A (r, in_features); B (out_features, r).\n\n"
    "Parameters\n----------\n"
    "base : NF4Tensor, GGMLTensor, array or Parameter\n    Frozen as NF4Tensor, GGMLTensor or as a float32 or bfloat16 array, which is "
    "borrowed, not copied;\n"
    "    trained as Parameter. On another device than the CPU also DeviceWeight and DeviceArray, which are borrowed; what the host\n"
    "    has is copied there.\n"
    "r : int\n    Rank.\n"
    "lora_alpha : float\n    s = lora_alpha / r.\n"
    "lora_dropout : float\n    Dropout on the input of A while training.\n"
    "bias : array or Parameter, optional\n    Added to every row.\n"
    "A, B : array or Parameter, optional\n    Start values (copied) or shared parameters. By default A is uniform in\n"
    "    +-1/sqrt(in_features), as PEFT draws it, and B is zero.\n"
    "seed : int\n    For A and for the dropout masks.\n"
    "use_rslora : bool\n    s = lora_alpha / sqrt(r).\n"
    "use_dora : bool\n    DoRA: y = g (W x + s B A x) + bias with g = magnitude / ||W + s B A|| by rows.\n"
    "magnitude : array or Parameter, optional\n    (out_features,), implies use_dora; by default the row lengths of W + s B A.\n"
    "device : str, optional\n    Where it lies and computes, a name of devices(); by default where base lies. forward() and backward() "
    "take "
    "and give arrays\n    there.\n\n"
    "Raises\n------\nValueError\n    A shape or a number does not fit.\nTypeError\n    Another element type.\n\n"
    "Notes\n-----\nOne thread at a time per layer; a second one gets RuntimeError.\n\n"
    "The buffer protocol gives the parameters as one flat float32 array, writable: A, B, the magnitude where there is one, and a\n"
    "bias that is a Parameter right behind them. A.data, B.data and magnitude.data are views of it. It stays valid after the layer\n"
    "is gone, and takes no lock: what another thread writes while the layer is in use counts from some moment on. BufferError\n"
    "where shared Parameters do not lie behind each other (see Parameter.block).\n\n"
    "Source\n------\nLoRA, arXiv:2106.09685, eq. 3; rsLoRA, arXiv:2312.03732; DoRA,\n"
    "arXiv:2402.09353, eq. 5.");

static PyType_Slot linear_slots[] = {
    {Py_tp_new, lora_py_linear_new},     {Py_tp_dealloc, linear_dealloc},
    {Py_tp_traverse, linear_traverse},   {Py_tp_repr, linear_repr},
    {Py_tp_methods, linear_methods},     {Py_tp_getset, linear_getset},
    {Py_tp_doc, (void *)linear_doc},     {Py_tp_call, linear_forward_kept},
    {Py_bf_getbuffer, linear_getbuffer}, {0, NULL},
};

PyType_Spec lora_py_loralinear_spec = {
    .name = "lora_c._core.LoRALinear",
    .basicsize = sizeof(lora_py_loralinear),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = linear_slots,
};
