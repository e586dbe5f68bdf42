/* One call of an operation: the arrays that came in, the arrays that go out, one way to end. */
#ifndef LORA_PY_OPS_H
#define LORA_PY_OPS_H

#include "lora_c/bindings/py_array.h"

enum { LORA_PY_MAX_ARRAYS = 6 };

typedef struct lora_py_call {
    lora_py_state *state;
    lora_py_array in[LORA_PY_MAX_ARRAYS];
    lora_py_ids ids;
    lora_py_weight weight;
    PyObject *out[3];
    int n_in, n_out;
    lora_error err;
} lora_py_call;

/** An array as a matrix of its rows. */
static inline lora_mat lora_py_mat(const lora_py_array *a) { return lora_mat_f32(a->data, a->rows, a->cols, a->ld); }
/** A result of the shape of like. */
static inline lora_mat lora_py_mat_like(const float *data, const lora_py_array *like) {
    return lora_mat_f32(data, like->rows, like->cols, like->cols);
}

/** A float32 argument; NULL with an exception. */
lora_py_array *lora_py_take(lora_py_call *c, PyObject *o, const char *name, int flags);
/** A float32 argument of the shape of like. */
lora_py_array *lora_py_take_like(lora_py_call *c, PyObject *o, const char *name, const lora_py_array *like);
/** A new float32 result; NULL with an exception. */
float *lora_py_give(lora_py_call *c, int ndim, const int64_t *shape, int clear);
float *lora_py_give_like(lora_py_call *c, const lora_py_array *like);
/** Releases everything. The result, the tuple of results, or NULL with an exception. */
PyObject *lora_py_end(lora_py_call *c, lora_status status);
PyObject *lora_py_abandon(lora_py_call *c);

#endif
