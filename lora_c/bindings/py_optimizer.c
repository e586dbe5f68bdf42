/* What the optimizers over a list of Parameters share: their arguments, steps and attributes. What they compute stands in lora_c/optim. */
#include "lora_c/bindings/py_optimizer.h"

#include "lora_c/bindings/py_devices.h"

#include <math.h>
#include <string.h>

void lora_py_optimizer_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    lora_optimizer_destroy(self->optimizer);
    for (Py_ssize_t i = 0; i < self->n; i++) Py_XDECREF(self->parameters[i]);
    PyMem_Free(self->parameters);
    lora_py_delete(o);
}

/* --- construction ------------------------------------------------------------------------------------------------- */

static Py_ssize_t find_parameter(const lora_py_optimizer *self, Py_ssize_t n, PyObject *p) {
    for (Py_ssize_t i = 0; i < n; i++)
        if ((PyObject *)self->parameters[i] == p) return i;
    return -1;
}

static int add_parameter(lora_py_optimizer *self, lora_py_state *state, Py_ssize_t i, PyObject *o, lora_param *param) {
    lora_py_parameter *p = lora_py_trained_parameter(self, state, o, i);
    if (!p) return -1;
    if (find_parameter(self, i, o) >= 0) {
        PyErr_Format(PyExc_ValueError, "params: expected each parameter once, got the one at index %zd again", i);
        return -1;
    }
    self->parameters[i] = (lora_py_parameter *)Py_NewRef(o);
    *param = (lora_param){
        .data = p->data, .grad = p->grad, .n = p->size, .decay = true, .cols = p->ndim == 2 ? p->shape[1] : 0, .lr_ratio = 1.0};
    return 0;
}

/* The list that the library is given, free it with PyMem_Free; NULL with an exception. */
static lora_param *add_parameters(lora_py_optimizer *self, lora_py_state *state, PyObject *given) {
    PyObject *items = lora_py_items(given, "params: expected a list of Parameter objects");
    if (!items) return NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(items);
    lora_param *params = NULL;
    if (n == 0)
        PyErr_SetString(PyExc_ValueError, "params: expected at least one Parameter, got none");
    else if (!(params = PyMem_Calloc((size_t)n, sizeof *params)) || !(self->parameters = PyMem_Calloc((size_t)n, sizeof *self->parameters)))
        PyErr_NoMemory();
    else
        self->n = n;
    int status = PyErr_Occurred() ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < n; i++) status = add_parameter(self, state, i, PyTuple_GET_ITEM(items, i), &params[i]);
    Py_DECREF(items);
    if (status == 0) return params;
    PyMem_Free(params);
    return NULL;
}

/* Calls mark for each of the parameters that a list names. name: of the argument. */
static int mark_listed(const lora_py_optimizer *self, PyObject *given, const char *name, void (*mark)(lora_param *), lora_param *params) {
    if (!given) return 0;
    char expected[64];
    PyOS_snprintf(expected, sizeof expected, "%s: expected a list of Parameter objects", name);
    PyObject *items = lora_py_items(given, expected);
    if (!items) return -1;
    int status = 0;
    for (Py_ssize_t i = 0; status == 0 && i < PyTuple_GET_SIZE(items); i++) {
        Py_ssize_t at = find_parameter(self, self->n, PyTuple_GET_ITEM(items, i));
        if (at >= 0)
            mark(&params[at]);
        else {
            PyErr_Format(PyExc_ValueError, "%s: expected members of params, got another object at index %zd", name, i);
            status = -1;
        }
    }
    Py_DECREF(items);
    return status;
}

static void without_decay(lora_param *param) { param->decay = false; }
static void no_matrix(lora_param *param) { param->cols = 0; }

static int set_ratios(const lora_py_optimizer *self, PyObject *given, lora_param *params) {
    if (!given || given == Py_None) return 0;
    double *ratios;
    int64_t n;
    if (lora_py_get_doubles(given, "lr_ratios", &ratios, &n) < 0) return -1;
    int status = n == self->n ? 0 : -1;
    if (status < 0) PyErr_Format(PyExc_ValueError, "lr_ratios: expected %zd numbers, got %lld", self->n, (long long)n);
    for (Py_ssize_t i = 0; status == 0 && i < self->n; i++) params[i].lr_ratio = ratios[i]; /* checked by the library */
    PyMem_RawFree(ratios);
    return status;
}

