/* One call of an operation: where it computes, what it is given and gives. */
#include "lora_c/bindings/py_ops.h"

#include <string.h>

/* --- what comes in ------------------------------------------------------------------------------------------------- */

static void choose_device(lora_py_call *c, PyObject *first) {
    if (!c->at.ctx) c->at = lora_py_device_given(c->state, first);
}

lora_py_array *lora_py_take(lora_py_call *c, PyObject *o, const char *name, int flags) {
    lora_py_array *a = &c->in[c->n_in++];
    choose_device(c, o);
    return lora_py_get_on(c->at.ctx, o, name, LORA_PY_F32, flags, a) < 0 ? NULL : a;
}

lora_py_array *lora_py_take_like(lora_py_call *c, PyObject *o, const char *name, const lora_py_array *like) {
    lora_py_array *a = lora_py_take(c, o, name, 0);
    return a && lora_py_expect(a, like->ndim, like->shape) == 0 ? a : NULL;
}

lora_py_array *lora_py_take_host(lora_py_call *c, PyObject *o, const char *name, int64_t n) {
    lora_py_array *a = &c->in[c->n_in++];
    return lora_py_get(o, name, LORA_PY_F32, 0, a) < 0 || lora_py_expect(a, 1, &n) < 0 || lora_py_detach(a) < 0 ? NULL : a;
}

int lora_py_take_weight(lora_py_call *c, PyObject *o, const char *name) {
    choose_device(c, o);
    const char *device = lora_ctx_device(c->at.ctx);
    if (lora_py_get_weight(c->state, c->at.ctx, o, name, &c->weight) < 0) return -1;
    if (c->weight.there) return 0;
    const char *type = Py_TYPE(o)->tp_name, *dot = strrchr(type, '.');
    PyErr_Format(PyExc_TypeError, "%s: expected a weight on device %s, got %s in the memory of the CPU; use lora_c.to_device(x, '%s')",
                 name, device, dot ? dot + 1 : type, device);
    return -1;
}

int lora_py_check_ids(const lora_py_call *c, const char *name, int64_t end, const float *weight) {
    if (lora_py_is_host(c->at.ctx)) return 0;
    for (int64_t i = 0; i < c->ids.n; i++) {
        if ((weight && weight[i] == 0.0f) || (c->ids.data[i] >= 0 && c->ids.data[i] < end)) continue;
        PyErr_Format(PyExc_ValueError, "%s: expected 0 <= %s[%lld] < %lld, got %d", name, name, (long long)i, (long long)end,
                     (int)c->ids.data[i]);
        return -1;
    }
    return 0;
}

/* --- memory of the device ------------------------------------------------------------------------------------------- */

void *lora_py_work(lora_py_call *c, size_t bytes, const char *name) {
    void *p = lora_py_alloc(c->at.ctx, LORA_MEM_SCRATCH, bytes, name);
    if (p) c->memory[c->n_memory++] = p;
    return p;
}

const void *lora_py_send(lora_py_call *c, const void *host, size_t bytes, const char *name) {
    if (lora_py_is_host(c->at.ctx)) return host;
    void *there = lora_py_work(c, bytes, name);
    if (!there) return NULL;
    lora_status status;
    LORA_PY_RUN(*c, status, lora_upload(c->at.ctx, there, host, bytes, &c->err));
    c->waits = 1;
    if (status == LORA_OK) return there;
    lora_py_raise(c->state, &c->err);
    return NULL;
}

/* --- what goes out -------------------------------------------------------------------------------------------------- */

float *lora_py_give(lora_py_call *c, int ndim, const int64_t *shape, int clear) {
    void *data;
    c->out[c->n_out] = lora_py_new_on(c->state, c->at, LORA_PY_F32, ndim, shape, clear, &data);
    return c->out[c->n_out] ? c->n_out++, data : NULL;
}

float *lora_py_give_like(lora_py_call *c, const lora_py_array *like) { return lora_py_give(c, like->ndim, like->shape, 0); }

static lora_status release_call(lora_py_call *c, lora_error *err) {
    lora_status status = LORA_OK;
    if (c->waits) LORA_PY_RUN(*c, status, lora_sync(c->at.ctx, err));
    for (int i = 0; i < c->n_memory; i++) lora_ctx_free(c->at.ctx, c->memory[i]);
    for (int i = 0; i < c->n_in; i++) lora_py_release(&c->in[i]);
    lora_py_release_ids(&c->ids);
    Py_CLEAR(c->weight.keep);
    return status;
}

static void drop_results(lora_py_call *c) {
    for (int i = 0; i < c->n_out; i++) Py_CLEAR(c->out[i]);
}

PyObject *lora_py_abandon(lora_py_call *c) {
    lora_status also = release_call(c, NULL);
    (void)also; /* there is an exception already */
    drop_results(c);
    return NULL;
}

PyObject *lora_py_end(lora_py_call *c, lora_status status) {
    lora_status later = release_call(c, status == LORA_OK ? &c->err : NULL);
    if (status != LORA_OK || later != LORA_OK) {
        drop_results(c);
        return lora_py_raise(c->state, &c->err);
    }
    if (c->n_out == 0) Py_RETURN_NONE;
    if (c->n_out == 1) return c->out[0];
    return c->n_out == 2 ? Py_BuildValue("(NN)", c->out[0], c->out[1]) : Py_BuildValue("(NNN)", c->out[0], c->out[1], c->out[2]);
}
