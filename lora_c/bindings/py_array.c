/* The only file that sees NumPy's C interface; its function table stays inside this file. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <string.h>

#include "lora_c/bindings/py_array.h"

int lora_py_import_numpy(void) { return PyArray_ImportNumPyAPI(); }

static int type_number(lora_py_kind kind) {
    switch (kind) {
    case LORA_PY_F32: return NPY_FLOAT32;
    case LORA_PY_F16: return NPY_FLOAT16;
    case LORA_PY_U8: return NPY_UINT8;
    default: return NPY_UINT16; /* bfloat16 bits */
    }
}

static PyObject *as_bfloat16(PyObject *bits) {
    PyObject *module = PyImport_ImportModule("ml_dtypes");
    PyObject *type = module ? PyObject_GetAttrString(module, "bfloat16") : NULL;
    PyObject *array = type ? PyObject_CallMethod(bits, "view", "O", type) : NULL;
    Py_XDECREF(type);
    Py_XDECREF(module);
    Py_DECREF(bits);
    return array;
}

PyObject *lora_py_new_array(lora_py_kind kind, int ndim, const int64_t *shape, int clear, void **data) {
    npy_intp dims[LORA_PY_MAX_DIMS];
    for (int i = 0; i < ndim; i++) dims[i] = (npy_intp)shape[i];
    PyObject *array = clear ? PyArray_ZEROS(ndim, dims, type_number(kind), 0) : PyArray_SimpleNew(ndim, dims, type_number(kind));
    if (!array) return NULL;
    *data = PyArray_DATA((PyArrayObject *)array);
    return kind == LORA_PY_BF16 ? as_bfloat16(array) : array;
}

PyObject *lora_py_view(PyObject *owner, lora_py_kind kind, int ndim, const int64_t *shape, const void *data, int writable) {
    npy_intp dims[LORA_PY_MAX_DIMS];
    for (int i = 0; i < ndim; i++) dims[i] = (npy_intp)shape[i];
    PyObject *array = PyArray_New(&PyArray_Type, ndim, dims, type_number(kind), NULL, (void *)data, 0,
                                  writable ? NPY_ARRAY_CARRAY : NPY_ARRAY_CARRAY_RO, NULL);
    if (!array) return NULL;
    if (PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(owner)) < 0) { /* takes the reference also when it fails */
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

PyObject *lora_py_float_copy(const lora_py_array *a) {
    void *data;
    PyObject *array = lora_py_new_array(LORA_PY_F32, a->ndim, a->shape, 0, &data);
    const uint16_t *bits = a->data;
    for (int64_t i = 0; array && i < a->n; i++) {
        uint32_t word = (uint32_t)bits[i] << 16;
        memcpy((float *)data + i, &word, sizeof word);
    }
    return array;
}

static int is_bfloat16(PyArrayObject *array) {
    PyArray_Descr *descr = PyArray_DESCR(array);
    if (!PyTypeNum_ISUSERDEF(descr->type_num) || PyDataType_ELSIZE(descr) != 2) return 0;
    PyObject *name = PyObject_GetAttrString((PyObject *)descr, "name");
    int same = name && PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "bfloat16") == 0;
    Py_XDECREF(name);
    PyErr_Clear();
    return same && PyArray_ISNOTSWAPPED(array);
}

PyObject *lora_py_exporter(PyObject *o, int *is_bf16) {
    *is_bf16 = PyArray_Check(o) && is_bfloat16((PyArrayObject *)o);
    return *is_bf16 ? PyObject_CallMethod(o, "view", "s", "uint16") : Py_NewRef(o);
}

PyObject *lora_py_integers(PyObject *o) {
    if (!PyList_Check(o) && !PyTuple_Check(o)) return Py_NewRef(o);
    PyObject *array = PyArray_FROM_O(o);
    if (array && PyArray_SIZE((PyArrayObject *)array) == 0) { /* an empty list would be float64: let its size be the error */
        npy_intp none = 0;
        Py_SETREF(array, PyArray_SimpleNew(1, &none, NPY_INT64));
    }
    return array;
}

PyObject *lora_py_doubles(PyObject *o, const char *name, const double **data, int64_t *n) {
    PyObject *array = PyArray_FROM_OTF(o, NPY_FLOAT64, NPY_ARRAY_CARRAY_RO);
    if (!array) return NULL;
    if (PyArray_NDIM((PyArrayObject *)array) != 1 || PyArray_SIZE((PyArrayObject *)array) == 0) {
        PyErr_Format(PyExc_ValueError, "%s: expected a vector of numbers, got %d dimensions and %zd elements", name,
                     PyArray_NDIM((PyArrayObject *)array), (Py_ssize_t)PyArray_SIZE((PyArrayObject *)array));
        Py_DECREF(array);
        return NULL;
    }
    *data = PyArray_DATA((PyArrayObject *)array);
    *n = PyArray_SIZE((PyArrayObject *)array);
    return array;
}
