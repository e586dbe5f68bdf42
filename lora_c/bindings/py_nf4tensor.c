/* NF4Tensor: an immutable 4-bit matrix, in NF4 or another type of its layout. Its memory never moves, so buffer exports and views need no
 * counter. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_dequantize.h"
#include "lora_c/bindings/py_deviceweight.h"
#include "lora_c/bindings/py_devices.h"
#include "lora_c/bindings/py_quantize.h"

#include <limits.h>
#include <math.h>
#include <string.h>

typedef lora_py_nf4tensor nf4tensor;

static void nf4_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    nf4tensor *self = (nf4tensor *)o;
    lora_ctx_free(self->base.ctx, self->codes);
    Py_XDECREF(self->borrowed);
    lora_ctx_free(self->base.ctx, self->absmax);
    lora_ctx_free(self->base.ctx, self->absmax_codes);
    lora_ctx_free(self->base.ctx, self->nested_absmax);
    lora_ctx_free(self->base.ctx, self->tables);
    lora_py_delete(o);
}

static PyObject *nf4_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)type, (void)args, (void)kwargs;
    PyErr_SetString(PyExc_TypeError, "NF4Tensor: expected NF4Tensor.quantize(w) or NF4Tensor.from_parts(...), got a plain call");
    return NULL;
}

static int check_block_size(int64_t n) {
    if (n >= 32 && n <= 4096 && (n & (n - 1)) == 0) return 0;
    PyErr_Format(PyExc_ValueError, "block_size: expected 32, 64, 128, 256, 512, 1024, 2048 or 4096, got %lld", (long long)n);
    return -1;
}

static int type_of_name(const char *name, lora_4bit_type *out) {
    for (int i = 0; i < LORA_4BIT_END; i++)
        if (strcmp(lora_4bit_name((lora_4bit_type)i), name) == 0) {
            *out = (lora_4bit_type)i;
            return 0;
        }
    PyErr_Format(PyExc_ValueError, "quant_type: expected 'nf4', 'fp4', 'fp4_e2m1' or 'int4', got '%s'", name);
    return -1;
}

typedef struct nf4_parts {
    PyObject *codes, *absmax, *absmax_codes, *nested_absmax, *nested_map, *lut;
    int64_t rows, cols, block_size, nested_block_size;
    double nested_offset;
    const char *quant_type;
    lora_4bit_type type;
    int borrow_codes;
} nf4_parts;

/* An empty tensor whose codes are to be set. */
static nf4tensor *without_codes(PyTypeObject *cls, lora_4bit_type type, int64_t rows, int64_t cols, int64_t block_size) {
    nf4tensor *self = lora_py_new(cls);
    if (!self) return NULL;
    self->type = type;
    self->n_blocks = lora_nf4_blocks(rows, cols, block_size);
    self->code_bytes = (Py_ssize_t)lora_nf4_code_bytes(rows, cols);
    self->nf4 = (lora_nf4){.rows = rows, .cols = cols, .block_size = block_size, .lut = lora_4bit_lut(type)};
    return self;
}

/* An empty tensor with room for its codes. */
static nf4tensor *allocate(PyTypeObject *cls, lora_4bit_type type, int64_t rows, int64_t cols, int64_t block_size) {
    nf4tensor *self = without_codes(cls, type, rows, cols, block_size);
    if (!self) return NULL;
    self->codes = lora_py_alloc(self->base.ctx, LORA_MEM_BASE, (size_t)self->code_bytes, "codes");
    self->nf4.codes = self->codes;
    if (!self->codes) Py_CLEAR(self);
    return self;
}

/* A tensor of parts with codes that are copied, or stay where they are. */
static nf4tensor *with_codes(PyTypeObject *cls, const nf4_parts *p, lora_py_array *codes) {
    if (!p->borrow_codes) {
        nf4tensor *self = allocate(cls, p->type, p->rows, p->cols, p->block_size);
        if (self) memcpy(self->codes, codes->data, (size_t)self->code_bytes);
        return self;
    }
    nf4tensor *self = without_codes(cls, p->type, p->rows, p->cols, p->block_size);
    if (!self) return NULL;
    self->nf4.codes = codes->data;
    self->borrowed = lora_py_keep_export(lora_py_state_of(cls), codes);
    if (!self->borrowed) Py_CLEAR(self);
    return self;
}

