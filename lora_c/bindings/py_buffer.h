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
    LORA_PY_OTHER = 0,
} lora_py_kind;

enum { LORA_PY_FLOATS = LORA_PY_F32 | LORA_PY_BF16 | LORA_PY_F16 };

/* How an argument may look. */
enum {
    LORA_PY_WRITABLE = 1,
    LORA_PY_ROWS = 2, /* rows may lie apart: the stride of the second-last dimension is ld elements */
};

typedef struct lora_py_array {
    Py_buffer view; /* held until released; view.obj == NULL when empty */
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
void lora_py_release(lora_py_array *a); /* empty allowed */

/** Exact shape; dimensions < 0 are free. */
int lora_py_expect(const lora_py_array *a, int ndim, const int64_t *shape);
/** Last dimension and, when not NULL, the same leading dimensions as other. */
int lora_py_expect_last(const lora_py_array *a, int64_t cols, const lora_py_array *other);
/** Refuses an output that shares memory with an input (either may be empty). */
int lora_py_apart(const lora_py_array *out, const lora_py_array *in);

/* Token ids, positions, lengths: int32 as given or int64 converted. */
typedef struct lora_py_ids {
    lora_py_array array;
    int32_t *converted;
    const int32_t *data;
    int64_t n;
} lora_py_ids;

int lora_py_get_ids(PyObject *o, const char *name, lora_py_ids *out);
void lora_py_release_ids(lora_py_ids *ids);

/* A matrix operand: NF4Tensor, GGMLTensor, Parameter, or a float32 or bfloat16 array. keep owns its memory. */
typedef struct lora_py_weight {
    lora_weight w;
    float *grad; /* of a trained Parameter */
    PyObject *keep;
} lora_py_weight;

int lora_py_get_weight(lora_py_state *state, PyObject *o, const char *name, lora_py_weight *out);
/** A float32 vector (Parameter or array; bfloat16 is converted). */
int lora_py_get_vector(lora_py_state *state, PyObject *o, const char *name, const float **data, int64_t *n, float **grad,
                       PyObject **keep);

PyObject *lora_py_shape(int ndim, const int64_t *shape); /* a tuple */
/** Converter for O&: a float32, float16 or bfloat16 dtype by name, NumPy type or dtype. */
int lora_py_dtype(PyObject *o, void *out);

#endif
