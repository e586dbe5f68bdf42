#include "lora_c/bindings/py_dequantize.h"

#include "lora_c/bindings/py_array.h"

static lora_dtype dtype_of(lora_py_kind kind) { return kind == LORA_PY_F32 ? LORA_F32 : kind == LORA_PY_F16 ? LORA_F16 : LORA_BF16; }

PyObject *lora_py_dequantize(PyObject *o, lora_ctx *ctx, const void *matrix, int64_t rows, int64_t cols, lora_py_decode decode,
                             PyObject *args, PyObject *kwargs) {
    static char *names[] = {"dtype", "out", NULL};
    lora_py_kind kind = LORA_PY_F32;
    PyObject *out = Py_None, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O&O:dequantize", names, lora_py_dtype, &kind, &out)) return NULL;
    lora_py_state *state = lora_py_state_of(Py_TYPE(o));
    const int64_t shape[] = {rows, cols};
    lora_py_array given = {0};
    void *data = NULL;
    if (out == Py_None) {
        result = lora_py_new_array(kind, 2, shape, 0, &data);
    } else if (lora_py_get(out, "out", kind, LORA_PY_WRITABLE, &given) == 0) {
        data = given.data;
        int fits = lora_py_expect(&given, 2, shape) == 0 && lora_py_apart_from_owner(state, &given, "the tensor", o) == 0;
        result = fits ? Py_NewRef(out) : NULL;
    }
    if (result) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(ctx, status, decode(ctx, matrix, data, dtype_of(kind), &err));
        if (status != LORA_OK) {
            Py_CLEAR(result);
            lora_py_raise(state, &err);
        }
    }
    lora_py_release(&given);
    return result;
}
