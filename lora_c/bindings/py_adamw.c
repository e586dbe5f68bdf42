/* AdamW over a list of parameters, with clipping by the global norm. */
#include "lora_c/bindings/py_array.h"

#include <math.h>
#include <string.h>

typedef struct adamw_slot {
    lora_py_parameter *p;
    float *m, *v;
    int decay;
} adamw_slot;

typedef struct adamw {
    lora_py_object base;
    adamw_slot *slots;
    Py_ssize_t n;
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step;
} adamw;

static void adamw_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    adamw *self = (adamw *)o;
    for (Py_ssize_t i = 0; i < self->n; i++) {
        lora_ctx_free(self->base.ctx, self->slots[i].m);
        lora_ctx_free(self->base.ctx, self->slots[i].v);
        Py_XDECREF(self->slots[i].p);
    }
    PyMem_Free(self->slots);
    lora_py_delete(o);
}

/* --- construction ------------------------------------------------------------------------------------------------- */

static int check_hyper(double lr, double beta1, double beta2, double eps, double weight_decay) {
    if (!(lr >= 0.0 && isfinite(lr))) PyErr_SetString(PyExc_ValueError, "lr: expected a finite number >= 0, got another");
    else if (!(beta1 >= 0.0 && beta1 < 1.0 && beta2 >= 0.0 && beta2 < 1.0))
        PyErr_SetString(PyExc_ValueError, "betas: expected two numbers with 0 <= beta < 1, got others");
    else if (!(eps >= 0.0 && isfinite(eps))) PyErr_SetString(PyExc_ValueError, "eps: expected a finite number >= 0, got another");
    else if (!(weight_decay >= 0.0 && isfinite(weight_decay)))
        PyErr_SetString(PyExc_ValueError, "weight_decay: expected a finite number >= 0, got another");
    return PyErr_Occurred() ? -1 : 0;
}

enum { MOST_ITEMS = 1 << 20 }; /* an iterable may have no end, and an array of a repeated element rows without number */

static PyObject *items_of(PyObject *iterator, const char *expected) {
    PyObject *list = PyList_New(0), *item = NULL;
    while (list && (item = PyIter_Next(iterator))) {
        if (PyList_GET_SIZE(list) == MOST_ITEMS) PyErr_Format(PyExc_ValueError, "%s, got more than %d", expected, (int)MOST_ITEMS);
        else (void)PyList_Append(list, item);
        Py_DECREF(item);
        if (PyErr_Occurred()) break;
    }
    PyObject *items = list && !PyErr_Occurred() ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return items;
}

/* What a list or another iterable holds, as a tuple: a list may change while memory for its members is cleared. */
static PyObject *fixed_items(PyObject *o, const char *expected) {
    PyObject *iterator = PyObject_GetIter(o);
    if (!iterator) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) PyErr_Format(PyExc_TypeError, "%s, got %s", expected, Py_TYPE(o)->tp_name);
        return NULL;
    }
    PyObject *items = items_of(iterator, expected);
    Py_DECREF(iterator);
    return items;
}

static Py_ssize_t find_slot(const adamw *self, Py_ssize_t n, PyObject *p) {
    for (Py_ssize_t i = 0; i < n; i++)
        if ((PyObject *)self->slots[i].p == p) return i;
    return -1;
}

static int add_parameter(adamw *self, lora_py_state *state, Py_ssize_t i, PyObject *o) {
    if (!Py_IS_TYPE(o, state->parameter_type)) {
        PyErr_Format(PyExc_TypeError, "params: expected Parameter objects, got %s at index %zd", Py_TYPE(o)->tp_name, i);
        return -1;
    }
    lora_py_parameter *p = (lora_py_parameter *)o;
    if (!p->grad) {
        PyErr_Format(PyExc_ValueError, "params: expected parameters with requires_grad=True, got a frozen one at index %zd", i);
        return -1;
    }
    if (find_slot(self, i, o) >= 0) {
        PyErr_Format(PyExc_ValueError, "params: expected each parameter once, got the one at index %zd again", i);
        return -1;
    }
    adamw_slot *slot = &self->slots[i];
    slot->p = (lora_py_parameter *)Py_NewRef(o);
    slot->decay = 1;
    size_t bytes = (size_t)p->size * sizeof(float);
    if (!(slot->m = lora_py_alloc(self->base.ctx, LORA_MEM_OPTIM, bytes, "m"))) return -1;
    return (slot->v = lora_py_alloc(self->base.ctx, LORA_MEM_OPTIM, bytes, "v")) ? 0 : -1;
}

