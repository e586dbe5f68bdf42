/* Arguments that hold still while they are read. */
#include "lora_c/bindings/py_state.h"

/* A dict with the same contents that only we hold, unseen by the garbage collector. */
static PyObject *unseen_copy(PyObject *kwargs) {
    PyObject *copy = PyDict_Copy(kwargs);
    if (copy) PyObject_GC_UnTrack(copy);
    return copy;
}

PyObject *lora_py_with_kept(PyCFunctionWithKeywords f, PyObject *o, PyObject *args, PyObject *kwargs) {
    PyObject *copy = kwargs ? unseen_copy(kwargs) : NULL;
    PyObject *result = copy || !kwargs ? f(o, args, copy) : NULL;
    Py_XDECREF(copy);
    return result;
}

PyObject *lora_py_new_with_kept(newfunc f, PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *copy = kwargs ? unseen_copy(kwargs) : NULL;
    PyObject *result = copy || !kwargs ? f(type, args, copy) : NULL;
    Py_XDECREF(copy);
    return result;
}

static PyObject *items_of(PyObject *iterator, const char *expected) {
    PyObject *list = PyList_New(0), *item = NULL;
    while (list && (item = PyIter_Next(iterator))) {
        if (PyList_GET_SIZE(list) == LORA_PY_MOST_ITEMS)
            PyErr_Format(PyExc_ValueError, "%s, got more than %d", expected, (int)LORA_PY_MOST_ITEMS);
        else
            (void)PyList_Append(list, item);
        Py_DECREF(item);
        if (PyErr_Occurred()) break;
    }
    PyObject *items = list && !PyErr_Occurred() ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return items;
}

PyObject *lora_py_items(PyObject *o, const char *expected) {
    PyObject *iterator = PyObject_GetIter(o);
    if (!iterator) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) PyErr_Format(PyExc_TypeError, "%s, got %s", expected, Py_TYPE(o)->tp_name);
        return NULL;
    }
    PyObject *items = items_of(iterator, expected);
    Py_DECREF(iterator);
    return items;
}

int lora_py_whole(PyObject *o, void *out) {
    PyObject *whole = PyNumber_Index(o);
    if (!whole) return 0;
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(whole, &overflow);
    Py_DECREF(whole);
    if (overflow) value = overflow > 0 ? INT64_MAX : INT64_MIN;
    *(int64_t *)out = value;
    return !(value == -1 && PyErr_Occurred());
}
