/* Weights and vectors that are borrowed, and what owns their memory. */
#include "lora_c/bindings/py_array.h"

static int weight_of_parameter(lora_py_parameter *p, const char *name, lora_py_weight *out) {
    if (p->ndim != 2) {
        PyErr_Format(PyExc_ValueError, "%s: expected a matrix, got a Parameter with %d dimensions", name, p->ndim);
        return -1;
    }
    out->w = (lora_weight){.kind = LORA_WEIGHT_F32, .rows = p->shape[0], .cols = p->shape[1], .ld = p->shape[1], .data = p->data};
    out->grad = p->grad;
    out->keep = Py_NewRef((PyObject *)p);
    return 0;
}

int lora_py_get_weight(lora_py_state *state, PyObject *o, const char *name, lora_py_weight *out) {
    *out = (lora_py_weight){0};
    if (Py_IS_TYPE(o, state->nf4_type)) {
        lora_py_nf4tensor *t = (lora_py_nf4tensor *)o;
        out->w = (lora_weight){.kind = LORA_WEIGHT_NF4, .rows = t->nf4.rows, .cols = t->nf4.cols, .ld = t->nf4.cols, .nf4 = &t->nf4};
        out->keep = Py_NewRef(o);
        return 0;
    }
    if (Py_IS_TYPE(o, state->ggml_type)) {
        lora_py_ggmltensor *t = (lora_py_ggmltensor *)o;
        out->w = (lora_weight){.kind = LORA_WEIGHT_GGML, .rows = t->ggml.rows, .cols = t->ggml.cols, .ld = t->ggml.cols, .ggml = &t->ggml};
        out->keep = Py_NewRef(o);
        return 0;
    }
    if (Py_IS_TYPE(o, state->parameter_type)) return weight_of_parameter((lora_py_parameter *)o, name, out);
    lora_py_array a;
    const int64_t any[] = {-1, -1};
    if (lora_py_get(o, name, LORA_PY_F32 | LORA_PY_BF16, 0, &a) < 0) return -1;
    lora_weight_kind kind = a.kind == LORA_PY_F32 ? LORA_WEIGHT_F32 : LORA_WEIGHT_BF16;
    out->w = (lora_weight){.kind = kind, .rows = a.shape[0], .cols = a.cols, .ld = a.cols, .data = a.data};
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

int lora_py_get_vector(lora_py_state *state, PyObject *o, const char *name, const float **data, int64_t *n, float **grad,
                       PyObject **keep) {
    *grad = NULL;
    *keep = NULL;
    if (Py_IS_TYPE(o, state->parameter_type)) {
        lora_py_parameter *p = (lora_py_parameter *)o;
        if (p->ndim != 1) {
            PyErr_Format(PyExc_ValueError, "%s: expected a vector, got a Parameter with %d dimensions", name, p->ndim);
            return -1;
        }
        *data = p->data;
        *n = p->size;
        *grad = p->grad;
        *keep = Py_NewRef(o);
        return 0;
    }
    lora_py_array a;
    const int64_t any[] = {-1};
    if (lora_py_get(o, name, LORA_PY_F32 | LORA_PY_BF16, 0, &a) < 0) return -1;
    int status = lora_py_expect(&a, 1, any);
    if (status == 0 && a.kind == LORA_PY_BF16) status = widen(&a);
    if (status == 0) {
        *n = a.n;
        *data = a.data;
        *keep = lora_py_keep_export(state, &a);
    }
    lora_py_release(&a);
    return *keep ? 0 : -1;
}