static int allocate_nested(nf4tensor *self, int64_t nested_block_size) {
    self->n_nested = (self->n_blocks - 1) / nested_block_size + 1;
    self->absmax_codes = lora_py_alloc(self->base.ctx, LORA_MEM_BASE, (size_t)self->n_blocks, "absmax_codes");
    if (!self->absmax_codes) return -1;
    self->nested_absmax = lora_py_alloc(self->base.ctx, LORA_MEM_BASE, (size_t)self->n_nested * sizeof(float), "nested_absmax");
    if (!self->nested_absmax) return -1;
    self->nf4.absmax_codes = self->absmax_codes;
    self->nf4.nested_absmax = self->nested_absmax;
    self->nf4.nested_map = lora_dynamic_map_signed();
    self->nf4.nested_block_size = nested_block_size;
    return 0;
}

PyDoc_STRVAR(quantize_doc,
             "quantize($type, w, /, *, block_size=64, double_quant=True, quant_type='nf4', device='cpu')\n--\n\n"
             "Quantize a matrix to 4-bit NormalFloat, or to a type that it is compared with.\n\n"
             "Shapes\n------\nw (out_features, in_features), C-contiguous.\n\n"
             "Parameters\n----------\n"
             "w : array\n    float32, float16 or bfloat16 (ml_dtypes).\n"
             "block_size : int\n    Weights per scale: 32, 64, ... 4096.\n"
             "double_quant : bool\n    Quantize the scales too: 8 bits each, blocks of 256.\n"
             "quant_type : 'nf4', 'fp4', 'fp4_e2m1' or 'int4'\n    NormalFloat; bitsandbytes' FP4; the float E2M1 (0, 0.5, 1, "
             "1.5, 2, 3, 4, 6 over 6);\n    integers from -7 to 7, over 7.\n"
             "device : str\n    Where it is computed, a name of devices(); the tensor's memory is the host's.\n\n"
             "Returns\n-------\nNF4Tensor\n\n"
             "Raises\n------\n"
             "ValueError\n    Not a matrix, not contiguous, empty, or a value is NaN or infinite (the first is named).\n"
             "TypeError\n    Another element type.\n"
             "DeviceError\n    The device cannot be used.\n"
             "MemoryError\n    It has no room for the matrix.\n\n"
             "Notes\n-----\nThe nearest value, a tie to the lower one. NF4 and FP4 are byte-equal to bitsandbytes; the same bytes for any\n"
             "number of threads and on every device.\n\n"
             "Source\n------\nQLoRA, arXiv:2305.14314, section 3.");

static PyObject *nf4_quantize(PyObject *cls, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "block_size", "double_quant", "quant_type", "device", NULL};
    PyObject *source;
    const char *name = lora_4bit_name(LORA_4BIT_NF4), *device_name = "cpu";
    lora_4bit_type type;
    lora_py_device device;
    int64_t block_size = LORA_NF4_BLOCK;
    int double_quant = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O&pss:quantize", names, &source, lora_py_whole, &block_size, &double_quant, &name,
                                     &device_name))
        return NULL;
    if (lora_py_find_device(lora_py_state_of((PyTypeObject *)cls), device_name, &device) < 0) return NULL;
    lora_py_array w;
    const int64_t any[] = {-1, -1};
    if (check_block_size(block_size) < 0 || type_of_name(name, &type) < 0 || lora_py_get(source, "w", LORA_PY_FLOATS, 0, &w) < 0)
        return NULL;
    nf4tensor *self = lora_py_expect(&w, 2, any) < 0 ? NULL : allocate((PyTypeObject *)cls, type, w.shape[0], w.cols, block_size);
    if (!self) goto fail;
    self->absmax = lora_py_alloc(self->base.ctx, LORA_MEM_BASE, (size_t)self->n_blocks * sizeof(float), "absmax");
    if (!self->absmax || (double_quant && allocate_nested(self, LORA_NF4_NESTED_BLOCK) < 0)) goto fail;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(device.ctx, status, lora_py_fill_nf4(device.ctx, self, &w, &err));
    if (status != LORA_OK) {
        lora_py_raise(lora_py_state_of((PyTypeObject *)cls), &err);
        goto fail;
    }
    if (double_quant) {
        lora_ctx_free(self->base.ctx, self->absmax);
        self->absmax = NULL;
    }
    self->nf4.absmax = self->absmax;
    lora_py_release(&w);
    return lora_py_publish(self);
