/* meta_weight(): a frozen matrix on the device "meta", of which there are sizes alone. */
#include "lora_c/bindings/py_deviceweight.h"

#include <string.h>

PyDoc_STRVAR(meta_weight_doc,
             "meta_weight($module, rows, cols, kind, /, block_size=64, double_quant=True, device='meta')\n--\n\n"
             "Return a DeviceWeight on the device 'meta', or on 'meta:8.6': it has the bytes of a matrix, and no memory.\n\n"
             "Parameters\n----------\n"
             "rows, cols : int\n    out_features, in_features.\n"
             "kind : str\n    'float32', 'bfloat16', '4bit', or a block format of GGUF files such as 'Q8_0'.\n"
             "block_size, double_quant\n    Of '4bit': weights of a scale; whether the scales are quantized, too.\n\n"
             "Raises\n------\nValueError\n    There is no such kind, or no such matrix of it.");

/* bytes: of all that the pointers of a weight stand for, which are filled later. */
static int describe_4bit(int64_t block_size, int double_quant, lora_weight *w, int64_t *bytes) {
    if (block_size < 1) {
        PyErr_Format(PyExc_ValueError, "block_size: expected 1 or more, got %lld", (long long)block_size);
        return -1;
    }
    const int64_t blocks = lora_nf4_blocks(w->rows, w->cols, block_size);
    w->kind = LORA_WEIGHT_NF4;
    w->nf4 = (lora_nf4){.rows = w->rows, .cols = w->cols, .block_size = block_size, .nested_block_size = LORA_NF4_NESTED_BLOCK};
    *bytes = lora_nf4_code_bytes(w->rows, w->cols);
    *bytes += double_quant ? blocks + (blocks + LORA_NF4_NESTED_BLOCK - 1) / LORA_NF4_NESTED_BLOCK * (int64_t)sizeof(float)
                           : blocks * (int64_t)sizeof(float);
    return 0;
}

/* LORA_GGML_TYPE_END with an exception where there is none. */
static lora_ggml_type ggml_type_of(const char *kind) {
    for (int type = 0; type < LORA_GGML_TYPE_END; type++)
        if (lora_ggml_block_values((lora_ggml_type)type) > 0 && strcmp(lora_ggml_type_name((lora_ggml_type)type), kind) == 0)
            return (lora_ggml_type)type;
    PyErr_Format(PyExc_ValueError, "kind: expected float32, bfloat16, 4bit or a block format of GGUF files, got '%s'", kind);
    return LORA_GGML_TYPE_END;
}

static int describe_ggml(const char *kind, lora_weight *w, int64_t *bytes) {
    const lora_ggml_type type = ggml_type_of(kind);
    if (type == LORA_GGML_TYPE_END) return -1;
    const int64_t values = lora_ggml_block_values(type);
    if (w->cols % values != 0) {
        PyErr_Format(PyExc_ValueError, "cols: expected a multiple of %lld for %s, got %lld", (long long)values, kind, (long long)w->cols);
        return -1;
    }
    w->kind = LORA_WEIGHT_GGML;
    w->ggml = (lora_ggml){.type = type, .rows = w->rows, .cols = w->cols};
    *bytes = w->rows * (w->cols / values) * lora_ggml_block_bytes(type);
    return 0;
}

static int describe(const char *kind, int64_t block_size, int double_quant, lora_weight *w, int64_t *bytes) {
    const int is_float = strcmp(kind, "float32") == 0;
    int64_t n;
    if (w->rows < 1 || w->cols < 1 || __builtin_mul_overflow(w->rows, w->cols, &n) || n > INT64_MAX / 8) {
        PyErr_Format(PyExc_ValueError, "rows, cols: expected sizes of a matrix, got %lld and %lld", (long long)w->rows, (long long)w->cols);
        return -1;
    }
    if (strcmp(kind, "4bit") == 0) return describe_4bit(block_size, double_quant, w, bytes);
    if (!is_float && strcmp(kind, "bfloat16") != 0) return describe_ggml(kind, w, bytes);
    *w = lora_weight_dense(is_float ? LORA_WEIGHT_F32 : LORA_WEIGHT_BF16, NULL, w->rows, w->cols, w->cols);
    *bytes = n * (is_float ? 4 : 2);
    return 0;
}

/* Nobody reads there: that they are not NULL says which arrays the weight has. */
static void point(lora_weight *w, int double_quant, const void *at) {
    if (w->kind == LORA_WEIGHT_GGML) {
        w->ggml.blocks = at;
    } else if (w->kind != LORA_WEIGHT_NF4) {
        w->dense.data = at;
    } else {
        w->nf4.lut = at;
        w->nf4.codes = at;
        w->nf4.absmax = double_quant ? NULL : at;
        w->nf4.absmax_codes = double_quant ? at : NULL;
        w->nf4.nested_absmax = w->nf4.nested_map = double_quant ? at : NULL;
    }
}

static PyObject *meta_weight(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "block_size", "double_quant", "device", NULL};
    lora_py_state *state = PyModule_GetState(module);
    lora_weight w = {0};
    int64_t block_size = LORA_NF4_BLOCK, bytes = 0;
    int double_quant = 1;
    const char *kind, *name = "meta";
    lora_py_device device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&s|O&ps:meta_weight", names, lora_py_whole, &w.rows, lora_py_whole, &w.cols, &kind,
                                     lora_py_whole, &block_size, &double_quant, &name) ||
        describe(kind, block_size, double_quant, &w, &bytes) < 0 || lora_py_find_device(state, name, &device) < 0)
        return NULL;
    lora_py_deviceweight *self = lora_py_new(state->deviceweight_type);
    if (!self) return NULL;
    lora_py_put_on(self, device);
    self->memory = lora_ctx_alloc_uncleared(device.ctx, LORA_MEM_BASE, (size_t)bytes);
    if (!self->memory) PyErr_NoMemory();
    point(&w, double_quant, self->memory);
    self->w = w;
    if (!self->memory || !(self->text = PyUnicode_FromFormat("%lld x %lld %s", (long long)w.rows, (long long)w.cols, kind))) Py_CLEAR(self);
    return lora_py_publish(self);
}

PyDoc_STRVAR(ggml_block_doc, "ggml_block($module, kind, /)\n--\n\nReturn (weights, bytes) of a block of a format of GGUF files.\n\n"
                             "Raises\n------\nValueError\n    It is not read.");

static PyObject *ggml_block(PyObject *module, PyObject *args) {
    const char *kind;
    (void)module;
    if (!PyArg_ParseTuple(args, "s:ggml_block", &kind)) return NULL;
    const lora_ggml_type type = ggml_type_of(kind);
    if (type == LORA_GGML_TYPE_END) return NULL;
    return Py_BuildValue("(LL)", (long long)lora_ggml_block_values(type), (long long)lora_ggml_block_bytes(type));
}

LORA_PY_KEEP(meta_weight)

PyMethodDef lora_py_meta_functions[] = {
    {"ggml_block", ggml_block, METH_VARARGS, ggml_block_doc},
    {"meta_weight", LORA_PY_KEYWORDS meta_weight_kept, METH_VARARGS | METH_KEYWORDS, meta_weight_doc},
    {0},
};
