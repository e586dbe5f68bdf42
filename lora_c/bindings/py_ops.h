/* One call of an operation: the arrays that came in, the arrays that go out, one way to end. */
#ifndef LORA_PY_OPS_H
#define LORA_PY_OPS_H

#include "lora_c/bindings/py_devicearray.h"

enum { LORA_PY_MAX_ARRAYS = 6, LORA_PY_MAX_SENT = 6 };

typedef struct lora_py_call {
    lora_py_state *state;
    lora_py_device at; /* where it computes: the first array or weight that is taken says */
    lora_py_array in[LORA_PY_MAX_ARRAYS];
    lora_py_ids ids;
    lora_py_weight weight;
    PyObject *out[3];
    void *memory[LORA_PY_MAX_SENT]; /* of the device, until the call ends */
    int n_in, n_out, n_memory;
    int waits; /* whether the device may still read memory of the host that ends with the call */
    lora_error err;
} lora_py_call;

/** Fills in what a call is before anything is taken. The rest, most of its two kilobytes, is written before it is read: clearing it takes a
 *  twentieth of a call on small arrays. */
static inline void lora_py_begin(lora_py_call *c, PyObject *module) {
    c->state = PyModule_GetState(module);
    c->at = (lora_py_device){0};
    c->ids.data = NULL;
    c->weight.keep = NULL;
    c->n_in = c->n_out = c->n_memory = c->waits = 0;
    c->err.message[0] = '\0';
}

/* Runs C calls on the context of a call, as LORA_PY_CALL does. */
#define LORA_PY_RUN(c, status, expr) LORA_PY_CALL((c).at.ctx, status, expr)

/** An array as a matrix of its rows. */
static inline lora_mat lora_py_mat(const lora_py_array *a) { return lora_mat_f32(a->data, a->rows, a->cols, a->ld); }
/** A result of the shape of like. */
static inline lora_mat lora_py_mat_like(const float *data, const lora_py_array *like) {
    return lora_mat_f32(data, like->rows, like->cols, like->cols);
}

/** A float32 argument on the call's device; NULL with an exception. */
lora_py_array *lora_py_take(lora_py_call *c, PyObject *o, const char *name, int flags);
/** A float32 argument of the shape of like. */
lora_py_array *lora_py_take_like(lora_py_call *c, PyObject *o, const char *name, const lora_py_array *like);
/** A float32 vector of n elements in the memory of the host, wherever the call computes, copied: it decides what is read. */
lora_py_array *lora_py_take_host(lora_py_call *c, PyObject *o, const char *name, int64_t n);
/** c->weight, on the call's device. -1 with an exception. */
int lora_py_take_weight(lora_py_call *c, PyObject *o, const char *name);
/** Memory of the device until the call ends; NULL with an exception. */
void *lora_py_work(lora_py_call *c, size_t bytes, const char *name);
/** What the host has for the device to read: host itself, or a copy there. host stays until the call ends. NULL with an exception. */
const void *lora_py_send(lora_py_call *c, const void *host, size_t bytes, const char *name);
/** 0 <= ids[i] < end; on the CPU the operation checks that. -1 with an exception that names the first. */
int lora_py_check_ids(const lora_py_call *c, const char *name, int64_t end, const float *weight);

/** A new float32 result on the call's device; NULL with an exception. */
float *lora_py_give(lora_py_call *c, int ndim, const int64_t *shape, int clear);
float *lora_py_give_like(lora_py_call *c, const lora_py_array *like);
/** Releases everything. The result, the tuple of results, or NULL with an exception. */
PyObject *lora_py_end(lora_py_call *c, lora_status status);
PyObject *lora_py_abandon(lora_py_call *c);

#endif