fail:
    Py_XDECREF(self);
    lora_py_release(&w);
    return NULL;
}

/* Copies an array of n elements; NULL with an exception. */
static void *copy_part(lora_ctx *ctx, PyObject *o, const char *name, lora_py_kind kind, int64_t n) {
    lora_py_array a;
    if (lora_py_get(o, name, kind, 0, &a) < 0) return NULL;
    void *copy = NULL;
    size_t bytes = (size_t)n * (size_t)a.itemsize;
    if (a.n != n)
        PyErr_Format(PyExc_ValueError, "%s: expected %lld elements, got %lld", name, (long long)n, (long long)a.n);
    else if ((copy = lora_py_alloc(ctx, LORA_MEM_BASE, bytes, name)))
        memcpy(copy, a.data, bytes);
    lora_py_release(&a);
    return copy;
}

/* The 16 code values and, where given, the 256 values of the scales' map. */
static int copy_tables(nf4tensor *self, PyObject *lut, PyObject *map) {
    if (lut == Py_None && map == Py_None) return 0;
    self->tables = lora_py_alloc(self->base.ctx, LORA_MEM_BASE, (16 + 256) * sizeof(float), "lut");
    if (!self->tables) return -1;
    struct {
        PyObject *o;
        const char *name;
        int64_t n;
        float *to;
        const float **used;
    } parts[] = {{lut, "lut", 16, self->tables, &self->nf4.lut}, {map, "nested_map", 256, self->tables + 16, &self->nf4.nested_map}};
    for (int i = 0; i < 2; i++) {
        if (parts[i].o == Py_None) continue;
        lora_py_array a;
        if (lora_py_get(parts[i].o, parts[i].name, LORA_PY_F32, 0, &a) < 0) return -1;
        int status = lora_py_expect(&a, 1, &parts[i].n);
        if (status == 0) memcpy(parts[i].to, a.data, (size_t)parts[i].n * sizeof(float));
        lora_py_release(&a);
        if (status < 0) return -1;
        *parts[i].used = parts[i].to;
    }
    return 0;
}

static int check_parts(nf4_parts *p) {
    int64_t elements;
    if (p->rows < 1 || p->cols < 1 || __builtin_mul_overflow(p->rows, p->cols, &elements) || elements == INT64_MAX) {
        PyErr_Format(PyExc_ValueError, "shape: expected two sizes >= 1, got (%lld, %lld)", (long long)p->rows, (long long)p->cols);
        return -1;
    }
    if (check_block_size(p->block_size) < 0) return -1;
    if (type_of_name(p->quant_type, &p->type) < 0) return -1;
    if ((p->absmax == Py_None) == (p->absmax_codes == Py_None)) {
        PyErr_SetString(PyExc_ValueError, "absmax: expected either absmax or absmax_codes, got both or neither");
        return -1;
    }
    if (p->absmax_codes != Py_None && p->nested_absmax == Py_None) {
        PyErr_SetString(PyExc_ValueError, "nested_absmax: expected an array next to absmax_codes, got None");
        return -1;
    }
    if (p->absmax != Py_None && (p->nested_absmax != Py_None || p->nested_map != Py_None)) {
        PyErr_SetString(PyExc_ValueError, "nested_absmax: expected None next to absmax, got an array");
        return -1;
    }
    if (p->nested_block_size < 1 || !isfinite(p->nested_offset)) {
        PyErr_SetString(PyExc_ValueError, "nested_block_size, nested_offset: expected a size >= 1 and a finite number");
        return -1;
    }
    return 0;
}