/* Py_None and NULL: the state lies in memory. folder: bytes to be dropped by the caller. */
static int take_folder(PyObject *given, PyObject **folder, lora_optimizer_options *options) {
    if (!given || given == Py_None) return 0;
    if (!PyUnicode_FSConverter(given, folder)) return -1;
    options->paged_folder = PyBytes_AS_STRING(*folder);
    return 0;
}

static int create_optimizer(lora_py_optimizer *self, lora_py_state *state, const lora_param *params) {
    lora_status status;
    lora_error err = {0};
    Py_BEGIN_ALLOW_THREADS /* clearing gigabytes takes time */
        status = lora_optimizer_create(self->base.ctx, self->kind, params, self->n, &self->options, &self->optimizer, &err);
    Py_END_ALLOW_THREADS if (status == LORA_OK) return 0;
    lora_py_raise(state, &err);
    return -1;
}

PyObject *lora_py_optimizer_make(PyTypeObject *type, lora_optimizer_kind kind, double lr, const lora_optimizer_options *options,
                                 const lora_py_optimizer_given *given) {
    if (!(lr >= 0.0 && isfinite(lr))) {
        PyErr_SetString(PyExc_ValueError, "lr: expected a finite number >= 0, got another");
        return NULL;
    }
    lora_py_state *state = lora_py_state_of(type);
    lora_py_optimizer *self = lora_py_new(type);
    if (!self) return NULL;
    self->lr = lr;
    self->kind = kind;
    self->options = *options;
    PyObject *folder = NULL;
    lora_param *params = add_parameters(self, state, given->params);
    int status = params ? mark_listed(self, given->no_decay, "no_decay", without_decay, params) : -1;
    if (status == 0) status = mark_listed(self, given->adamw, "adamw", no_matrix, params);
    if (status == 0) status = set_ratios(self, given->lr_ratios, params);
    if (status == 0) status = take_folder(given->paged_folder, &folder, &self->options);
    if (status == 0) status = create_optimizer(self, state, params);
    self->options.paged_folder = NULL;
    Py_XDECREF(folder);
    PyMem_Free(params);
    if (status < 0) Py_CLEAR(self);
    return lora_py_publish(self);
}

/* --- step --------------------------------------------------------------------------------------------------------- */

/* None: the value stays as it is. */
static int optional_number(PyObject *o, const char *name, int positive, double *value) {
    if (o == Py_None) return 0;
    double given = PyFloat_AsDouble(o);
    if (given == -1.0 && PyErr_Occurred()) return -1;
    if (!isfinite(given) || given < 0.0 || (positive && given == 0.0)) {
        char expected[64];
        PyOS_snprintf(expected, sizeof expected, "%s: expected a finite number %s 0", name, positive ? ">" : ">=");
        return lora_py_refuse(PyExc_ValueError, expected, o);
    }
    *value = given;
    return 0;
}

PyDoc_STRVAR(step_doc, "step($self, /, *, lr=None, grad_scale=1.0, max_grad_norm=None, skip_grad_norm=None)\n--\n\n"
                       "Change every parameter by one step.\n\n"
                       "Parameters\n----------\n"
                       "lr : float, optional\n    Learning rate of this step; by default the attribute lr.\n"
                       "grad_scale : float\n    The gradients are multiplied by this first.\n"
                       "max_grad_norm : float, optional\n    Scale the gradients down to this global norm.\n"
                       "skip_grad_norm : float, optional\n    Above this global norm nothing changes.\n\n"
                       "Returns\n-------\nfloat\n    The global norm of the scaled gradients before clipping.\n\n"
                       "Raises\n------\nValueError\n    A gradient is NaN or infinite; parameters are unchanged.\n"
                       "RuntimeError\n    Another thread is using this optimizer.");

