#include "lora_c/bindings/py_buffer.h"
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devicearray.h"

#include <string.h>

PyObject *lora_py_shape(int ndim, const int64_t *shape) {
    PyObject *tuple = PyTuple_New(ndim);
    for (int i = 0; tuple && i < ndim; i++) {
        PyObject *n = PyLong_FromLongLong(shape[i]);
        if (!n)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, n);
    }
    return tuple;
}

static void fail_shape(const lora_py_array *a, const char *expected) {
    PyObject *shape = lora_py_shape(a->ndim, a->shape);
    if (shape) PyErr_Format(PyExc_ValueError, "%s: expected %s, got shape %R", a->name, expected, shape);
    Py_XDECREF(shape);
}

/* --- element types ------------------------------------------------------------------------------------------------ */

static const char *kinds_text(int kinds) {
    switch (kinds) {
    case LORA_PY_F32: return "float32";
    case LORA_PY_F32 | LORA_PY_BF16: return "float32 or bfloat16";
    case LORA_PY_FLOATS: return "float32, float16 or bfloat16";
    case LORA_PY_BF16: return "bfloat16";
    case LORA_PY_F16: return "float16";
    case LORA_PY_U8: return "uint8";
    case LORA_PY_F64: return "float64";
    case LORA_PY_ANY: return LORA_PY_ANY_TEXT;
    default: return "int32 or int64";
    }
}

static const char *way_out(int kinds) {
    if (kinds & (LORA_PY_F32)) return "astype(numpy.float32)";
    if (kinds & LORA_PY_U8) return "view(numpy.uint8)";
    if (kinds & LORA_PY_F64) return "astype(numpy.float64)";
    if (kinds & LORA_PY_I32) return "astype(numpy.int32)";
    return kinds & LORA_PY_BF16 ? "astype(ml_dtypes.bfloat16)" : "astype(numpy.float16)";
}

/* Name of a native buffer format, for messages and for the kind. */
static const char *format_name(char code, Py_ssize_t itemsize) {
    static const char *const signed_names[] = {"int8", "int16", "int32", "int64"};
    static const char *const unsigned_names[] = {"uint8", "uint16", "uint32", "uint64"};
    int size = itemsize == 1 ? 0 : itemsize == 2 ? 1 : itemsize == 4 ? 2 : itemsize == 8 ? 3 : -1;
    if (code == 'f' && itemsize == 4) return "float32";
    if (code == 'd' && itemsize == 8) return "float64";
    if (code == 'e' && itemsize == 2) return "float16";
    if (code == '?') return "bool";
    if (size >= 0 && strchr("bhilq", code)) return signed_names[size];
    if (size >= 0 && strchr("BHILQ", code)) return unsigned_names[size];
    return NULL;
}

static lora_py_kind kind_of(const char *name) {
    static const struct {
        const char *name;
        lora_py_kind kind;
    } known[] = {{"float32", LORA_PY_F32}, {"float16", LORA_PY_F16}, {"uint8", LORA_PY_U8},
                 {"int32", LORA_PY_I32},   {"int64", LORA_PY_I64},   {"float64", LORA_PY_F64}};
    for (size_t i = 0; name && i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) return known[i].kind;
    return LORA_PY_OTHER;
}

static int check_format(lora_py_array *a, int kinds, int is_bf16) {
    const char *format = a->view.format ? a->view.format : "B";
    char order = strchr("@=<>!^", *format) && *format ? *format : '@';
    const char *code = order == *format ? format + 1 : format;
    const char *name = *code && !code[1] ? format_name(*code, a->itemsize) : NULL;
    int big_endian = order == '>' || order == '!';
    if (a->itemsize > 1 && big_endian != PY_BIG_ENDIAN && (big_endian || order == '<')) {
        PyErr_Format(PyExc_TypeError, "%s: expected native byte order, got buffer format '%s'; use x.astype(x.dtype.newbyteorder('='))",
                     a->name, format);
        return -1;
    }
    a->kind = is_bf16 ? LORA_PY_BF16 : kind_of(name);
    if (a->kind & kinds) return 0;
    if (is_bf16) name = "bfloat16";
    if (name)
        PyErr_Format(PyExc_TypeError, "%s: expected %s, got %s; use x.%s", a->name, kinds_text(kinds), name, way_out(kinds));
    else
        PyErr_Format(PyExc_TypeError, "%s: expected %s, got buffer format '%s'; use x.%s", a->name, kinds_text(kinds), format,
                     way_out(kinds));
    return -1;
}

