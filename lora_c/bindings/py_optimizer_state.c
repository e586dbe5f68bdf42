/* The state of an optimizer as arrays: all of it, or that of one parameter at a time. */
#include "lora_c/bindings/py_optimizer.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* --- which moments there are --- */

typedef struct moment {
    lora_moment which;
    const char *key;
    lora_py_kind kind;
    int is_shaped;   /* like the parameter; else a vector */
    int is_positive; /* no value below 0 */
} moment;

static const moment MOMENTS[LORA_MOMENTS] = {
    {LORA_MOMENT_FIRST, "m", LORA_PY_F32, 1, 0},
    {LORA_MOMENT_SECOND, "v", LORA_PY_F32, 1, 1},
    {LORA_MOMENT_FIRST_CODES, "m_codes", LORA_PY_U8, 1, 0},
    {LORA_MOMENT_SECOND_CODES, "v_codes", LORA_PY_U8, 1, 0},
    {LORA_MOMENT_FIRST_ABSMAX, "m_absmax", LORA_PY_F32, 0, 1},
    {LORA_MOMENT_SECOND_ABSMAX, "v_absmax", LORA_PY_F32, 0, 1},
    {LORA_MOMENT_ROW, "row", LORA_PY_F32, 0, 1},
    {LORA_MOMENT_COL, "col", LORA_PY_F32, 0, 1},
};

/* Whether optimizers of this kind have a moment, of some array. */
static int has_moment(const lora_py_optimizer *self, lora_moment which) {
    static const unsigned of_kind[LORA_OPTIMIZER_KINDS] = {
        [LORA_ADAMW] = 1u << LORA_MOMENT_FIRST | 1u << LORA_MOMENT_SECOND,
        [LORA_ADAMW8BIT] = (1u << LORA_MOMENT_ROW) - 1u,
        [LORA_SGD] = 1u << LORA_MOMENT_FIRST,
        [LORA_LION] = 1u << LORA_MOMENT_FIRST,
        [LORA_ADAFACTOR] = 1u << LORA_MOMENT_FIRST | 1u << LORA_MOMENT_ROW | 1u << LORA_MOMENT_COL,
        [LORA_MUON] = 1u << LORA_MOMENT_FIRST | 1u << LORA_MOMENT_SECOND,
    };
    if (self->kind == LORA_SGD && self->options.momentum == 0.0) return 0;
    if (self->kind == LORA_ADAFACTOR && which == LORA_MOMENT_FIRST && self->options.adafactor.beta1 == 0.0) return 0;
    return (of_kind[self->kind] >> which) & 1u;
}

