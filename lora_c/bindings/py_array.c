/* The only file that sees NumPy's C interface; its function table stays inside this file. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <string.h>

#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devicearray.h"

int lora_py_import_numpy(void) { return PyArray_ImportNumPyAPI(); }

static int type_number(lora_py_kind kind) {
    switch (kind) {
    case LORA_PY_F32: return NPY_FLOAT32;
    case LORA_PY_F16: return NPY_FLOAT16;
    case LORA_PY_U8: return NPY_UINT8;
    case LORA_PY_I32: return NPY_INT32;
    case LORA_PY_I64: return NPY_INT64;
    case LORA_PY_F64: return NPY_FLOAT64;
    default: return NPY_UINT16; /* bfloat16 bits */
    }
}

/* The memory of any array as a plain array of another element type: no method of a subclass takes part. Steals type. */
static PyObject *plain_view(PyArrayObject *array, PyArray_Descr *type) { return PyArray_View(array, type, &PyArray_Type); }

static PyArray_Descr *bfloat16(void) {
    PyObject *module = PyImport_ImportModule("ml_dtypes"), *type = module ? PyObject_GetAttrString(module, "bfloat16") : NULL;
    PyArray_Descr *descr = NULL;
    if (type && !PyArray_DescrConverter(type, &descr)) descr = NULL;
    Py_XDECREF(type);
    Py_XDECREF(module);
    return descr;
}

static PyObject *as_bfloat16(PyObject *bits) {
    PyArray_Descr *descr = bfloat16();
    PyObject *array = descr ? plain_view((PyArrayObject *)bits, descr) : NULL;
    Py_DECREF(bits);
    return array;
}

PyObject *lora_py_numpy_dtype(lora_py_kind kind) {
    return (PyObject *)(kind == LORA_PY_BF16 ? bfloat16() : PyArray_DescrFromType(type_number(kind)));
}

/* NumPy allocates without asking whether the machine has the memory. */
static int fits_memory(lora_py_kind kind, int ndim, const int64_t *shape) {
    size_t bytes = (size_t)lora_py_itemsize(kind);
    for (int i = 0; i < ndim; i++)
        if (__builtin_mul_overflow(bytes, (size_t)shape[i], &bytes)) bytes = SIZE_MAX;
    if (bytes < SIZE_MAX && lora_memory_fits(bytes)) return 1;
    PyObject *tuple = lora_py_shape(ndim, shape);
    if (tuple) PyErr_Format(PyExc_MemoryError, "result: expected memory for an array of shape %R, got none", tuple);
    Py_XDECREF(tuple);
    return 0;
}

PyObject *lora_py_new_array(lora_py_kind kind, int ndim, const int64_t *shape, int clear, void **data) {
    npy_intp dims[LORA_PY_MAX_DIMS];
    if (!fits_memory(kind, ndim, shape)) return NULL;
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

int lora_py_set_readonly(PyObject *array) {
    PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    return 0;
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
    const char *name = descr->typeobj->tp_name, *dot = strrchr(name, '.');
    return strcmp(dot ? dot + 1 : name, "bfloat16") == 0 && PyArray_ISNOTSWAPPED(array);
}

PyObject *lora_py_exporter(PyObject *o, int *is_bf16) {
    *is_bf16 = PyArray_Check(o) && is_bfloat16((PyArrayObject *)o);
    return *is_bf16 ? plain_view((PyArrayObject *)o, PyArray_DescrFromType(NPY_UINT16)) : Py_NewRef(o);
}

int lora_py_is_array(PyObject *o) { return PyArray_Check(o); }

int lora_py_pin(PyObject *exporter, lora_py_pinned *pin) {
    *pin = (lora_py_pinned){0};
    PyObject *array = NULL, *base = NULL; /* the last array that it leads to; the last thing that an array was made over */
    for (PyObject *o = exporter; o;) {
        if (PyArray_Check(o)) {
            array = o;
            if ((o = PyArray_BASE((PyArrayObject *)array))) base = o;
        } else {
            o = PyMemoryView_Check(o) ? PyMemoryView_GET_BUFFER(o)->obj : NULL;
        }
    }
    if (!array) return 0; /* others refuse to move while they are exported */
    if (base && !PyArray_Check(base) && PyObject_CheckBuffer(base) && PyObject_GetBuffer(base, &pin->base, PyBUF_FULL_RO) < 0)
        PyErr_Clear();
    pin->array = PyWeakref_NewRef(array, NULL);
    return pin->array ? 0 : -1;
}

PyObject *lora_py_doubles(PyObject *o, const char *name) {
    PyArray_Descr *type = PyArray_DescrFromType(NPY_FLOAT64);
    PyObject *array = PyArray_FromArray((PyArrayObject *)o, type, NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY | NPY_ARRAY_ENSUREARRAY);
    if (!array && PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "%s: expected numbers, got an array of %S", name, PyArray_DESCR((PyArrayObject *)o));
    return array;
}
