/* GGMLTensor: an immutable matrix in a block format of GGUF files, read where the file is mapped or quantized here. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_dequantize.h"
#include "lora_c/bindings/py_deviceweight.h"

#include <string.h>

typedef lora_py_ggmltensor ggmltensor;

static void ggml_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    ggmltensor *self = (ggmltensor *)o;
    lora_ctx_free(self->base.ctx, self->owned);
    Py_XDECREF(self->borrowed);
    lora_py_delete(o);
}

static int ggml_traverse(PyObject *o, visitproc visit, void *arg) {
    Py_VISIT(((ggmltensor *)o)->borrowed);
    return lora_py_traverse(o, visit, arg);
}

static PyObject *ggml_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)type, (void)args, (void)kwargs;
    PyErr_SetString(PyExc_TypeError, "GGMLTensor: expected GGMLTensor.from_blocks(...) or GGMLTensor.quantize(w), got a plain call");
    return NULL;
}

static int type_of_name(const char *name, lora_ggml_type *out) {
    for (int i = 0; i < LORA_GGML_TYPE_END; i++)
        if (lora_ggml_block_values((lora_ggml_type)i) && strcmp(lora_ggml_type_name((lora_ggml_type)i), name) == 0) {
            *out = (lora_ggml_type)i;
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "type: expected one of F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, got '%s'", name);
    return -1;
}

/* Bytes of a matrix; -1 with an exception when the shape is none of the type's. Nothing is allocated before this check. */
static int64_t bytes_of(lora_ggml_type type, int64_t rows, int64_t cols) {
    int64_t values = lora_ggml_block_values(type), blocks, bytes;
    if (rows < 1 || cols < 1 || __builtin_mul_overflow(rows, cols / values, &blocks) ||
        __builtin_mul_overflow(blocks, lora_ggml_block_bytes(type), &bytes)) {
        PyErr_Format(PyExc_ValueError, "shape: expected two sizes >= 1, got (%lld, %lld)", (long long)rows, (long long)cols);
        return -1;
    }
    if (cols % values == 0) return bytes;
    PyErr_Format(PyExc_ValueError, "shape: expected a multiple of %lld columns for %s, got %lld", (long long)values,
                 lora_ggml_type_name(type), (long long)cols);
    return -1;
}

PyDoc_STRVAR(
    from_blocks_doc,
    "from_blocks($cls, blocks, shape, type)\n--\n\n"
    "Take a matrix as a GGUF file has it, without a copy. The memory is kept alive and must not change.\n\n"
    "Shapes\n------\nblocks (n_bytes,) uint8: rows of whole blocks, one behind the other.\n\n"
    "Parameters\n----------\n"
    "blocks : array\n    As they lie in the file.\n"
    "shape : tuple of two int\n    (out_features, in_features); in_features is a multiple of the block's weights.\n"
    "type : str\n    F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K.\n\n"
    "Returns\n-------\nGGMLTensor\n\n"
    "Raises\n------\nValueError\n    The size does not fit the shape, the type is another, or a block's scale is NaN or infinite.\n"
    "TypeError\n    blocks is no uint8 array.");

static PyObject *ggml_from_blocks(PyObject *cls, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"blocks", "shape", "type", NULL};
    PyObject *blocks;
    int64_t rows, cols;
    const char *name;
    lora_ggml_type type;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O(O&O&)s:from_blocks", names, &blocks, lora_py_whole, &rows, lora_py_whole, &cols,
                                     &name))
        return NULL;
    if (type_of_name(name, &type) < 0) return NULL;
    int64_t bytes = bytes_of(type, rows, cols);
    lora_py_array a;
    if (bytes < 0 || lora_py_get(blocks, "blocks", LORA_PY_U8, 0, &a) < 0) return NULL;
    if (a.n != bytes) {
        PyErr_Format(PyExc_ValueError, "blocks: expected %lld bytes for %s (%lld, %lld), got %lld", (long long)bytes,
                     lora_ggml_type_name(type), (long long)rows, (long long)cols, (long long)a.n);
        lora_py_release(&a);
        return NULL;
    }
    ggmltensor *self = lora_py_new((PyTypeObject *)cls);
    if (self && !(self->borrowed = lora_py_keep_export(lora_py_state_of((PyTypeObject *)cls), &a))) Py_CLEAR(self);
    lora_py_release(&a);
    if (!self) return NULL;
    self->ggml = (lora_ggml){.type = type, .rows = rows, .cols = cols, .blocks = a.data};
    self->bytes = (Py_ssize_t)bytes;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_ggml_check(self->base.ctx, &self->ggml, &err));
    if (status != LORA_OK) {
        Py_DECREF(self);
        return lora_py_raise(lora_py_state_of((PyTypeObject *)cls), &err);
    }
    return lora_py_publish(self);
}