PyObject *lora_py_optimizer_moment_names(lora_py_optimizer *self) {
    PyObject *names = PyList_New(0);
    for (int i = 0; names && i < LORA_MOMENTS; i++) {
        if (!has_moment(self, MOMENTS[i].which)) continue;
        PyObject *name = PyUnicode_FromString(MOMENTS[i].key);
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    PyObject *tuple = names ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    return tuple;
}

/* The dimensions of a moment of a parameter in shape; their number, or -1 where the parameter has none. */
static int shape_of(const lora_py_optimizer *self, Py_ssize_t i, const moment *m, int64_t *shape) {
    const lora_py_parameter *p = self->parameters[i];
    int64_t size = lora_optimizer_moment_size(self->optimizer, i, m->which);
    if (size == 0) return -1;
    shape[0] = size;
    if (!m->is_shaped) return 1;
    for (int d = 0; d < p->ndim; d++) shape[d] = p->shape[d];
    return p->ndim;
}

/* --- out --- */

/* A new array, or None where the parameter has no such moment. */
static PyObject *copy_of_moment(const lora_py_optimizer *self, Py_ssize_t i, const moment *m) {
    int64_t shape[LORA_PY_MAX_DIMS];
    int ndim = shape_of(self, i, m, shape);
    if (ndim < 0) Py_RETURN_NONE;
    void *data;
    lora_error err = {0};
    PyObject *array = lora_py_new_array(m->kind, ndim, shape, 0, &data);
    lora_status status = LORA_OK;
    if (array) LORA_PY_CALL(self->base.ctx, status, lora_optimizer_get_moment(self->optimizer, i, m->which, data, &err));
    if (status == LORA_OK) return array;
    Py_DECREF(array);
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
}

static PyObject *copy_moments(const lora_py_optimizer *self, const moment *m) {
    PyObject *list = PyList_New(0); /* grows: others may see it */
    for (Py_ssize_t i = 0; list && i < self->n; i++) {
        PyObject *array = copy_of_moment(self, i, m);
        if (!array || PyList_Append(list, array) < 0) Py_CLEAR(list);
        Py_XDECREF(array);
    }
    return list;
}

/* Takes the reference of value. */
static int put_item(PyObject *dict, const char *key, PyObject *value) {
    int status = value ? PyDict_SetItemString(dict, key, value) : -1;
    Py_XDECREF(value);
    return status;
}

const char lora_py_state_dict_doc[] =
    "state_dict($self, /)\n--\n\n"
    "Return {\'step\': int} and under each of moment_names a list of copies: in the order of params, None where a parameter has none.";

PyObject *lora_py_optimizer_state_dict(PyObject *o, PyObject *unused) {
    (void)unused;
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    if (lora_py_enter(&self->base) < 0) return NULL;
    PyObject *state = PyDict_New();
    int status = state ? put_item(state, "step", PyLong_FromLongLong(lora_optimizer_steps(self->optimizer))) : -1;
    for (int i = 0; status == 0 && i < LORA_MOMENTS; i++)
        if (has_moment(self, MOMENTS[i].which)) status = put_item(state, MOMENTS[i].key, copy_moments(self, &MOMENTS[i]));
    lora_py_leave(&self->base);
    if (status < 0) Py_CLEAR(state);
    return state;
}

static int take_index(const lora_py_optimizer *self, PyObject *given, Py_ssize_t *index) {
    *index = PyNumber_AsSsize_t(given, PyExc_IndexError);
    if (*index == -1 && PyErr_Occurred()) return -1;
    if (*index >= 0 && *index < self->n) return 0;
    char expected[64];
    PyOS_snprintf(expected, sizeof expected, "index: expected 0 to %zd", self->n - 1);
    return lora_py_refuse(PyExc_IndexError, expected, given);
}

/* The index and the name of a moment; NULL with an exception. */
static const moment *take_place(const lora_py_optimizer *self, PyObject *number, const char *key, Py_ssize_t *index) {
    if (take_index(self, number, index) < 0) return NULL;
    for (int i = 0; i < LORA_MOMENTS; i++)
        if (has_moment(self, MOMENTS[i].which) && strcmp(MOMENTS[i].key, key) == 0) return &MOMENTS[i];
    PyErr_Format(PyExc_KeyError, "name: expected one of moment_names, got %s", key);
    return NULL;
}

const char lora_py_moment_doc[] = "moment($self, index, name, /)\n--\n\n"
                                  "Return a copy of a moment of params[index], None where it has none: a large state piece by piece.\n\n"
                                  "Parameters\n----------\nindex : int\n    Of one of params.\nname : str\n    One of moment_names.\n\n"
                                  "Raises\n------\nIndexError, KeyError\n    There is no such parameter, or no moment of this name.";

PyObject *lora_py_optimizer_moment(PyObject *o, PyObject *args) {
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    PyObject *number;
    const char *key;
    Py_ssize_t index;
    if (!PyArg_ParseTuple(args, "Os:moment", &number, &key)) return NULL;
    const moment *m = take_place(self, number, key, &index);
    if (!m || lora_py_enter(&self->base) < 0) return NULL;
    PyObject *array = copy_of_moment(self, index, m);
    lora_py_leave(&self->base);
    return array;
}

const char lora_py_moment_shape_doc[] = "moment_shape($self, index, name, /)\n--\n\n"
                                        "Return the shape of what moment(index, name) gives, None where that is None.\n\n"
                                        "Parameters\n----------\nindex : int\n    Of one of params.\nname : str\n    One of moment_names.";

PyObject *lora_py_optimizer_moment_shape(PyObject *o, PyObject *args) {
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    PyObject *number;
    const char *key;
    Py_ssize_t index;
    if (!PyArg_ParseTuple(args, "Os:moment_shape", &number, &key)) return NULL;
    const moment *m = take_place(self, number, key, &index);
    if (!m) return NULL;
    int64_t shape[LORA_PY_MAX_DIMS];
    int ndim = shape_of(self, index, m, shape);
    if (ndim < 0) Py_RETURN_NONE;
    PyObject *tuple = PyTuple_New(ndim);
    for (int d = 0; tuple && d < ndim; d++) {
        PyObject *extent = PyLong_FromLongLong(shape[d]);
        if (extent)
            PyTuple_SET_ITEM(tuple, d, extent);
        else
            Py_CLEAR(tuple);
    }
    return tuple;
}

/* --- in --- */

/* A step from other values would leave NaN in the parameters without a word. */
static int check_values(const lora_py_array *a, const moment *m) {
    const float *x = a->data;
    if (m->kind != LORA_PY_F32) return 0;
    for (int64_t i = 0; i < a->n; i++) {
        if (isfinite(x[i]) && (!m->is_positive || x[i] >= 0)) continue;
        char value[32];
        PyOS_snprintf(value, sizeof value, "%g", (double)x[i]);
        PyErr_Format(PyExc_ValueError, "state: expected finite %s under %s, got %s", m->is_positive ? "values >= 0" : "values", m->key,
                     value);
        return -1;
    }
    return 0;
}

/* One array, checked and held until all of the state is known to fit. */
static int take_moment(const lora_py_optimizer *self, Py_ssize_t i, const moment *m, PyObject *given, lora_py_array *held) {
    int64_t shape[LORA_PY_MAX_DIMS];
    int ndim = shape_of(self, i, m, shape);
    char name[64];
    PyOS_snprintf(name, sizeof name, "state[%s][%lld]", m->key, (long long)i);
    if (ndim < 0) {
        if (given == Py_None) return 0;
        PyErr_Format(PyExc_ValueError, "%s: expected None, which this parameter has, got an array", name);
        return -1;
    }
    int status = lora_py_get(given, name, m->kind, 0, held);
    if (status == 0) status = lora_py_expect(held, ndim, shape);
    if (status == 0) status = check_values(held, m);
    held->name = m->key;
    return status;
}

/* One list of moments. */
static int take_moments(const lora_py_optimizer *self, PyObject *list, const moment *m, lora_py_array *held) {
    PyObject *items = lora_py_items(list, "state: expected a list of arrays under each moment");
    if (!items) return -1;
    Py_ssize_t n = PyTuple_GET_SIZE(items);
    int status = n == self->n ? 0 : -1;
    if (status < 0) PyErr_Format(PyExc_ValueError, "state: expected %zd arrays under %s, got %zd", self->n, m->key, n);
    for (Py_ssize_t i = 0; status == 0 && i < n; i++) status = take_moment(self, i, m, PyTuple_GET_ITEM(items, i), &held[i]);
    Py_DECREF(items);
    return status;
}

static int take_step(PyObject *given, int64_t *step) {
    *step = PyLong_AsLongLong(given);
    if (*step >= 0 && *step < INT64_MAX / 2) return 0; /* steps are counted on */
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_OverflowError)) return -1;
    return lora_py_refuse(PyExc_ValueError, "state: expected 0 <= step < 2**62", given);
}