/* --- layout ------------------------------------------------------------------------------------------------------- */

static void fail_strides(const lora_py_array *a) {
    int64_t strides[LORA_PY_MAX_DIMS];
    for (int i = 0; i < a->ndim; i++) strides[i] = a->view.strides[i];
    PyObject *tuple = lora_py_shape(a->ndim, strides);
    if (tuple)
        PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous array, got strides %R; use numpy.ascontiguousarray", a->name, tuple);
    Py_XDECREF(tuple);
}

/* From the last dimension up; a dimension of size 1 has no stride that could matter. */
static int check_strides(lora_py_array *a, int flags) {
    Py_ssize_t expected = a->itemsize;
    a->ld = a->cols;
    for (int i = a->ndim - 1; i >= 0; i--) {
        Py_ssize_t stride = a->view.strides ? a->view.strides[i] : expected;
        if (a->shape[i] > 1 && stride != expected) {
            int apart = (flags & LORA_PY_ROWS) && i == a->ndim - 2 && stride > expected && stride % a->itemsize == 0;
            if (!apart) {
                fail_strides(a);
                return -1;
            }
            a->ld = stride / a->itemsize;
            expected = stride;
        }
        expected *= (Py_ssize_t)a->shape[i];
    }
    return 0;
}

static int check_layout(lora_py_array *a, int flags) {
    if (a->view.ndim < 1 || a->view.ndim > LORA_PY_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s: expected 1 to %d dimensions, got %d", a->name, (int)LORA_PY_MAX_DIMS, a->view.ndim);
        return -1;
    }
    a->ndim = a->view.ndim;
    a->n = 1;
    for (int i = 0; i < a->ndim; i++) {
        a->shape[i] = a->view.shape ? a->view.shape[i] : a->view.len / a->itemsize;
        if (__builtin_mul_overflow(a->n, a->shape[i], &a->n)) a->n = 0;
    }
    if (a->n < 1) {
        fail_shape(a, "at least one element");
        return -1;
    }
    a->cols = a->shape[a->ndim - 1];
    a->rows = a->n / a->cols;
    if (check_strides(a, flags) < 0) return -1;
    if ((uintptr_t)a->view.buf % (size_t)a->itemsize) {
        PyErr_Format(PyExc_ValueError, "%s: expected memory aligned to %zd bytes, got address %p; use x.copy()", a->name, a->itemsize,
                     a->view.buf);
        return -1;
    }
    if ((flags & LORA_PY_WRITABLE) && a->view.readonly) {
        PyErr_Format(PyExc_ValueError, "%s: expected a writable array, got a read-only one; use x.copy()", a->name);
        return -1;
    }
    a->data = a->view.buf;
    return 0;
}

/* Types without a struct code, objects, dates: NumPy's own message lacks the argument's name. */
static int fail_export(PyObject *o, const char *name, int kinds) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError) && !PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_BufferError))
        return -1;
    if (lora_py_is_parameter(o))
        PyErr_Format(PyExc_TypeError, "%s: expected a %s array in the memory of the CPU, got a Parameter on device %s; use its read()",
                     name, kinds_text(kinds), lora_ctx_device(lora_py_device_of(o).ctx));
    else
        PyErr_Format(PyExc_TypeError, "%s: expected a %s array, got %s that cannot be read as plain numbers; use x.%s", name,
                     kinds_text(kinds), Py_TYPE(o)->tp_name, way_out(kinds));
    return -1;
}