PyDoc_STRVAR(quantize_doc, "quantize($cls, w, /, *, type=\'Q8_0\')\n--\n\n"
                           "Quantize a matrix to blocks of 32 8-bit codes.\n\n"
                           "Shapes\n------\nw (out_features, in_features), C-contiguous; in_features is a multiple of 32.\n\n"
                           "Parameters\n----------\n"
                           "w : array\n    float32, float16 or bfloat16 (ml_dtypes).\n"
                           "type : str\n    Q8_0; the other formats are read only.\n\n"
                           "Returns\n-------\nGGMLTensor\n\n"
                           "Raises\n------\n"
                           "ValueError\n    Not such a matrix, or a value is NaN, infinite or too large (its row is named).\n"
                           "TypeError\n    Another element type.\n\n"
                           "Notes\n-----\nByte-equal to the gguf package; the same bytes for any number of threads.");

static PyObject *ggml_quantize(PyObject *cls, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "type", NULL};
    PyObject *source;
    const char *name = "Q8_0";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$s:quantize", names, &source, &name)) return NULL;
    if (strcmp(name, "Q8_0") != 0) {
        PyErr_Format(PyExc_ValueError, "type: expected 'Q8_0', got '%s'; the other block formats are read only", name);
        return NULL;
    }
    lora_py_array w;
    const int64_t any[] = {-1, -1};
    if (lora_py_get(source, "w", LORA_PY_FLOATS, 0, &w) < 0) return NULL;
    int64_t bytes = lora_py_expect(&w, 2, any) < 0 ? -1 : bytes_of(LORA_GGML_Q8_0, w.shape[0], w.cols);
    ggmltensor *self = bytes < 0 ? NULL : lora_py_new((PyTypeObject *)cls);
    if (self && !(self->owned = lora_py_alloc(self->base.ctx, LORA_MEM_BASE, (size_t)bytes, "blocks"))) Py_CLEAR(self);
    if (self) {
        self->ggml = (lora_ggml){.type = LORA_GGML_Q8_0, .rows = w.shape[0], .cols = w.cols, .blocks = self->owned};
        self->bytes = (Py_ssize_t)bytes;
        lora_dtype dtype = w.kind == LORA_PY_F32 ? LORA_F32 : w.kind == LORA_PY_F16 ? LORA_F16 : LORA_BF16;
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status, lora_ggml_quantize_q8_0(self->base.ctx, w.data, dtype, w.shape[0], w.cols, self->owned, &err));
        if (status != LORA_OK) {
            Py_CLEAR(self);
            lora_py_raise(lora_py_state_of((PyTypeObject *)cls), &err);
        }
    }
    lora_py_release(&w);
    return lora_py_publish(self);
}

PyDoc_STRVAR(dequantize_doc, "dequantize($self, /, *, dtype=\'float32\', out=None)\n--\n\n"
                             "Decode the matrix in float32, then round each element once to dtype.\n\n" LORA_PY_DEQUANTIZE_DOC);

static lora_status decode(lora_ctx *ctx, const void *matrix, void *out, lora_dtype dtype, lora_error *err) {
    const lora_ggml *w = matrix;
    return lora_ggml_dequantize(ctx, w, 0, w->rows, out, dtype, err);
}

static PyObject *ggml_dequantize(PyObject *o, PyObject *args, PyObject *kwargs) {
    ggmltensor *self = (ggmltensor *)o;
    return lora_py_dequantize(o, self->base.ctx, &self->ggml, self->ggml.rows, self->ggml.cols, decode, args, kwargs);
}

