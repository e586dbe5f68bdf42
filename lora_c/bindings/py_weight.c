/* Weights and vectors that are borrowed, and what owns their memory. */
#include "lora_c/bindings/py_array.h"

#include <string.h>

#include "lora_c/bindings/py_devicearray.h"
#include "lora_c/bindings/py_deviceweight.h"

static int weight_of_parameter(lora_py_parameter *p, const char *name, lora_py_weight *out) {
    if (p->ndim != 2) {
        PyErr_Format(PyExc_ValueError, "%s: expected a matrix, got a Parameter with %d dimensions", name, p->ndim);
        return -1;
    }
    out->w = lora_weight_f32(p->data, p->shape[0], p->shape[1], p->shape[1]);
    out->grad = p->grad;
    out->keep = Py_NewRef((PyObject *)p);
    out->there = 1;
    return 0;
}

/* Of an object that has memory of a device other than the CPU. */
static int same_place(const lora_ctx *ctx, PyObject *o, const char *name) {
    const lora_ctx *given = lora_py_device_of(o).ctx;
    lora_error err = {0};
    if (lora_py_same_memory(ctx, given)) {
        if (lora_device_check(ctx, &err) == LORA_OK) return 0;
        lora_py_raise(lora_py_state_of(Py_TYPE(o)), &err);
        return -1;
    }
    PyErr_Format(PyExc_ValueError, "%s: expected memory of device %s, got a %s on device %s%s; use its to('cpu')", name,
                 lora_ctx_device(ctx), lora_py_is_devicearray(o) ? "DeviceArray" : "DeviceWeight", lora_ctx_device(given),
                 lora_py_other_loading(ctx, given));
    return -1;
}

static int weight_there(const lora_ctx *ctx, PyObject *o, const char *name, lora_py_weight *out) {
    const int64_t any[] = {-1, -1};
    lora_py_array a;
    if (same_place(ctx, o, name) < 0 || lora_py_get_on(ctx, o, name, LORA_PY_F32 | LORA_PY_BF16, 0, &a) < 0) return -1;
    int status = lora_py_expect(&a, 2, any);
    out->w = lora_weight_dense(a.kind == LORA_PY_F32 ? LORA_WEIGHT_F32 : LORA_WEIGHT_BF16, a.data, a.shape[0], a.cols, a.cols);
    if (status == 0) out->keep = Py_NewRef(o);
    out->there = 1;
    lora_py_release(&a);
    return status;
}

int lora_py_get_weight(lora_py_state *state, const lora_ctx *ctx, PyObject *o, const char *name, lora_py_weight *out) {
    *out = (lora_py_weight){.there = lora_py_is_host(ctx)};
    if (Py_IS_TYPE(o, state->devicearray_type)) return weight_there(ctx, o, name, out);
    if (Py_IS_TYPE(o, state->deviceweight_type)) {
        if (same_place(ctx, o, name) < 0) return -1;
        *out = (lora_py_weight){.w = ((lora_py_deviceweight *)o)->w, .keep = Py_NewRef(o), .there = 1};
        return 0;
    }
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
        *out = (lora_py_vector){.data = p->data, .n = p->size, .grad = p->grad, .keep = Py_NewRef(o), .there = 1};
        return 0;
    }
    lora_py_array a;
    const int64_t any[] = {-1};
    if (Py_IS_TYPE(o, state->devicearray_type)) {
        if (same_place(ctx, o, name) < 0 || lora_py_get_on(ctx, o, name, LORA_PY_F32, 0, &a) < 0) return -1;
        int fits = lora_py_expect(&a, 1, any) == 0;
        if (fits) *out = (lora_py_vector){.data = a.data, .n = a.n, .keep = Py_NewRef(o), .there = 1};
        lora_py_release(&a);
        return fits ? 0 : -1;
    }
    if (lora_py_get(o, name, LORA_PY_F32 | LORA_PY_BF16, 0, &a) < 0) return -1;
    int status = lora_py_expect(&a, 1, any);
    if (status == 0 && a.kind == LORA_PY_BF16) status = widen(&a);
    if (status == 0)
        *out = (lora_py_vector){.data = a.data, .n = a.n, .keep = lora_py_keep_export(state, &a), .there = lora_py_is_host(ctx)};
    lora_py_release(&a);
    return out->keep ? 0 : -1;
}
