/* AdamW over a list of Parameters: its arguments, and its state as arrays. What it computes stands in lora_c/optim. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devices.h"

#include <math.h>
#include <string.h>

typedef struct adamw {
    lora_py_object base;
    lora_py_parameter **parameters;
    Py_ssize_t n;
    lora_optimizer *optimizer;
    lora_optimizer_options options;
    double lr;
} adamw;

static void adamw_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    adamw *self = (adamw *)o;
    lora_optimizer_destroy(self->optimizer);
    for (Py_ssize_t i = 0; i < self->n; i++) Py_XDECREF(self->parameters[i]);
    PyMem_Free(self->parameters);
    lora_py_delete(o);
}

/* --- construction ------------------------------------------------------------------------------------------------- */

static Py_ssize_t find_parameter(const adamw *self, Py_ssize_t n, PyObject *p) {
    for (Py_ssize_t i = 0; i < n; i++)
        if ((PyObject *)self->parameters[i] == p) return i;
    return -1;
}

static int add_parameter(adamw *self, lora_py_state *state, Py_ssize_t i, PyObject *o, lora_param *param) {
    if (!Py_IS_TYPE(o, state->parameter_type)) {
        PyErr_Format(PyExc_TypeError, "params: expected Parameter objects, got %s at index %zd", Py_TYPE(o)->tp_name, i);
        return -1;
    }
    lora_py_parameter *p = (lora_py_parameter *)o;
    if (!p->grad) {
        PyErr_Format(PyExc_ValueError, "params: expected parameters with requires_grad=True, got a frozen one at index %zd", i);
        return -1;
    }
    if (find_parameter(self, i, o) >= 0) {
        PyErr_Format(PyExc_ValueError, "params: expected each parameter once, got the one at index %zd again", i);
        return -1;
    }
    if (i == 0)
        lora_py_put_on(self, lora_py_device_of(p));
    else if (lora_py_same_device(self->base.ctx, &p->base, "params") < 0)
        return -1;
    self->parameters[i] = (lora_py_parameter *)Py_NewRef(o);
    *param = (lora_param){.data = p->data, .grad = p->grad, .n = p->size, .decay = true};
    return 0;
}

/* The list that the library is given, free it with PyMem_Free; NULL with an exception. */
static lora_param *add_parameters(adamw *self, lora_py_state *state, PyObject *given) {
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

static int mark_no_decay(const adamw *self, PyObject *no_decay, lora_param *params) {
    if (!no_decay) return 0;
    PyObject *items = lora_py_items(no_decay, "no_decay: expected a list of Parameter objects");
    if (!items) return -1;
    int status = 0;
    for (Py_ssize_t i = 0; status == 0 && i < PyTuple_GET_SIZE(items); i++) {
        Py_ssize_t at = find_parameter(self, self->n, PyTuple_GET_ITEM(items, i));
        if (at >= 0)
            params[at].decay = false;
        else {
            PyErr_Format(PyExc_ValueError, "no_decay: expected members of params, got another object at index %zd", i);
            status = -1;
        }
    }
    Py_DECREF(items);
    return status;
}

static int create_optimizer(adamw *self, lora_py_state *state, const lora_param *params) {
    lora_status status;
    lora_error err = {0};
    Py_BEGIN_ALLOW_THREADS /* clearing gigabytes takes time */
        status = lora_optimizer_create(self->base.ctx, LORA_ADAMW, params, self->n, &self->options, &self->optimizer, &err);
    Py_END_ALLOW_THREADS if (status == LORA_OK) return 0;
    lora_py_raise(state, &err);
    return -1;
}

static PyObject *make_adamw(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "lr", "betas", "eps", "weight_decay", "no_decay", NULL};
    PyObject *given, *no_decay = NULL;
    double lr = 1e-4;
    lora_optimizer_options o = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d$(dd)ddO:AdamW", names, &given, &lr, &o.beta1, &o.beta2, &o.eps, &o.weight_decay,
                                     &no_decay))
        return NULL;
    if (!(lr >= 0.0 && isfinite(lr))) {
        PyErr_SetString(PyExc_ValueError, "lr: expected a finite number >= 0, got another");
        return NULL;
    }
    lora_py_state *state = lora_py_state_of(type);
    adamw *self = lora_py_new(type);
    if (!self) return NULL;
    self->lr = lr;
    self->options = o;
    lora_param *params = add_parameters(self, state, given);
    int status = params ? mark_no_decay(self, no_decay, params) : -1;
    if (status == 0) status = create_optimizer(self, state, params);
    PyMem_Free(params);
    if (status < 0) Py_CLEAR(self);
    return lora_py_publish(self);
}