/* What is no array of the host's. */
static int fail_type(PyObject *o, const char *name, int kinds) {
    if (lora_py_is_devicearray(o))
        PyErr_Format(PyExc_TypeError, "%s: expected a %s array in the memory of the CPU, got a DeviceArray on device %s; use its to('cpu')",
                     name, kinds_text(kinds), lora_ctx_device(lora_py_device_of(o).ctx));
    else
        PyErr_Format(PyExc_TypeError, "%s: expected a %s array, got %s; use numpy.asarray(x, ...)", name, kinds_text(kinds),
                     Py_TYPE(o)->tp_name);
    return -1;
}

int lora_py_get(PyObject *o, const char *name, int kinds, int flags, lora_py_array *out) {
    *out = (lora_py_array){.name = name};
    int is_bf16;
    PyObject *exporter = lora_py_exporter(o, &is_bf16);
    if (!exporter) return -1;
    if (!PyObject_CheckBuffer(exporter)) {
        Py_DECREF(exporter);
        return fail_type(o, name, kinds);
    }
    int status = PyObject_GetBuffer(exporter, &out->view, PyBUF_FORMAT | PyBUF_STRIDES);
    Py_DECREF(exporter);
    if (status < 0) return fail_export(o, name, kinds);
    out->itemsize = out->view.itemsize;
    if (lora_py_pin(out->view.obj, &out->pin) == 0 && check_format(out, kinds, is_bf16) == 0 && check_layout(out, flags) == 0) return 0;
    lora_py_release(out);
    return -1;
}

static int fail_place(const lora_ctx *ctx, PyObject *o, const char *name) {
    const char *expected = lora_ctx_device(ctx), *type = Py_TYPE(o)->tp_name, *dot = strrchr(type, '.');
    const lora_ctx *given = lora_py_extent_of(o, NULL) ? lora_py_device_of(o).ctx : NULL;
    if (given && !lora_py_is_host(given))
        PyErr_Format(PyExc_ValueError, "%s: expected an array on device %s, got one on %s%s; use lora_c.to_device(x.to('cpu'), '%s')", name,
                     expected, lora_ctx_device(given), lora_py_other_loading(ctx, given), expected);
    else
        PyErr_Format(PyExc_TypeError, "%s: expected an array on device %s, got %s in the memory of the CPU; use lora_c.to_device(x, '%s')",
                     name, expected, dot ? dot + 1 : type, expected);
    return -1;
}

int lora_py_get_on(const lora_ctx *ctx, PyObject *o, const char *name, int kinds, int flags, lora_py_array *out) {
    if (lora_py_is_host(ctx)) return lora_py_get(o, name, kinds, flags, out);
    lora_py_extent e;
    *out = (lora_py_array){.name = name};
    if (!lora_py_extent_of(o, &e) || !lora_py_same_memory(lora_py_device_of(o).ctx, ctx)) return fail_place(ctx, o, name);
    lora_error err = {0};
    if (lora_device_check(ctx, &err) != LORA_OK) { /* in a child of the process that opened it */
        lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
        return -1;
    }
    if (!(e.kind & kinds)) {
        PyErr_Format(PyExc_TypeError, "%s: expected %s, got %s; convert it before it goes to the device", name, kinds_text(kinds),
                     lora_py_kind_name(e.kind));
        return -1;
    }
    if ((flags & LORA_PY_WRITABLE) && e.readonly) {
        PyErr_Format(PyExc_ValueError, "%s: expected a writable array, got a read-only one", name);
        return -1;
    }
    *out = (lora_py_array){.device = Py_NewRef(o),
                           .itemsize = lora_py_itemsize(e.kind),
                           .name = name,
                           .kind = e.kind,
                           .ndim = e.ndim,
                           .n = e.n,
                           .cols = e.shape[e.ndim - 1],
                           .ld = e.shape[e.ndim - 1],
                           .data = e.data};
    out->rows = out->n / out->cols;
    memcpy(out->shape, e.shape, sizeof out->shape);
    return 0;
}