static int add_parameters(adamw *self, lora_py_state *state, PyObject *params) {
    PyObject *items = fixed_items(params, "params: expected a list of Parameter objects");
    if (!items) return -1;
    Py_ssize_t n = PyTuple_GET_SIZE(items);
    int status = -1;
    if (n == 0) PyErr_SetString(PyExc_ValueError, "params: expected at least one Parameter, got none");
    else if (!(self->slots = PyMem_Calloc((size_t)n, sizeof *self->slots))) PyErr_NoMemory();
    else {
        self->n = n;
        status = 0;
        for (Py_ssize_t i = 0; status == 0 && i < n; i++)
            status = add_parameter(self, state, i, PyTuple_GET_ITEM(items, i));
    }
    Py_DECREF(items);
    return status;
}

static int mark_no_decay(adamw *self, PyObject *no_decay) {
    if (!no_decay) return 0;
    PyObject *items = fixed_items(no_decay, "no_decay: expected a list of Parameter objects");
    if (!items) return -1;
    int status = 0;
    for (Py_ssize_t i = 0; status == 0 && i < PyTuple_GET_SIZE(items); i++) {
        Py_ssize_t at = find_slot(self, self->n, PyTuple_GET_ITEM(items, i));
        if (at >= 0) self->slots[at].decay = 0;
        else {
            PyErr_Format(PyExc_ValueError, "no_decay: expected members of params, got another object at index %zd", i);
            status = -1;
        }
    }
    Py_DECREF(items);
    return status;
}

static PyObject *make_adamw(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "lr", "betas", "eps", "weight_decay", "no_decay", NULL};
    PyObject *params, *no_decay = NULL;
    double lr = 1e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d$(dd)ddO:AdamW", names, &params, &lr, &beta1, &beta2, &eps, &weight_decay,
                                     &no_decay)) return NULL;
    if (check_hyper(lr, beta1, beta2, eps, weight_decay) < 0) return NULL;
    adamw *self = lora_py_new(type);
    if (!self) return NULL;
    self->lr = lr;
    self->beta1 = beta1;
    self->beta2 = beta2;
    self->eps = eps;
    self->weight_decay = weight_decay;
    if (add_parameters(self, lora_py_state_of(type), params) < 0 || mark_no_decay(self, no_decay) < 0) Py_CLEAR(self);
    return lora_py_publish(self);
}

static PyObject *adamw_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    return lora_py_new_with_kept(make_adamw, type, args, kwargs);
}

/* --- step --------------------------------------------------------------------------------------------------------- */

typedef struct step_options {
    double lr, grad_scale, max_grad_norm; /* max_grad_norm 0: no clipping */
} step_options;

/* Over all parameters in index order; parameters stay as they are when the norm is not finite. */
static lora_status run_step(adamw *self, const step_options *o, double *norm, lora_error *err) {
    lora_ctx *ctx = self->base.ctx;
    double total = 0.0;
    for (Py_ssize_t i = 0; i < self->n; i++) {
        double sum;
        LORA_TRY(lora_sum_of_squares(ctx, self->slots[i].p->size, self->slots[i].p->grad, &sum, err));
        total += sum;
    }
    *norm = sqrt(total) * fabs(o->grad_scale);
    LORA_CHECK(isfinite(*norm), err, LORA_EINVAL,
               "gradients: expected finite numbers, got a norm of %f; parameters are unchanged, try a lower learning rate", *norm);
    double clip = o->max_grad_norm > 0.0 && *norm > o->max_grad_norm ? o->max_grad_norm / (*norm + 1e-6) : 1.0;
    lora_adamw_hyper hyper = {o->lr, self->beta1, self->beta2, self->eps, 0.0, self->step + 1, o->grad_scale * clip};
    for (Py_ssize_t i = 0; i < self->n; i++) {
        adamw_slot *s = &self->slots[i];
        hyper.weight_decay = s->decay ? self->weight_decay : 0.0;
        LORA_TRY(lora_adamw_step(ctx, s->p->size, s->p->data, s->p->grad, s->m, s->v, &hyper, err));
    }
    self->step++;
    return LORA_OK;
}

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