static PyObject *optimizer_step(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"lr", "grad_scale", "max_grad_norm", "skip_grad_norm", NULL};
    PyObject *lr = Py_None, *max_norm = Py_None, *skip_norm = Py_None;
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    lora_step_options options = {.lr = self->lr, .grad_scale = 1.0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OdOO:step", names, &lr, &options.grad_scale, &max_norm, &skip_norm)) return NULL;
    if (optional_number(lr, "lr", 0, &options.lr) < 0 || optional_number(max_norm, "max_grad_norm", 1, &options.max_grad_norm) < 0 ||
        optional_number(skip_norm, "skip_grad_norm", 1, &options.skip_grad_norm) < 0)
        return NULL;
    if (!isfinite(options.grad_scale)) {
        PyErr_SetString(PyExc_ValueError, "grad_scale: expected a finite number, got NaN or infinity");
        return NULL;
    }
    if (lora_py_enter(&self->base) < 0) return NULL;
    double norm = 0.0;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_optimizer_step(self->optimizer, &options, &norm, &err));
    lora_py_leave(&self->base);
    if (status != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    return PyFloat_FromDouble(norm);
}

static PyObject *optimizer_zero_grad(PyObject *o, PyObject *unused) {
    (void)unused;
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    if (lora_py_enter(&self->base) < 0) return NULL;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_optimizer_zero_grad(self->optimizer, &err));
    lora_py_leave(&self->base);
    if (status != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

PyObject *lora_py_optimizer_get_lr(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(((lora_py_optimizer *)o)->lr);
}
PyObject *lora_py_optimizer_get_decay(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(((lora_py_optimizer *)o)->options.weight_decay);
}
PyObject *lora_py_optimizer_get_step(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(lora_optimizer_steps(((lora_py_optimizer *)o)->optimizer));
}
PyObject *lora_py_optimizer_get_kinds(PyObject *o, void *unused) {
    (void)unused;
    return lora_py_optimizer_moment_names((lora_py_optimizer *)o);
}

int lora_py_optimizer_set_lr(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    double lr = 0.0;
    if (value && value != Py_None) {
        if (optional_number(value, "lr", 0, &lr) < 0) return -1;
        ((lora_py_optimizer *)o)->lr = lr;
        return 0;
    }
    PyErr_SetString(PyExc_TypeError, "lr: expected a finite number >= 0, got none");
    return -1;
}

PyObject *lora_py_optimizer_repr(PyObject *o) {
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    PyObject *lr = PyFloat_FromDouble(self->lr), *decay = PyFloat_FromDouble(self->options.weight_decay), *text = NULL;
    if (lr && decay)
        text = PyUnicode_FromFormat("%s(%zd parameters, lr=%R, weight_decay=%R, step_count=%lld)", strrchr(Py_TYPE(o)->tp_name, '.') + 1,
                                    self->n, lr, decay, (long long)lora_optimizer_steps(self->optimizer));
    Py_XDECREF(lr);
    Py_XDECREF(decay);
    return text;
}

PyDoc_STRVAR(zero_grad_doc, "zero_grad($self, /)\n--\n\nSet the gradients of all parameters to zero.");

LORA_PY_KEEP(optimizer_step)

PyMethodDef lora_py_optimizer_methods[] = {
    {"step", LORA_PY_KEYWORDS optimizer_step_kept, METH_VARARGS | METH_KEYWORDS, step_doc},
    {"zero_grad", optimizer_zero_grad, METH_NOARGS, zero_grad_doc},
    {"state_dict", lora_py_optimizer_state_dict, METH_NOARGS, lora_py_state_dict_doc},
    {"load_state_dict", lora_py_optimizer_load_state_dict, METH_O, lora_py_load_state_dict_doc},
    {"moment", lora_py_optimizer_moment, METH_VARARGS, lora_py_moment_doc},
    {"moment_shape", lora_py_optimizer_moment_shape, METH_VARARGS, lora_py_moment_shape_doc},
    {"set_moment", lora_py_optimizer_set_moment, METH_VARARGS, lora_py_set_moment_doc},
    {"set_step_count", lora_py_optimizer_set_step_count, METH_O, lora_py_set_step_count_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};
