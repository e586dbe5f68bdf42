/* Weights and vectors that are borrowed, and what owns their memory. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devices.h"

static int weight_of_parameter(lora_py_parameter *p, const char *name, lora_py_weight *out) {
    if (p->ndim != 2) {
        PyErr_Format(PyExc_ValueError, "%s: expected a matrix, got a Parameter with %d dimensions", name, p->ndim);
        return -1;
    }
    out->w = lora_weight_f32(p->data, p->shape[0], p->shape[1], p->shape[1]);
    out->grad = p->grad;
    out->keep = Py_NewRef((PyObject *)p);
    return 0;
}

int lora_py_get_weight(lora_py_state *state, const lora_ctx *ctx, PyObject *o, const char *name, lora_py_weight *out) {
    *out = (lora_py_weight){0};
    if (Py_IS_TYPE(o, state->nf4_type)) {
        out->w = lora_weight_nf4(&((lora_py_nf4tensor *)o)->nf4);
        out->keep = Py_NewRef(o);
        return 0;
    }
    if (Py_IS_TYPE(o, state->ggml_type)) {
        out->w = lora_weight_ggml(&((lora_py_ggmltensor *)o)->ggml);
        out->keep = Py_NewRef(o);
        return 0;
    }
    if (Py_IS_TYPE(o, state->parameter_type))
        return lora_py_same_device(ctx, (lora_py_object *)o, name) < 0 ? -1 : weight_of_parameter((lora_py_parameter *)o, name, out);
    lora_py_array a;
    const int64_t any[] = {-1, -1};
    if (lora_py_get(o, name, LORA_PY_F32 | LORA_PY_BF16, 0, &a) < 0) return -1;
    out->w =
        a.kind == LORA_PY_F32 ? lora_weight_f32(a.data, a.shape[0], a.cols, a.cols) : lora_weight_bf16(a.data, a.shape[0], a.cols, a.cols);
    if (lora_py_expect(&a, 2, any) == 0) out->keep = lora_py_keep_export(state, &a);
    lora_py_release(&a);
    return out->keep ? 0 : -1;
}

/* A bfloat16 vector gives way to a float32 copy. */
static int widen(lora_py_array *a) {
    PyObject *copy = lora_py_float_copy(a);
    const char *name = a->name;
    lora_py_release(a);
    int status = copy ? lora_py_get(copy, name, LORA_PY_F32, 0, a) : -1;
    Py_XDECREF(copy);
    return status;
}

int lora_py_get_vector(lora_py_state *state, const lora_ctx *ctx, PyObject *o, const char *name, lora_py_vector *out) {
    *out = (lora_py_vector){0};
    if (Py_IS_TYPE(o, state->parameter_type)) {
        lora_py_parameter *p = (lora_py_parameter *)o;
        if (lora_py_same_device(ctx, &p->base, name) < 0) return -1;
        if (p->ndim != 1) {
            PyErr_Format(PyExc_ValueError, "%s: expected a vector, got a Parameter with %d dimensions", name, p->ndim);
            return -1;
        }
        *out = (lora_py_vector){.data = p->data, .n = p->size, .grad = p->grad, .keep = Py_NewRef(o)};
        return 0;
    }
    lora_py_array a;
    const int64_t any[] = {-1};
    if (lora_py_get(o, name, LORA_PY_F32 | LORA_PY_BF16, 0, &a) < 0) return -1;
    int status = lora_py_expect(&a, 1, any);
    if (status == 0 && a.kind == LORA_PY_BF16) status = widen(&a);
    if (status == 0) *out = (lora_py_vector){.data = a.data, .n = a.n, .keep = lora_py_keep_export(state, &a)};
    lora_py_release(&a);
    return out->keep ? 0 : -1;
}