PyDoc_STRVAR(step_doc,
"step($self, /, *, lr=None, grad_scale=1.0, max_grad_norm=None)\n--\n\n"
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
    step_options options = {self->lr, 1.0, 0.0};
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
    LORA_PY_CALL(self->base.ctx, status, run_step(self, &options, &norm, &err));
    lora_py_leave(&self->base);
    if (status != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    return PyFloat_FromDouble(norm);
}

static PyObject *adamw_zero_grad(PyObject *o, PyObject *unused) {
    (void)unused;
    adamw *self = (adamw *)o;
    if (lora_py_enter(&self->base) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    lora_ctx_lock(self->base.ctx);
    for (Py_ssize_t i = 0; i < self->n; i++)
        memset(self->slots[i].p->grad, 0, (size_t)self->slots[i].p->size * sizeof(float));
    lora_ctx_unlock(self->base.ctx);
    Py_END_ALLOW_THREADS
    lora_py_leave(&self->base);
    Py_RETURN_NONE;
}

/* --- state -------------------------------------------------------------------------------------------------------- */

static float *moment(const adamw_slot *slot, int second) { return second ? slot->v : slot->m; }

static PyObject *copy_moments(const adamw *self, int second) {
    PyObject *list = PyList_New(0); /* grows: others may see it */
    for (Py_ssize_t i = 0; list && i < self->n; i++) {
        const lora_py_parameter *p = self->slots[i].p;
        int64_t shape[LORA_PY_MAX_DIMS];
        for (int d = 0; d < p->ndim; d++) shape[d] = p->shape[d];
        void *data;
        PyObject *array = lora_py_new_array(LORA_PY_F32, p->ndim, shape, 0, &data);
        if (array) memcpy(data, moment(&self->slots[i], second), (size_t)p->size * sizeof(float));
        if (!array || PyList_Append(list, array) < 0) Py_CLEAR(list);
        Py_XDECREF(array);
    }
    return list;
}

PyDoc_STRVAR(state_dict_doc,
"state_dict($self, /)\n--\n\n"
"Return {\'step\': int, \'m\': [array, ...], \'v\': [array, ...]}: copies, in the order of params, in the parameters\' shapes.");

static PyObject *adamw_state_dict(PyObject *o, PyObject *unused) {
    (void)unused;
    adamw *self = (adamw *)o;
    if (lora_py_enter(&self->base) < 0) return NULL;
    PyObject *m = copy_moments(self, 0), *v = m ? copy_moments(self, 1) : NULL;
    int64_t step = self->step;
    lora_py_leave(&self->base);
    PyObject *state = v ? Py_BuildValue("{s:L,s:O,s:O}", "step", (long long)step, "m", m, "v", v) : NULL;
    Py_XDECREF(m);
    Py_XDECREF(v);
    return state;
}

/* One list of moments: every array of it, checked and held until all of the state is known to fit. */
static int take_moments(const adamw *self, PyObject *list, const char *key, lora_py_array *held) {
    PyObject *items = fixed_items(list, "state: expected lists of arrays under m and v");
    if (!items) return -1;
    Py_ssize_t n = PyTuple_GET_SIZE(items);
    int status = n == self->n ? 0 : -1;
    if (status < 0) PyErr_Format(PyExc_ValueError, "state: expected %zd arrays under %s, got %zd", self->n, key, n);
    for (Py_ssize_t i = 0; status == 0 && i < n; i++) {
        const lora_py_parameter *p = self->slots[i].p;
        int64_t shape[LORA_PY_MAX_DIMS];
        for (int d = 0; d < p->ndim; d++) shape[d] = p->shape[d];
        char name[64];
        PyOS_snprintf(name, sizeof name, "state[%s][%lld]", key, (long long)i);
        status = lora_py_get(PyTuple_GET_ITEM(items, i), name, LORA_PY_F32, 0, &held[i]);
        if (status == 0) status = lora_py_expect(&held[i], p->ndim, shape);
        held[i].name = key;
    }
    Py_DECREF(items);
    return status;
}

static int take_step(PyObject *given, int64_t *step) {
    *step = PyLong_AsLongLong(given);
    if (*step >= 0) return 0;
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_OverflowError)) return -1;
    return lora_py_refuse(PyExc_ValueError, "state: expected step >= 0", given);
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

PyDoc_STRVAR(load_state_dict_doc,
"load_state_dict($self, state, /)\n--\n\n"
"Restore what state_dict() gave; nothing changes unless all of it fits.\n\n"
"Raises\n------\nValueError\n    A key is missing or unknown, or an array has another shape.\nTypeError\n    An array is not float32.");

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
    if (status == 0 && lora_py_enter(&self->base) < 0) status = -1;
    if (status == 0) {
        for (Py_ssize_t i = 0; i < 2 * self->n; i++)
            memcpy(moment(&self->slots[i % self->n], i >= self->n), held[i].data, (size_t)held[i].n * sizeof(float));
        self->step = step;
        lora_py_leave(&self->base);
    }
    for (Py_ssize_t i = 0; held && i < 2 * self->n; i++) lora_py_release(&held[i]);
    PyMem_Free(held);
    for (int i = 0; i < 3; i++) Py_XDECREF(items[i]);
    if (status < 0) return NULL;
    Py_RETURN_NONE;
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

static PyObject *get_lr(PyObject *o, void *unused) { (void)unused; return PyFloat_FromDouble(((adamw *)o)->lr); }
static PyObject *get_eps(PyObject *o, void *unused) { (void)unused; return PyFloat_FromDouble(((adamw *)o)->eps); }
static PyObject *get_decay(PyObject *o, void *unused) { (void)unused; return PyFloat_FromDouble(((adamw *)o)->weight_decay); }
static PyObject *get_step(PyObject *o, void *unused) { (void)unused; return PyLong_FromLongLong(((adamw *)o)->step); }

static PyObject *get_betas(PyObject *o, void *unused) {
    (void)unused;
    return Py_BuildValue("(dd)", ((adamw *)o)->beta1, ((adamw *)o)->beta2);
}

static int set_lr(PyObject *o, PyObject *value, void *unused) {
    (void)unused;
    if (value && value != Py_None) return optional_number(value, "lr", 0, &((adamw *)o)->lr);
    PyErr_SetString(PyExc_TypeError, "lr: expected a finite number >= 0, got none");
    return -1;
}

static PyObject *adamw_repr(PyObject *o) {
    adamw *self = (adamw *)o;
    PyObject *lr = PyFloat_FromDouble(self->lr), *decay = PyFloat_FromDouble(self->weight_decay), *text = NULL;
    if (lr && decay)
        text = PyUnicode_FromFormat("AdamW(%zd parameters, lr=%R, weight_decay=%R, step_count=%lld)", self->n, lr, decay,
                                    (long long)self->step);
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

PyDoc_STRVAR(adamw_doc,
"AdamW(params, lr=0.0001, *, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, no_decay=())\n--\n\n"
"AdamW with decoupled weight decay.\n\n"
"Parameters\n----------\n"
"params : sequence of Parameter\n    Each once, all with requires_grad.\n"
"lr : float\n    Learning rate.\n"
"betas : tuple of two float\n    Decay rates of the moments.\n"
"eps : float\n    Added to the root of the second moment.\n"
"weight_decay : float\n    The parameter is multiplied by 1 - lr * weight_decay before the update.\n"
"no_decay : sequence of Parameter\n    Members of params without weight decay.\n\n"
"Raises\n------\nValueError, TypeError\n    A parameter is frozen, given twice, or not a Parameter; a number is out of range.\n\n"
"Notes\n-----\nThe moments take 8 bytes per element. One thread at a time.\n\n"
"Source\n------\nAdamW, arXiv:1711.05101, algorithm 2.");

static PyType_Slot adamw_slots[] = {
    {Py_tp_new, adamw_new},         {Py_tp_dealloc, adamw_dealloc}, {Py_tp_traverse, lora_py_traverse},
    {Py_tp_repr, adamw_repr},       {Py_tp_methods, adamw_methods}, {Py_tp_getset, adamw_getset},
    {Py_tp_doc, (void *)adamw_doc}, {0, NULL},
};

PyType_Spec lora_py_adamw_spec = {
    .name = "lora_c._core.AdamW",
    .basicsize = sizeof(adamw),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = adamw_slots,
};