static int fill_from_parts(nf4tensor *self, const nf4_parts *p) {
    lora_ctx *ctx = self->base.ctx;
    if (p->absmax != Py_None) {
        self->absmax = copy_part(ctx, p->absmax, "absmax", LORA_PY_F32, self->n_blocks);
        self->nf4.absmax = self->absmax;
        return self->absmax ? copy_tables(self, p->lut, Py_None) : -1;
    }
    self->n_nested = (self->n_blocks - 1) / p->nested_block_size + 1;
    self->absmax_codes = copy_part(ctx, p->absmax_codes, "absmax_codes", LORA_PY_U8, self->n_blocks);
    if (!self->absmax_codes) return -1;
    self->nested_absmax = copy_part(ctx, p->nested_absmax, "nested_absmax", LORA_PY_F32, self->n_nested);
    if (!self->nested_absmax) return -1;
    self->nf4.absmax_codes = self->absmax_codes;
    self->nf4.nested_absmax = self->nested_absmax;
    self->nf4.nested_block_size = p->nested_block_size;
    self->nf4.nested_offset = (float)p->nested_offset;
    self->nf4.nested_map = lora_dynamic_map_signed();
    return copy_tables(self, p->lut, p->nested_map);
}

PyDoc_STRVAR(from_parts_doc,
             "from_parts($type, codes, shape, *, block_size=64, absmax=None, absmax_codes=None, nested_absmax=None, nested_map=None, "
             "nested_offset=0.0, nested_block_size=256, quant_type='nf4', lut=None, borrow_codes=False)\n--\n\n"
             "Make a tensor from stored parts, as a bitsandbytes checkpoint has them. The parts are copied.\n\n"
             "Shapes\n------\n"
             "codes ((rows * cols + 1) // 2,) uint8, the even element in the high nibble; absmax (n_blocks,) float32, or absmax_codes\n"
             "(n_blocks,) uint8 with nested_absmax (ceil(n_blocks / nested_block_size),) float32; lut (16,), nested_map (256,) float32.\n\n"
             "Parameters\n----------\n"
             "codes : array\n    Two to a byte.\n"
             "shape : tuple of two int\n    (out_features, in_features).\n"
             "block_size : int\n    Weights per scale.\n"
             "absmax : array, optional\n    Scales in float32. Give either this or absmax_codes.\n"
             "absmax_codes, nested_absmax : array, optional\n    Scales that are quantized themselves, and the scales of those.\n"
             "nested_block_size : int\n    Scales per nested scale.\n"
             "nested_offset : float\n    Mean of the scales, which is added to each decoded scale.\n"
             "quant_type : 'nf4', 'fp4', 'fp4_e2m1' or 'int4'\n    What the codes mean.\n"
             "lut, nested_map : array, optional\n    Tables that differ from the built-in ones.\n"
             "borrow_codes : bool\n    Use codes where they lie, which nobody changes and behind which 64 more bytes can be read.\n\n"
             "Returns\n-------\nNF4Tensor\n\n"
             "Raises\n------\nValueError\n    A size does not fit the shape, or parts contradict each other.\n"
             "TypeError\n    A part has another element type.");

static PyObject *nf4_from_parts(PyObject *cls, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"codes",      "shape",         "block_size",        "absmax",     "absmax_codes", "nested_absmax",
                            "nested_map", "nested_offset", "nested_block_size", "quant_type", "lut",          "borrow_codes",
                            NULL};
    nf4_parts p = {.absmax = Py_None,
                   .absmax_codes = Py_None,
                   .nested_absmax = Py_None,
                   .nested_map = Py_None,
                   .lut = Py_None,
                   .block_size = LORA_NF4_BLOCK,
                   .nested_block_size = LORA_NF4_NESTED_BLOCK,
                   .quant_type = lora_4bit_name(LORA_4BIT_NF4)};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O(O&O&)|$O&OOOOdO&sOp:from_parts", names, &p.codes, lora_py_whole, &p.rows,
                                     lora_py_whole, &p.cols, lora_py_whole, &p.block_size, &p.absmax, &p.absmax_codes, &p.nested_absmax,
                                     &p.nested_map, &p.nested_offset, lora_py_whole, &p.nested_block_size, &p.quant_type, &p.lut,
                                     &p.borrow_codes))
        return NULL;
    if (check_parts(&p) < 0) return NULL;
    lora_py_array codes;
    if (lora_py_get(p.codes, "codes", LORA_PY_U8, 0, &codes) < 0) return NULL;
    int64_t expected = lora_nf4_code_bytes(p.rows, p.cols);
    nf4tensor *self = NULL;
    if (codes.n != expected) /* checked before anything is allocated from the shape */
        PyErr_Format(PyExc_ValueError, "codes: expected %lld bytes for shape (%lld, %lld), got %lld", (long long)expected,
                     (long long)p.rows, (long long)p.cols, (long long)codes.n);
    else
        self = with_codes((PyTypeObject *)cls, &p, &codes);
    lora_py_release(&codes);
    if (self && fill_from_parts(self, &p) < 0) Py_CLEAR(self);
    return lora_py_publish(self);
}