static PyObject *ggml_repr(PyObject *o) {
    const ggmltensor *self = (const ggmltensor *)o;
    return PyUnicode_FromFormat("GGMLTensor(shape=(%lld, %lld), type='%s', nbytes=%zd)", (long long)self->ggml.rows,
                                (long long)self->ggml.cols, lora_ggml_type_name(self->ggml.type), self->bytes);
}

static int ggml_getbuffer(PyObject *o, Py_buffer *view, int flags) {
    ggmltensor *self = (ggmltensor *)o;
    return PyBuffer_FillInfo(view, o, (void *)self->ggml.blocks, self->bytes, 1, flags);
}

/* One getter for all attributes: the closure says which. */
enum { SHAPE, TYPE, BLOCK_SIZE, NBYTES, OWNS_BLOCKS, BLOCKS };

static PyObject *ggml_get(PyObject *o, void *which) {
    ggmltensor *self = (ggmltensor *)o;
    const int64_t shape[] = {self->ggml.rows, self->ggml.cols}, bytes = self->bytes;
    switch ((int)(intptr_t)which) {
    case SHAPE: return lora_py_shape(2, shape);
    case TYPE: return PyUnicode_FromString(lora_ggml_type_name(self->ggml.type));
    case BLOCK_SIZE: return PyLong_FromLongLong(lora_ggml_block_values(self->ggml.type));
    case NBYTES: return PyLong_FromSsize_t(self->bytes);
    case OWNS_BLOCKS: return PyBool_FromLong(self->owned != NULL);
    default: return lora_py_view(o, LORA_PY_U8, 1, &bytes, self->ggml.blocks, 0);
    }
}

#define GETTER(name, which, doc) {name, ggml_get, NULL, doc, (void *)(intptr_t)(which)}
static PyGetSetDef ggml_getset[] = {
    GETTER("shape", SHAPE, "(out_features, in_features)."),
    GETTER("type", TYPE, "The block format: Q8_0, Q4_K, ..."),
    GETTER("block_size", BLOCK_SIZE, "Weights per block; 1 for F16 and BF16."),
    GETTER("nbytes", NBYTES, "Bytes of the blocks."),
    GETTER("owns_blocks", OWNS_BLOCKS, "Whether the blocks are its own memory, as quantize() makes it; else from_blocks() borrowed them."),
    GETTER("blocks", BLOCKS, "The blocks, read-only, no copy."),
    {0},
};

LORA_PY_KEEP(ggml_from_blocks)
LORA_PY_KEEP(ggml_quantize)
LORA_PY_KEEP(ggml_dequantize)

static PyObject *ggml_repr_html(PyObject *o, PyObject *unused) {
    (void)unused;
    static const char *const attributes[] = {"shape", "type", "block_size", "nbytes", NULL};
    return lora_py_html(o, attributes);
}

static PyMethodDef ggml_methods[] = {
    {"from_blocks", LORA_PY_KEYWORDS ggml_from_blocks_kept, METH_VARARGS | METH_KEYWORDS | METH_CLASS, from_blocks_doc},
    {"quantize", LORA_PY_KEYWORDS ggml_quantize_kept, METH_VARARGS | METH_KEYWORDS | METH_CLASS, quantize_doc},
    {"dequantize", LORA_PY_KEYWORDS ggml_dequantize_kept, METH_VARARGS | METH_KEYWORDS, dequantize_doc},
    {"to", lora_py_weight_to, METH_VARARGS, lora_py_weight_to_doc},
    {"_repr_html_", ggml_repr_html, METH_NOARGS, "A table for notebooks."},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(ggml_doc, "A matrix in a block format of GGUF files, immutable. Made by from_blocks() or quantize().\n\n"
                       "The buffer protocol gives the blocks, read-only. Safe to share between threads.");

static PyType_Slot ggml_slots[] = {
    {Py_tp_new, ggml_new},         {Py_tp_dealloc, ggml_dealloc},     {Py_tp_traverse, ggml_traverse},
    {Py_tp_repr, ggml_repr},       {Py_tp_methods, ggml_methods},     {Py_tp_getset, ggml_getset},
    {Py_tp_doc, (void *)ggml_doc}, {Py_bf_getbuffer, ggml_getbuffer}, {0, NULL},
};

PyType_Spec lora_py_ggmltensor_spec = {
    .name = "lora_c._core.GGMLTensor",
    .basicsize = sizeof(ggmltensor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ggml_slots,
};