static PyObject *adamw_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    return lora_py_new_with_kept(make_adamw, type, args, kwargs);
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

PyDoc_STRVAR(step_doc, "step($self, /, *, lr=None, grad_scale=1.0, max_grad_norm=None)\n--\n\n"
                       "Change every parameter by one step of AdamW.\n\n"
                       "Parameters\n----------\n"
                       "lr : float, optional\n    Learning rate of this step; by default the attribute lr.\n"
                       "grad_scale : float\n    The gradients are multiplied by this first.\n"
                       "max_grad_norm : float, optional\n    Scale the gradients down to this global norm.\n\n"
                       "Returns\n-------\nfloat\n    The global norm of the scaled gradients before clipping.\n\n"
                       "Raises\n------\nValueError\n    A gradient is NaN or infinite; parameters are unchanged.\n"
                       "RuntimeError\n    Another thread is using this optimizer.\n\n"
                       "Source\n------\nAdamW, arXiv:1711.05101, algorithm 2.");

static PyObject *adamw_step(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"lr", "grad_scale", "max_grad_norm", NULL};
    PyObject *lr = Py_None, *max_norm = Py_None;
    adamw *self = (adamw *)o;
    lora_step_options options = {.lr = self->lr, .grad_scale = 1.0, .max_grad_norm = 0.0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OdO:step", names, &lr, &options.grad_scale, &max_norm)) return NULL;
    if (optional_number(lr, "lr", 0, &options.lr) < 0 || optional_number(max_norm, "max_grad_norm", 1, &options.max_grad_norm) < 0)
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

static PyObject *adamw_zero_grad(PyObject *o, PyObject *unused) {
    (void)unused;
    adamw *self = (adamw *)o;
    if (lora_py_enter(&self->base) < 0) return NULL;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_optimizer_zero_grad(self->optimizer, &err));
    lora_py_leave(&self->base);
    if (status != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}

/* --- state -------------------------------------------------------------------------------------------------------- */

static PyObject *copy_of_moment(const adamw *self, Py_ssize_t i, lora_moment which) {
    const lora_py_parameter *p = self->parameters[i];
    int64_t shape[LORA_PY_MAX_DIMS];
    for (int d = 0; d < p->ndim; d++) shape[d] = p->shape[d];
    void *data;
    lora_error err = {0};
    PyObject *array = lora_py_new_array(LORA_PY_F32, p->ndim, shape, 0, &data);
    lora_status status = LORA_OK;
    if (array) LORA_PY_CALL(self->base.ctx, status, lora_optimizer_get_moment(self->optimizer, i, which, data, &err));
    if (status == LORA_OK) return array;
    Py_DECREF(array);
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
}

static PyObject *copy_moments(const adamw *self, lora_moment which) {
    PyObject *list = PyList_New(0); /* grows: others may see it */
    for (Py_ssize_t i = 0; list && i < self->n; i++) {
        PyObject *array = copy_of_moment(self, i, which);
        if (!array || PyList_Append(list, array) < 0) Py_CLEAR(list);
        Py_XDECREF(array);
    }
    return list;
}

PyDoc_STRVAR(
    state_dict_doc,
    "state_dict($self, /)\n--\n\n"
    "Return {\'step\': int, \'m\': [array, ...], \'v\': [array, ...]}: copies, in the order of params, in the parameters\' shapes.");

static PyObject *adamw_state_dict(PyObject *o, PyObject *unused) {
    (void)unused;
    adamw *self = (adamw *)o;
    if (lora_py_enter(&self->base) < 0) return NULL;
    PyObject *m = copy_moments(self, LORA_MOMENT_FIRST), *v = m ? copy_moments(self, LORA_MOMENT_SECOND) : NULL;
    int64_t step = lora_optimizer_steps(self->optimizer);
    lora_py_leave(&self->base);
    PyObject *state = v ? Py_BuildValue("{s:L,s:O,s:O}", "step", (long long)step, "m", m, "v", v) : NULL;
    Py_XDECREF(m);
    Py_XDECREF(v);
    return state;
}

/* A step from other values would leave NaN in the parameters without a word. */
static int check_moment(const lora_py_array *a, const char *key, bool is_second) {
    const float *x = a->data;
    for (int64_t i = 0; i < a->n; i++) {
        if (isfinite(x[i]) && (!is_second || x[i] >= 0)) continue;
        char value[32];
        PyOS_snprintf(value, sizeof value, "%g", (double)x[i]);
        PyErr_Format(PyExc_ValueError, "state: expected finite %s under %s, got %s", is_second ? "values >= 0" : "values", key, value);
        return -1;
    }
    return 0;
}

/* One list of moments: every array of it, checked and held until all of the state is known to fit. */
static int take_moments(const adamw *self, PyObject *list, const char *key, lora_py_array *held) {
    PyObject *items = lora_py_items(list, "state: expected lists of arrays under m and v");
    if (!items) return -1;
    Py_ssize_t n = PyTuple_GET_SIZE(items);
    int status = n == self->n ? 0 : -1;
    if (status < 0) PyErr_Format(PyExc_ValueError, "state: expected %zd arrays under %s, got %zd", self->n, key, n);
    for (Py_ssize_t i = 0; status == 0 && i < n; i++) {
        const lora_py_parameter *p = self->parameters[i];
        int64_t shape[LORA_PY_MAX_DIMS];
        for (int d = 0; d < p->ndim; d++) shape[d] = p->shape[d];
        char name[64];
        PyOS_snprintf(name, sizeof name, "state[%s][%lld]", key, (long long)i);
        status = lora_py_get(PyTuple_GET_ITEM(items, i), name, LORA_PY_F32, 0, &held[i]);
        if (status == 0) status = lora_py_expect(&held[i], p->ndim, shape);
        if (status == 0) status = check_moment(&held[i], key, strcmp(key, "v") == 0);
        held[i].name = key;
    }
    Py_DECREF(items);
    return status;
}

static int take_step(PyObject *given, int64_t *step) {
    *step = PyLong_AsLongLong(given);
    if (*step >= 0 && *step < INT64_MAX / 2) return 0; /* steps are counted on */
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_OverflowError)) return -1;
    return lora_py_refuse(PyExc_ValueError, "state: expected 0 <= step < 2**62", given);
}

