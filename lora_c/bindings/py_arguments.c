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
