/* From a Python argument to a checked pointer. Every array that enters the library comes through here. */
#ifndef LORA_PY_BUFFER_H
#define LORA_PY_BUFFER_H

#include "lora_c/bindings/py_state.h"

typedef enum lora_py_kind {
    LORA_PY_F32 = 1,
    LORA_PY_BF16 = 2,
    LORA_PY_F16 = 4,
    LORA_PY_U8 = 8,
    LORA_PY_I32 = 16,
    LORA_PY_I64 = 32,
    LORA_PY_F64 = 64,
    LORA_PY_OTHER = 0,
} lora_py_kind;

enum {
    LORA_PY_FLOATS = LORA_PY_F32 | LORA_PY_BF16 | LORA_PY_F16,
    LORA_PY_ANY = LORA_PY_FLOATS | LORA_PY_U8 | LORA_PY_I32 | LORA_PY_I64 | LORA_PY_F64,
};
#define LORA_PY_ANY_TEXT "float32, bfloat16, float16, float64, uint8, int32 or int64"

/* How an argument may look. */
enum {
    LORA_PY_WRITABLE = 1,
    LORA_PY_ROWS = 2, /* rows may lie apart: the stride of the second-last dimension is ld elements */
};

/* What keeps the memory of an array in its place. */
typedef struct lora_py_pinned {
    PyObject *array; /* a weak reference to the array that owns it, or NULL */
    Py_buffer base;  /* of what that array was made over */
} lora_py_pinned;

typedef struct lora_py_array {
    Py_buffer view; /* held until released or detached; view.obj == NULL when empty */
    lora_py_pinned pin;
    void *own;        /* after lora_py_detach() */
    PyObject *device; /* the DeviceArray or Parameter that has the memory, where that is not the host's */
    Py_ssize_t itemsize;
    const char *name;
    lora_py_kind kind;
    int ndim;
    int64_t shape[LORA_PY_MAX_DIMS];
    int64_t n;          /* elements */
    int64_t rows, cols; /* leading dimensions together, last dimension */
    int64_t ld;
    void *data;
} lora_py_array;

/** Checks, in this order: format and byte order, number of dimensions, size, strides, alignment, writability.
 *  kinds is a set. name must outlive the array. -1 with an exception that says what was expected and given. */
int lora_py_get(PyObject *o, const char *name, int kinds, int flags, lora_py_array *out);
/** The same of an array that lies on the device of ctx: on the CPU lora_py_get, elsewhere a DeviceArray or a Parameter there. What lies
 *  on another device is refused with the way out, and never copied. */
int lora_py_get_on(const lora_ctx *ctx, PyObject *o, const char *name, int kinds, int flags, lora_py_array *out);
void lora_py_release(lora_py_array *a); /* empty allowed */
void lora_py_unpin(lora_py_pinned *pin);
/** Copies a contiguous array and lets go of the given one: for values that are checked and must still be so when they are used. */
int lora_py_detach(lora_py_array *a);

/** Exact shape; dimensions < 0 are free. */
int lora_py_expect(const lora_py_array *a, int ndim, const int64_t *shape);
/** Last dimension and, when not NULL, the same leading dimensions as other. */
int lora_py_expect_last(const lora_py_array *a, int64_t cols, const lora_py_array *other);

/* py_overlap.c */
/** Refuses an output that shares memory with an input (either may be empty). */
int lora_py_apart(const lora_py_array *out, const lora_py_array *in);
/** The same with what owns a weight: an export, NF4Tensor, GGMLTensor, Parameter (its gradient, too), a tuple of those, NULL. */
int lora_py_apart_from_owner(lora_py_state *state, const lora_py_array *out, const char *name, PyObject *owner);
/** Only with the gradient of a Parameter; other owners have none. */
int lora_py_apart_from_gradient(lora_py_state *state, const lora_py_array *a, const char *name, PyObject *owner);

/* py_export.c */
/** An object that takes over the export of an array and keeps it. NULL with an exception, and the array as it was. */
PyObject *lora_py_keep_export(lora_py_state *state, lora_py_array *a);
const Py_buffer *lora_py_exported(PyObject *o);

/* py_numbers.c: always copies */
/* Token ids, positions, lengths: a list, or an array of int32 or int64. */
typedef struct lora_py_ids {
    lora_py_array array; /* its shape; the array itself is let go of */
    int32_t *data;
    int64_t n;
} lora_py_ids;

int lora_py_get_ids(PyObject *o, const char *name, lora_py_ids *out);
void lora_py_release_ids(lora_py_ids *ids);
/** A vector of numbers as float64; free *data with PyMem_RawFree. */
int lora_py_get_doubles(PyObject *o, const char *name, double **data, int64_t *n);

/* py_weight.c */

/* A matrix operand: NF4Tensor, GGMLTensor, DeviceWeight, Parameter, or a float32 or bfloat16 array. keep owns its memory. */
typedef struct lora_py_weight {
    lora_weight w;
    float *grad; /* of a trained Parameter */
    PyObject *keep;
    int there; /* on the device of ctx; else it lies in the memory of the host, and is to be placed */
} lora_py_weight;

/** What lies on another device than ctx's and the CPU is refused. */
int lora_py_get_weight(lora_py_state *state, const lora_ctx *ctx, PyObject *o, const char *name, lora_py_weight *out);

typedef struct lora_py_vector {
    const float *data;
    int64_t n;
    float *grad; /* of a trained Parameter */
    PyObject *keep;
    int there; /* as of a weight */
} lora_py_vector;

/** A float32 vector (Parameter or array; bfloat16 is converted). */
int lora_py_get_vector(lora_py_state *state, const lora_ctx *ctx, PyObject *o, const char *name, lora_py_vector *out);

/* py_parts.c */
/* A trained part of a layer: given as a Parameter, which is shared, as an array of start values, or as None for zeros. */
typedef struct lora_py_part {
    lora_py_parameter **place; /* of the layer; empty before, and holds a reference then */
    PyObject *given;
    const char *arg, *name;
    int ndim;
    int64_t shape[2], n; /* n: elements, filled in */
    lora_py_array start; /* the values of a given array, held until they are copied */
} lora_py_part;

/** Fills the places, on a device: Parameters lie there, arrays in the memory of the host. Parts that are not shared lie behind each other
 * in one block, in their order. */
int lora_py_set_parts(lora_py_state *state, lora_py_device device, lora_py_part *parts, int n_parts);

PyObject *lora_py_shape(int ndim, const int64_t *shape); /* a tuple */
/** Converter for O&: a float32, float16 or bfloat16 dtype by name, NumPy type or dtype. */
int lora_py_dtype(PyObject *o, void *out);

#endif