PyDoc_STRVAR(dequantize_doc, "dequantize($self, /, *, dtype=\'float32\', out=None)\n--\n\n"
                             "Decode the matrix: lut[code] * absmax, one rounding per element.\n\n" LORA_PY_DEQUANTIZE_DOC);

static lora_status decode(lora_ctx *ctx, const void *matrix, void *out, lora_dtype dtype, lora_error *err) {
    const lora_nf4 *w = matrix;
    return lora_nf4_dequantize(ctx, w, 0, w->rows * w->cols, out, dtype, err);
}

static PyObject *nf4_dequantize(PyObject *o, PyObject *args, PyObject *kwargs) {
    nf4tensor *self = (nf4tensor *)o;
    return lora_py_dequantize(o, self->base.ctx, &self->nf4, self->nf4.rows, self->nf4.cols, decode, args, kwargs);
}

static Py_ssize_t total_bytes(const nf4tensor *self) {
    if (self->absmax) return self->code_bytes + (Py_ssize_t)self->n_blocks * 4;
    return self->code_bytes + (Py_ssize_t)(self->n_blocks + self->n_nested * 4);
}

static PyObject *nf4_repr(PyObject *o) {
    const nf4tensor *self = (const nf4tensor *)o;
    double bytes = (double)total_bytes(self);
    char size[32];
    if (bytes < 1e6)
        PyOS_snprintf(size, sizeof size, "%.1f kB", bytes / 1e3);
    else
        PyOS_snprintf(size, sizeof size, bytes < 1e9 ? "%.1f MB" : "%.2f GB", bytes / (bytes < 1e9 ? 1e6 : 1e9));
    bool is_nf4 = self->type == LORA_4BIT_NF4;
    return PyUnicode_FromFormat("NF4Tensor(shape=(%lld, %lld), block_size=%lld, double_quant=%s%s%s%s, %s)", (long long)self->nf4.rows,
                                (long long)self->nf4.cols, (long long)self->nf4.block_size, self->absmax ? "False" : "True",
                                is_nf4 ? "" : ", quant_type='", is_nf4 ? "" : lora_4bit_name(self->type), is_nf4 ? "" : "'", size);
}

static int nf4_getbuffer(PyObject *o, Py_buffer *view, int flags) {
    nf4tensor *self = (nf4tensor *)o;
    return PyBuffer_FillInfo(view, o, (void *)self->nf4.codes, self->code_bytes, 1, flags);
}

/* One getter for all attributes: the closure says which. */
enum {
    SHAPE,
    BLOCK_SIZE,
    DOUBLE_QUANT,
    NBYTES,
    CODES,
    ABSMAX,
    ABSMAX_CODES,
    NESTED_ABSMAX,
    NESTED_OFFSET,
    NESTED_MAP,
    NESTED_BLOCK,
    QUANT_TYPE,
    LUT
};

static PyObject *part_view(PyObject *o, lora_py_kind kind, int64_t n, const void *data) {
    return data ? lora_py_view(o, kind, 1, &n, data, 0) : Py_NewRef(Py_None);
}

static PyObject *nf4_get(PyObject *o, void *which) {
    nf4tensor *self = (nf4tensor *)o;
    const lora_nf4 *w = &self->nf4;
    const int64_t shape[] = {w->rows, w->cols};
    switch ((int)(intptr_t)which) {
    case SHAPE: return lora_py_shape(2, shape);
    case BLOCK_SIZE: return PyLong_FromLongLong(w->block_size);
    case DOUBLE_QUANT: return PyBool_FromLong(!self->absmax);
    case NBYTES: return PyLong_FromSsize_t(total_bytes(self));
    case CODES: return part_view(o, LORA_PY_U8, self->code_bytes, self->nf4.codes);
    case ABSMAX: return part_view(o, LORA_PY_F32, self->n_blocks, self->absmax);
    case ABSMAX_CODES: return part_view(o, LORA_PY_U8, self->n_blocks, self->absmax_codes);
    case NESTED_ABSMAX: return part_view(o, LORA_PY_F32, self->n_nested, self->nested_absmax);
    case NESTED_OFFSET: return PyFloat_FromDouble((double)w->nested_offset);
    case NESTED_MAP: return part_view(o, LORA_PY_F32, 256, w->nested_map);
    case NESTED_BLOCK: return PyLong_FromLongLong(self->absmax ? 0 : w->nested_block_size);
    case QUANT_TYPE: return PyUnicode_FromString(lora_4bit_name(self->type));
    default: return part_view(o, LORA_PY_F32, 16, w->lut);
    }
}