/* A value with a reference of our own; NULL without an exception where there is none. */
static PyObject *find_item(PyObject *dict, const char *key) {
    PyObject *name = PyUnicode_FromString(key), *value = NULL;
#if PY_VERSION_HEX >= 0x030D0000
    if (name) (void)PyDict_GetItemRef(dict, name, &value); /* leaves value NULL where it fails */
#else
    if (name) value = Py_XNewRef(PyDict_GetItemWithError(dict, name));
#endif
    Py_XDECREF(name);
    return value;
}

/* What a state is expected to have. */
static int refuse_keys(const lora_py_optimizer *self, const char *missing, Py_ssize_t n) {
    char keys[96] = "step";
    size_t used = 4;
    for (int i = 0; i < LORA_MOMENTS; i++)
        if (has_moment(self, MOMENTS[i].which)) used += (size_t)PyOS_snprintf(keys + used, sizeof keys - used, ", %s", MOMENTS[i].key);
    if (missing)
        PyErr_Format(PyExc_ValueError, "state: expected keys %s, got none for %s", keys, missing);
    else
        PyErr_Format(PyExc_ValueError, "state: expected keys %s, got %zd keys", keys, n);
    return -1;
}

/* The values of the keys, each with a reference of our own: of the moments, and of step at the end. */
static int take_items(const lora_py_optimizer *self, PyObject *given, PyObject *items[LORA_MOMENTS + 1]) {
    PyObject *state = PyDict_New();
    int status = state ? PyDict_Update(state, given) : -1;
    Py_ssize_t found = 0;
    for (int i = 0; status == 0 && i <= LORA_MOMENTS; i++) {
        int is_step = i == LORA_MOMENTS;
        if (!is_step && !has_moment(self, MOMENTS[i].which)) continue;
        const char *key = is_step ? "step" : MOMENTS[i].key;
        found++;
        if ((items[i] = find_item(state, key))) continue;
        status = PyErr_Occurred() ? -1 : refuse_keys(self, key, 0);
    }
    if (status == 0 && PyDict_Size(state) != found) status = refuse_keys(self, NULL, PyDict_Size(state));
    Py_XDECREF(state);
    return status;
}

static int check_mapping(PyObject *given) {
    if (PyDict_Check(given) || PyObject_HasAttrString(given, "keys")) return 0; /* arrays and texts are mappings to PyMapping_Check */
    PyErr_Format(PyExc_TypeError, "state: expected a mapping, got %s", Py_TYPE(given)->tp_name);
    return -1;
}

