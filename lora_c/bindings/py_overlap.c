/* Which memory an output must not share. */
#include "lora_c/bindings/py_devicearray.h"

static uintptr_t end_of(const lora_py_array *a) {
    return (uintptr_t)a->data + (uintptr_t)(((a->rows - 1) * a->ld + a->cols) * a->itemsize);
}

static int apart(const lora_py_array *out, const char *name, const void *data, uintptr_t end) {
    if (!out->data || !data) return 0;
    if ((uintptr_t)out->data >= end || (uintptr_t)data >= end_of(out)) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected memory apart from %s, got overlapping buffers; use a new array", out->name, name);
    return -1;
}

int lora_py_apart(const lora_py_array *out, const lora_py_array *in) { return apart(out, in->name, in->data, end_of(in)); }

static int apart_from_bytes(const lora_py_array *out, const char *name, const void *data, Py_ssize_t bytes) {
    return apart(out, name, data, (uintptr_t)data + (uintptr_t)bytes);
}

int lora_py_apart_from_gradient(lora_py_state *state, const lora_py_array *a, const char *name, PyObject *owner) {
    if (!owner || !Py_IS_TYPE(owner, state->parameter_type)) return 0;
    lora_py_parameter *p = (lora_py_parameter *)owner;
    char text[96];
    PyOS_snprintf(text, sizeof text, "%s.grad", name);
    return apart_from_bytes(a, text, p->grad, (Py_ssize_t)p->size * 4);
}

int lora_py_apart_from_owner(lora_py_state *state, const lora_py_array *out, const char *name, PyObject *owner) {
    if (!owner || !out->data) return 0;
    if (PyTuple_CheckExact(owner)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(owner); i++)
            if (lora_py_apart_from_owner(state, out, name, PyTuple_GET_ITEM(owner, i)) < 0) return -1;
        return 0;
    }
    if (Py_IS_TYPE(owner, state->export_type)) {
        const Py_buffer *view = lora_py_exported(owner);
        return apart_from_bytes(out, name, view->buf, view->len);
    }
    if (Py_IS_TYPE(owner, state->nf4_type)) {
        lora_py_nf4tensor *t = (lora_py_nf4tensor *)owner;
        return apart_from_bytes(out, name, t->codes, t->code_bytes);
    }
    if (Py_IS_TYPE(owner, state->ggml_type)) {
        lora_py_ggmltensor *t = (lora_py_ggmltensor *)owner;
        return apart_from_bytes(out, name, t->ggml.blocks, t->bytes);
    }
    if (Py_IS_TYPE(owner, state->devicearray_type)) {
        const lora_py_devicearray *a = (const lora_py_devicearray *)owner;
        return apart_from_bytes(out, name, a->data, (Py_ssize_t)a->n * lora_py_itemsize(a->kind));
    }
    if (!Py_IS_TYPE(owner, state->parameter_type)) return 0;
    lora_py_parameter *p = (lora_py_parameter *)owner;
    if (apart_from_bytes(out, name, p->data, (Py_ssize_t)p->size * 4) < 0) return -1;
    return lora_py_apart_from_gradient(state, out, name, owner);
}