static const char *const STATE_KEYS[] = {"step", "m", "v"};

/* A value with a reference of our own; NULL without an exception where there is none. */
static PyObject *find_item(PyObject *dict, const char *key) {
    PyObject *name = PyUnicode_FromString(key), *value = name ? Py_XNewRef(PyDict_GetItemWithError(dict, name)) : NULL;
    Py_XDECREF(name);
    return value;
}

/* The values of the three keys, each with a reference of our own. */
static int take_items(PyObject *given, PyObject *items[3]) {
    PyObject *state = PyDict_New();
    int status = state ? PyDict_Update(state, given) : -1;
    for (int i = 0; status == 0 && i < 3; i++) {
        if ((items[i] = find_item(state, STATE_KEYS[i]))) continue;
        if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "state: expected keys step, m and v, got none for %s", STATE_KEYS[i]);
        status = -1;
    }
    if (status == 0 && PyDict_Size(state) != 3) {
        PyErr_Format(PyExc_ValueError, "state: expected keys step, m and v, got %zd keys", PyDict_Size(state));
        status = -1;
    }
    Py_XDECREF(state);
    return status;
}

PyDoc_STRVAR(
    load_state_dict_doc,
    "load_state_dict($self, state, /)\n--\n\n"
    "Restore what state_dict() gave; nothing changes unless all of it fits.\n\n"
    "Raises\n------\nValueError\n    A key is missing or unknown, or an array has another shape.\nTypeError\n    An array is not float32.");

/* held: the arrays of m, then those of v. All of it is known to fit. */
static int set_state(adamw *self, int64_t step, const lora_py_array *held) {
    if (lora_py_enter(&self->base) < 0) return -1;
    lora_error err = {0};
    lora_status status = lora_optimizer_set_steps(self->optimizer, step, &err);
    for (Py_ssize_t i = 0; status == LORA_OK && i < 2 * self->n; i++) {
        lora_moment which = i < self->n ? LORA_MOMENT_FIRST : LORA_MOMENT_SECOND;
        LORA_PY_CALL(self->base.ctx, status, lora_optimizer_set_moment(self->optimizer, i % self->n, which, held[i].data, &err));
    }
    lora_py_leave(&self->base);
    if (status != LORA_OK) lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
    return status == LORA_OK ? 0 : -1;
}