/* held: an array of each parameter for each moment; those without a name are none. All of it is known to fit. */
static int set_state(lora_py_optimizer *self, int64_t step, const lora_py_array *held) {
    if (lora_py_enter(&self->base) < 0) return -1;
    lora_error err = {0};
    lora_status status = lora_optimizer_set_steps(self->optimizer, step, &err);
    for (Py_ssize_t k = 0; status == LORA_OK && k < LORA_MOMENTS * self->n; k++) {
        if (!held[k].name) continue;
        lora_moment which = MOMENTS[k / self->n].which;
        LORA_PY_CALL(self->base.ctx, status, lora_optimizer_set_moment(self->optimizer, k % self->n, which, held[k].data, &err));
    }
    lora_py_leave(&self->base);
    if (status != LORA_OK) lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
    return status == LORA_OK ? 0 : -1;
}

const char lora_py_load_state_dict_doc[] = "load_state_dict($self, state, /)\n--\n\n"
                                           "Restore what state_dict() gave; nothing changes unless all of it fits.\n\n"
                                           "Raises\n------\nValueError\n    A key is missing or unknown, or an array has another "
                                           "shape.\nTypeError\n    An array has another type.";

PyObject *lora_py_optimizer_load_state_dict(PyObject *o, PyObject *given) {
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    if (check_mapping(given) < 0) return NULL;
    PyObject *items[LORA_MOMENTS + 1] = {NULL};
    int64_t step;
    lora_py_array *held = PyMem_Calloc(LORA_MOMENTS * (size_t)self->n, sizeof *held);
    int status = held ? 0 : -1;
    if (!held) PyErr_NoMemory();
    if (status == 0) status = take_items(self, given, items);
    if (status == 0) status = take_step(items[LORA_MOMENTS], &step);
    for (int i = 0; status == 0 && i < LORA_MOMENTS; i++)
        if (items[i]) status = take_moments(self, items[i], &MOMENTS[i], held + i * self->n);
    if (status == 0) status = set_state(self, step, held);
    for (Py_ssize_t i = 0; held && i < LORA_MOMENTS * self->n; i++)
        if (held[i].name) lora_py_release(&held[i]);
    PyMem_Free(held);
    for (int i = 0; i <= LORA_MOMENTS; i++) Py_XDECREF(items[i]);
    if (status < 0) return NULL;
    Py_RETURN_NONE;
}

const char lora_py_set_moment_doc[] =
    "set_moment($self, index, name, array, /)\n--\n\n"
    "Restore what moment(index, name) gave.\n\n"
    "Parameters\n----------\nindex : int\n    Of one of params.\nname : str\n    One of moment_names.\n"
    "array : array\n    None where the parameter has none.\n\n"
    "Raises\n------\nValueError\n    The array has another shape or a value that no moment has.\nTypeError\n    It has another type.\n"
    "IndexError, KeyError\n    There is no such parameter, or no moment of this name.";

PyObject *lora_py_optimizer_set_moment(PyObject *o, PyObject *args) {
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    PyObject *number, *given;
    const char *key;
    Py_ssize_t index;
    lora_py_array held = {0};
    lora_error err = {0};
    if (!PyArg_ParseTuple(args, "OsO:set_moment", &number, &key, &given)) return NULL;
    const moment *m = take_place(self, number, key, &index);
    if (!m) return NULL;
    int status = take_moment(self, index, m, given, &held);
    if (status == 0 && held.name && (status = lora_py_enter(&self->base)) >= 0) {
        lora_status set;
        LORA_PY_CALL(self->base.ctx, set, lora_optimizer_set_moment(self->optimizer, index, m->which, held.data, &err));
        lora_py_leave(&self->base);
        if (set != LORA_OK) lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
        status = set == LORA_OK ? 0 : -1;
    }
    lora_py_release(&held);
    if (status < 0) return NULL;
    Py_RETURN_NONE;
}

const char lora_py_set_step_count_doc[] = "set_step_count($self, step, /)\n--\n\nSay how many steps the state has had.\n\n"
                                          "Parameters\n----------\nstep : int\n    At least 0.";

PyObject *lora_py_optimizer_set_step_count(PyObject *o, PyObject *given) {
    lora_py_optimizer *self = (lora_py_optimizer *)o;
    int64_t step;
    if (take_step(given, &step) < 0 || lora_py_enter(&self->base) < 0) return NULL;
    lora_error err = {0};
    lora_status status = lora_optimizer_set_steps(self->optimizer, step, &err);
    lora_py_leave(&self->base);
    if (status != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
    Py_RETURN_NONE;
}
