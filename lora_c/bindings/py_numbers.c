/* Small arrays and lists of numbers that decide what is read and written: token ids, positions, lengths, frequencies. They
 * are copied before they are looked at, so that another thread can change only its own. */
#include "lora_c/bindings/py_array.h"

#include <string.h>

static void *room_for(int64_t n, size_t bytes) {
    void *room = PyMem_RawCalloc((size_t)n, bytes);
    if (!room) PyErr_NoMemory();
    return room;
}

/* A list as a tuple, which conversions cannot change; NULL without an exception for other types. */
static PyObject *fixed_items(PyObject *o) {
    if (PyTuple_Check(o)) return PyTuple_GetSlice(o, 0, PyTuple_GET_SIZE(o));
    return PyList_Check(o) ? PyList_AsTuple(o) : NULL;
}

/* --- token ids ---------------------------------------------------------------------------------------------------- */

static int fail_bits(const char *name, long long value, int64_t i) {
    PyErr_Format(PyExc_ValueError, "%s: expected numbers of 32 bits, got %lld at index %lld", name, value, (long long)i);
    return -1;
}

static int item_as_id(PyObject *item, const char *name, int64_t i, int32_t *out) {
    int64_t value = 0;
    int is_whole = PyIndex_Check(item) && !PyBool_Check(item);
    if (!is_whole || !lora_py_whole(item, &value)) {
        if (!is_whole || PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: expected int32 or int64, got %s at index %lld", name, Py_TYPE(item)->tp_name, (long long)i);
        return -1;
    }
    if (value < INT32_MIN || value > INT32_MAX) return fail_bits(name, value, i);
    *out = (int32_t)value;
    return 0;
}

static int ids_of_items(PyObject *items, const char *name, lora_py_ids *out) {
    out->n = PyTuple_GET_SIZE(items);
    out->array = (lora_py_array){.name = name, .kind = LORA_PY_I32, .ndim = 1, .shape = {out->n}, .n = out->n, .rows = 1, .cols = out->n};
    if (out->n == 0) {
        PyErr_Format(PyExc_ValueError, "%s: expected at least one element, got none", name);
        return -1;
    }
    if (!(out->data = room_for(out->n, sizeof *out->data))) return -1;
    for (int64_t i = 0; i < out->n; i++)
        if (item_as_id(PyTuple_GET_ITEM(items, i), name, i, &out->data[i]) < 0) return -1;
    return 0;
}

static int ids_of_array(PyObject *o, const char *name, lora_py_ids *out) {
    const int64_t any[] = {-1};
    if (lora_py_get(o, name, LORA_PY_I32 | LORA_PY_I64, 0, &out->array) < 0 || lora_py_expect(&out->array, 1, any) < 0) return -1;
    out->n = out->array.n;
    if (!(out->data = room_for(out->n, sizeof *out->data))) return -1;
    if (out->array.kind == LORA_PY_I32) memcpy(out->data, out->array.data, (size_t)out->n * sizeof *out->data);
    for (int64_t i = 0; out->array.kind == LORA_PY_I64 && i < out->n; i++) {
        int64_t value = ((const volatile int64_t *)out->array.data)[i]; /* once: it may be another the second time */
        if (value < INT32_MIN || value > INT32_MAX) return fail_bits(name, value, i);
        out->data[i] = (int32_t)value;
    }
    return 0;
}

int lora_py_get_ids(PyObject *o, const char *name, lora_py_ids *out) {
    *out = (lora_py_ids){0};
    PyObject *items = fixed_items(o);
    if (!items && PyErr_Occurred()) return -1;
    int status = items ? ids_of_items(items, name, out) : ids_of_array(o, name, out);
    Py_XDECREF(items);
    lora_py_release(&out->array); /* its shape stays */
    if (status < 0) lora_py_release_ids(out);
    return status;
}

void lora_py_release_ids(lora_py_ids *ids) {
    PyMem_RawFree(ids->data);
    ids->data = NULL;
}

/* --- float64 ------------------------------------------------------------------------------------------------------ */

static int doubles_of_items(PyObject *items, double **data, int64_t *n) {
    *n = PyTuple_GET_SIZE(items);
    if (!(*data = room_for(*n, sizeof **data))) return -1;
    for (int64_t i = 0; i < *n; i++) {
        (*data)[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(items, i));
        if ((*data)[i] == -1.0 && PyErr_Occurred()) return -1;
    }
    return 0;
}

static int doubles_of_array(PyObject *o, const char *name, double **data, int64_t *n) {
    PyObject *array = lora_py_is_array(o) ? lora_py_doubles(o, name) : Py_NewRef(o);
    lora_py_array a = {0};
    const int64_t any[] = {-1};
    int status = array && lora_py_get(array, name, LORA_PY_F64, 0, &a) == 0 && lora_py_expect(&a, 1, any) == 0 ? 0 : -1;
    if (status == 0) *n = a.n;
    if (status == 0 && (*data = room_for(*n, sizeof **data))) memcpy(*data, a.data, (size_t)*n * sizeof **data);
    lora_py_release(&a);
    Py_XDECREF(array);
    return *data ? 0 : -1;
}

int lora_py_get_doubles(PyObject *o, const char *name, double **data, int64_t *n) {
    *data = NULL;
    *n = 0;
    PyObject *items = fixed_items(o);
    if (!items && PyErr_Occurred()) return -1;
    int status = items ? doubles_of_items(items, data, n) : doubles_of_array(o, name, data, n);
    Py_XDECREF(items);
    if (status == 0 && *n == 0) {
        PyErr_Format(PyExc_ValueError, "%s: expected a vector of numbers, got no element", name);
        status = -1;
    }
    if (status < 0) {
        PyMem_RawFree(*data);
        *data = NULL;
    }
    return status;
}