#define GETTER(name, which, doc) {name, nf4_get, NULL, doc, (void *)(intptr_t)(which)}
static PyGetSetDef nf4_getset[] = {
    GETTER("shape", SHAPE, "(out_features, in_features)."),
    GETTER("block_size", BLOCK_SIZE, "Weights per scale."),
    GETTER("double_quant", DOUBLE_QUANT, "Whether the scales are quantized too."),
    GETTER("nbytes", NBYTES, "Bytes of the codes and the scales."),
    GETTER("codes", CODES, "The packed codes, read-only, no copy."),
    GETTER("absmax", ABSMAX, "The float32 scales, read-only; None when double-quantized."),
    GETTER("absmax_codes", ABSMAX_CODES, "The 8-bit scales, read-only; None unless double-quantized."),
    GETTER("nested_absmax", NESTED_ABSMAX, "The scales of the scales, read-only; None unless double-quantized."),
    GETTER("nested_offset", NESTED_OFFSET, "What is added to each decoded scale."),
    GETTER("nested_map", NESTED_MAP, "The 256 values of the 8-bit scales, read-only; None unless double-quantized."),
    GETTER("nested_block_size", NESTED_BLOCK, "Scales per scale of scales; 0 unless double-quantized."),
    GETTER("quant_type", QUANT_TYPE, "What the codes mean: 'nf4', 'fp4', 'fp4_e2m1' or 'int4'."),
    GETTER("lut", LUT, "The 16 values of the codes, read-only."),
    {0},
};

LORA_PY_KEEP(nf4_quantize)
LORA_PY_KEEP(nf4_from_parts)
LORA_PY_KEEP(nf4_dequantize)

static PyObject *nf4_repr_html(PyObject *o, PyObject *unused) {
    (void)unused;
    static const char *const attributes[] = {"shape", "quant_type", "block_size", "double_quant", "nbytes", NULL};
    return lora_py_html(o, attributes);
}

static PyMethodDef nf4_methods[] = {
    {"quantize", LORA_PY_KEYWORDS nf4_quantize_kept, METH_VARARGS | METH_KEYWORDS | METH_CLASS, quantize_doc},
    {"from_parts", LORA_PY_KEYWORDS nf4_from_parts_kept, METH_VARARGS | METH_KEYWORDS | METH_CLASS, from_parts_doc},
    {"dequantize", LORA_PY_KEYWORDS nf4_dequantize_kept, METH_VARARGS | METH_KEYWORDS, dequantize_doc},
    {"to", lora_py_weight_to, METH_VARARGS, lora_py_weight_to_doc},
    {"_repr_html_", nf4_repr_html, METH_NOARGS, "A table for notebooks."},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(nf4_doc, "A matrix in 4-bit NormalFloat, immutable. Made by quantize() or from_parts().\n\n"
                      "Or in another 4-bit type of the same layout; the attribute quant_type says which.\n\n"
                      "The buffer protocol gives the packed codes, read-only. Safe to share between threads.\n\n"
                      "Source\n------\nQLoRA, arXiv:2305.14314, section 3.");

static PyType_Slot nf4_slots[] = {
    {Py_tp_new, nf4_new},         {Py_tp_dealloc, nf4_dealloc},     {Py_tp_traverse, lora_py_traverse},
    {Py_tp_repr, nf4_repr},       {Py_tp_methods, nf4_methods},     {Py_tp_getset, nf4_getset},
    {Py_tp_doc, (void *)nf4_doc}, {Py_bf_getbuffer, nf4_getbuffer}, {0, NULL},
};

PyType_Spec lora_py_nf4tensor_spec = {
    .name = "lora_c._core.NF4Tensor",
    .basicsize = sizeof(nf4tensor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = nf4_slots,
};