static PyObject *adamw_load_state_dict(PyObject *o, PyObject *given) {
    adamw *self = (adamw *)o;
    if (!PyDict_Check(given) && !PyObject_HasAttrString(given, "keys")) { /* arrays and texts are mappings to PyMapping_Check */
        PyErr_Format(PyExc_TypeError, "state: expected a mapping, got %s", Py_TYPE(given)->tp_name);
        return NULL;
    }
    PyObject *items[3] = {NULL, NULL, NULL};
    int64_t step;
    lora_py_array *held = PyMem_Calloc(2 * (size_t)self->n, sizeof *held);
    int status = held ? 0 : -1;
    if (!held) PyErr_NoMemory();
    if (status == 0) status = take_items(given, items);
    if (status == 0) status = take_step(items[0], &step);
    if (status == 0) status = take_moments(self, items[1], "m", held);
    if (status == 0) status = take_moments(self, items[2], "v", held + self->n);
    if (status == 0) status = set_state(self, step, held);
    for (Py_ssize_t i = 0; held && i < 2 * self->n; i++) lora_py_release(&held[i]);
    PyMem_Free(held);
    for (int i = 0; i < 3; i++) Py_XDECREF(items[i]);
    if (status < 0) return NULL;
    Py_RETURN_NONE;
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

static PyObject *get_lr(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(((adamw *)o)->lr);
}
static PyObject *get_eps(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(((adamw *)o)->options.eps);
}
static PyObject *get_decay(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(((adamw *)o)->options.weight_decay);
}
static PyObject *get_step(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(lora_optimizer_steps(((adamw *)o)->optimizer));
}

static PyObject *get_betas(PyObject *o, void *unused) {
    (void)unused;
    return Py_BuildValue("(dd)", ((adamw *)o)->options.beta1, ((adamw *)o)->options.beta2);
}

static int set_lr(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    if (value && value != Py_None) return optional_number(value, "lr", 0, &((adamw *)o)->lr);
    PyErr_SetString(PyExc_TypeError, "lr: expected a finite number >= 0, got none");
    return -1;
}

static PyObject *adamw_repr(PyObject *o) {
    adamw *self = (adamw *)o;
    PyObject *lr = PyFloat_FromDouble(self->lr), *decay = PyFloat_FromDouble(self->options.weight_decay), *text = NULL;
    if (lr && decay)
        text = PyUnicode_FromFormat("AdamW(%zd parameters, lr=%R, weight_decay=%R, step_count=%lld)", self->n, lr, decay,
                                    (long long)lora_optimizer_steps(self->optimizer));
    Py_XDECREF(lr);
    Py_XDECREF(decay);
    return text;
}

static PyGetSetDef adamw_getset[] = {
    {"lr", get_lr, set_lr, "Learning rate of the steps that give none.", NULL},
    {"betas", get_betas, NULL, "Decay rates of the two moments.", NULL},
    {"eps", get_eps, NULL, "Added to the root of the second moment.", NULL},
    {"weight_decay", get_decay, NULL, "Decoupled weight decay.", NULL},
    {"step_count", get_step, NULL, "Steps done.", NULL},
    {0},
};

PyDoc_STRVAR(zero_grad_doc, "zero_grad($self, /)\n--\n\nSet the gradients of all parameters to zero.");

LORA_PY_KEEP(adamw_step)

static PyMethodDef adamw_methods[] = {
    {"step", LORA_PY_KEYWORDS adamw_step_kept, METH_VARARGS | METH_KEYWORDS, step_doc},
    {"zero_grad", adamw_zero_grad, METH_NOARGS, zero_grad_doc},
    {"state_dict", adamw_state_dict, METH_NOARGS, state_dict_doc},
    {"load_state_dict", adamw_load_state_dict, METH_O, load_state_dict_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(
    adamw_doc,
    "AdamW(params, lr=0.0001, *, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, no_decay=())\n--\n\n"
    "AdamW with decoupled weight decay.\n\n"
    "Parameters\n----------\n"
    "params : sequence of Parameter\n    Each once, all with requires_grad, all on one device.\n"
    "lr : float\n    Learning rate.\n"
    "betas : tuple of two float\n    Decay rates of the moments.\n"
    "eps : float\n    Added to the root of the second moment.\n"
    "weight_decay : float\n    The parameter is multiplied by 1 - lr * weight_decay before the update.\n"
    "no_decay : sequence of Parameter\n    Members of params without weight decay.\n\n"
    "Raises\n------\nValueError, TypeError\n    A parameter is frozen, given twice, or not a Parameter; a number is out of range.\n\n"
    "Notes\n-----\nThe moments take 8 bytes per element. One thread at a time.\n\n"
    "Source\n------\nAdamW, arXiv:1711.05101, algorithm 2.");

static PyType_Slot adamw_slots[] = {
    {Py_tp_new, adamw_new},         {Py_tp_dealloc, adamw_dealloc}, {Py_tp_traverse, lora_py_traverse}, {Py_tp_repr, adamw_repr},
    {Py_tp_methods, adamw_methods}, {Py_tp_getset, adamw_getset},   {Py_tp_doc, (void *)adamw_doc},     {0, NULL},
};

PyType_Spec lora_py_adamw_spec = {
    .name = "lora_c._core.AdamW",
    .basicsize = sizeof(adamw),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = adamw_slots,
};