void lora_py_unpin(lora_py_pinned *pin) {
    Py_CLEAR(pin->array);
    if (pin->base.obj) PyBuffer_Release(&pin->base);
}

static void release_export(lora_py_array *a) {
    lora_py_unpin(&a->pin); /* before the export, which may be the last reference to what is pinned */
    if (a->view.obj) PyBuffer_Release(&a->view);
}

void lora_py_release(lora_py_array *a) {
    release_export(a);
    PyMem_RawFree(a->own);
    a->own = NULL;
    Py_CLEAR(a->device);
}

int lora_py_detach(lora_py_array *a) {
    size_t bytes = (size_t)a->n * (size_t)a->itemsize; /* there are as many */
    if (!(a->own = PyMem_RawMalloc(bytes))) {
        PyErr_NoMemory();
        return -1;
    }
    a->data = memcpy(a->own, a->data, bytes);
    release_export(a);
    return 0;
}

/* --- shapes ------------------------------------------------------------------------------------------------------ */

int lora_py_expect(const lora_py_array *a, int ndim, const int64_t *shape) {
    int same = a->ndim == ndim;
    for (int i = 0; same && i < ndim; i++) same = shape[i] < 0 || shape[i] == a->shape[i];
    if (same) return 0;
    char text[32 * LORA_PY_MAX_DIMS] = "shape (";
    int is_free = 1;
    for (int i = 0; i < ndim; i++) is_free = is_free && shape[i] < 0;
    if (is_free) PyOS_snprintf(text, sizeof text, "%d dimension%s", ndim, ndim > 1 ? "s" : "");
    for (int i = 0; !is_free && i < ndim; i++) {
        size_t used = strlen(text);
        const char *comma = i + 1 < ndim ? ", " : ndim == 1 ? ",)" : ")";
        if (shape[i] < 0)
            PyOS_snprintf(text + used, sizeof text - used, "any%s", comma);
        else
            PyOS_snprintf(text + used, sizeof text - used, "%lld%s", (long long)shape[i], comma);
    }
    fail_shape(a, text);
    return -1;
}

int lora_py_expect_last(const lora_py_array *a, int64_t cols, const lora_py_array *other) {
    int same = a->cols == cols && (!other || a->ndim == other->ndim);
    for (int i = 0; same && other && i < a->ndim - 1; i++) same = a->shape[i] == other->shape[i];
    if (same) return 0;
    if (other) {
        int64_t shape[LORA_PY_MAX_DIMS];
        memcpy(shape, other->shape, sizeof shape);
        shape[other->ndim - 1] = cols;
        return lora_py_expect(a, other->ndim, shape);
    }
    char text[48];
    PyOS_snprintf(text, sizeof text, "shape (..., %lld)", (long long)cols);
    fail_shape(a, text);
    return -1;
}

int lora_py_dtype(PyObject *o, void *out) {
    static const struct {
        const char *name;
        lora_py_kind kind;
    } known[] = {{"float32", LORA_PY_F32}, {"float16", LORA_PY_F16}, {"bfloat16", LORA_PY_BF16}};
    PyObject *name = PyUnicode_Check(o) ? Py_NewRef(o) : PyObject_GetAttrString(o, PyType_Check(o) ? "__name__" : "name");
    if (!name) PyErr_Clear();
    for (size_t i = 0; name && PyUnicode_Check(name) && i < sizeof known / sizeof *known; i++) {
        if (PyUnicode_CompareWithASCIIString(name, known[i].name)) continue;
        *(lora_py_kind *)out = known[i].kind;
        Py_DECREF(name);
        return 1;
    }
    Py_XDECREF(name);
    (void)lora_py_refuse(PyExc_TypeError, "dtype: expected 'float32', 'float16' or 'bfloat16'", o);
    return 0;
}
