/* Operations that work row by row or element by element, on arrays of any device. */
#include "lora_c/bindings/py_ops.h"

#include <math.h>
#include <string.h>

/* --- norms -------------------------------------------------------------------------------------------------------- */

/* x and the weights of a norm; bias NULL: none is taken. */
static lora_py_array *take_norm(lora_py_call *c, lora_norm *norm, PyObject *x_given, PyObject *weight, PyObject *bias, int rows) {
    lora_py_array *x = lora_py_take(c, x_given, "x", rows ? LORA_PY_ROWS : 0), *w = x ? lora_py_take(c, weight, "weight", 0) : NULL;
    if (!w || lora_py_expect(w, 1, &x->cols) < 0) return NULL;
    lora_py_array *b = bias ? lora_py_take(c, bias, "bias", 0) : NULL;
    if (bias && (!b || lora_py_expect(b, 1, &x->cols) < 0)) return NULL;
    norm->H = x->cols;
    norm->groups = 1;
    norm->weight = w->data;
    norm->bias = b ? b->data : w->data; /* no gradient reads it */
    return x;
}

static PyObject *norm_forward(PyObject *module, lora_norm *norm, PyObject *x_given, PyObject *weight, PyObject *bias) {
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *x = take_norm(&c, norm, x_given, weight, bias, 1);
    float *y = x ? lora_py_give_like(&c, x) : NULL;
    if (!y) return lora_py_abandon(&c);
    lora_status status;
    LORA_PY_RUN(c, status, lora_norm_forward(c.at.ctx, norm, lora_py_mat(x), lora_py_mat_like(y, x), NULL, &c.err));
    return lora_py_end(&c, status);
}

/* The forward pass writes its result where dx will be: only the statistics are wanted of it. */
static lora_status norm_gradients(lora_ctx *ctx, const lora_norm *norm, const lora_py_array *dy, const lora_py_array *x, float *stats,
                                  float *dx, float *dw, float *db, lora_error *err) {
    lora_mat out = lora_py_mat_like(dx, x);
    LORA_TRY(lora_norm_forward(ctx, norm, lora_py_mat(x), out, stats, err));
    return lora_norm_backward(ctx, norm, lora_py_mat(dy), lora_py_mat(x), stats, out, false, dw, db, err);
}

static PyObject *norm_backward(PyObject *module, lora_norm *norm, PyObject *dy_given, PyObject *x_given, PyObject *weight) {
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *x = take_norm(&c, norm, x_given, weight, NULL, 0), *dy = x ? lora_py_take_like(&c, dy_given, "dy", x) : NULL;
    float *dx = dy ? lora_py_give_like(&c, x) : NULL, *dw = dx ? lora_py_give(&c, 1, &x->cols, 1) : NULL, *db = NULL;
    int has_bias = norm->kind == LORA_NORM_LAYER;
    if (!dw || (has_bias && !(db = lora_py_give(&c, 1, &x->cols, 1)))) return lora_py_abandon(&c);
    float *stats = lora_py_work(&c, (size_t)x->rows * 2 * sizeof(float), "stats");
    if (!stats) return lora_py_abandon(&c);
    lora_status status;
    LORA_PY_RUN(c, status, norm_gradients(c.at.ctx, norm, dy, x, stats, dx, dw, db, &c.err));
    return lora_py_end(&c, status);
}

PyDoc_STRVAR(rmsnorm_doc, "rmsnorm($module, x, weight, /, *, eps=1e-05, weight_offset=0.0)\n--\n\n"
                          "y = x / sqrt(mean(x**2) + eps) * (weight_offset + weight), row by row.\n\n"
                          "Shapes\n------\nx (..., H); weight (H,); result like x. float32.\n\n"
                          "Parameters\n----------\n"
                          "x : array\n    Rows to norm.\n"
                          "weight : array\n    Multiplies each row.\n"
                          "eps : float\n    Added under the root.\n"
                          "weight_offset : float\n    Added to the weight.\n\n"
                          "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                          "Source\n------\nRMSNorm, arXiv:1910.07467, eq. 4; Gemma has the offset 1.");

static PyObject *op_rmsnorm(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "eps", "weight_offset", NULL};
    PyObject *x, *weight;
    lora_norm norm = {.kind = LORA_NORM_RMS, .eps = 1e-5f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$ff:rmsnorm", names, &x, &weight, &norm.eps, &norm.weight_offset)) return NULL;
    return norm_forward(module, &norm, x, weight, NULL);
}

PyDoc_STRVAR(rmsnorm_backward_doc, "rmsnorm_backward($module, dy, x, weight, /, *, eps=1e-05, weight_offset=0.0)\n--\n\n"
                                   "The gradients (dx, dweight) of rmsnorm.\n\n"
                                   "Shapes\n------\ndy, x (..., H); weight (H,); dx like x; dweight (H,). float32.\n\n"
                                   "Parameters\n----------\n"
                                   "dy : array\n    Gradient of the result.\n"
                                   "x, weight : array\n    As given to rmsnorm().\n"
                                   "eps, weight_offset : float\n    As given to rmsnorm().\n\n"
                                   "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                                   "Source\n------\nRMSNorm, arXiv:1910.07467, eq. 4, differentiated.");

static PyObject *op_rmsnorm_backward(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "eps", "weight_offset", NULL};
    PyObject *dy, *x, *weight;
    lora_norm norm = {.kind = LORA_NORM_RMS, .eps = 1e-5f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$ff:rmsnorm_backward", names, &dy, &x, &weight, &norm.eps, &norm.weight_offset))
        return NULL;
    return norm_backward(module, &norm, dy, x, weight);
}

PyDoc_STRVAR(layernorm_doc, "layernorm($module, x, weight, bias, /, *, eps=1e-05)\n--\n\n"
                            "y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, row by row.\n\n"
                            "Shapes\n------\nx (..., H); weight, bias (H,); result like x. float32.\n\n"
                            "Parameters\n----------\n"
                            "x : array\n    Rows to norm.\n"
                            "weight, bias : array\n    Multiplies each row, and is added to it.\n"
                            "eps : float\n    Added under the root.\n\n"
                            "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                            "Source\n------\nLayerNorm, arXiv:1607.06450, eq. 4.");

static PyObject *op_layernorm(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "eps", NULL};
    PyObject *x, *weight, *bias;
    lora_norm norm = {.kind = LORA_NORM_LAYER, .eps = 1e-5f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$f:layernorm", names, &x, &weight, &bias, &norm.eps)) return NULL;
    return norm_forward(module, &norm, x, weight, bias);
}

PyDoc_STRVAR(layernorm_backward_doc, "layernorm_backward($module, dy, x, weight, /, *, eps=1e-05)\n--\n\n"
                                     "The gradients (dx, dweight, dbias) of layernorm.\n\n"
                                     "Shapes\n------\ndy, x (..., H); weight (H,); dx like x; dweight, dbias (H,). float32.\n\n"
                                     "Parameters\n----------\n"
                                     "dy : array\n    Gradient of the result.\n"
                                     "x, weight : array\n    As given to layernorm().\n"
                                     "eps : float\n    As given to layernorm().\n\n"
                                     "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                                     "Source\n------\nLayerNorm, arXiv:1607.06450, eq. 4, differentiated.");

static PyObject *op_layernorm_backward(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "eps", NULL};
    PyObject *dy, *x, *weight;
    lora_norm norm = {.kind = LORA_NORM_LAYER, .eps = 1e-5f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$f:layernorm_backward", names, &dy, &x, &weight, &norm.eps)) return NULL;
    return norm_backward(module, &norm, dy, x, weight);
}

/* --- rope --------------------------------------------------------------------------------------------------------- */

typedef struct rope_args {
    int64_t M, n_heads, D, rotary;
    const int32_t *positions, *rows; /* rows of the tables: that of token m is m */
    double *inv_freq;
    double scale;
    float *table, *x;
    const float *given;
    bool backward;
} rope_args;

static lora_status run_rope(lora_ctx *ctx, const rope_args *r, lora_error *err) {
    int64_t half = r->rotary / 2, width = r->n_heads * r->D;
    float *cosine = r->table, *sine = r->table + r->M * half;
    lora_mat x = lora_mat_f32(r->x, r->M, width, width);
    LORA_TRY(lora_rope_table(ctx, r->M, r->positions, half, r->inv_freq, r->scale, cosine, sine, err));
    LORA_TRY(lora_copy_rows(ctx, lora_mat_f32(r->given, r->M, width, width), NULL, x, NULL, false, err));
    lora_rotations rotations = {.cos = cosine, .sin = sine, .n_positions = r->M, .half = half};
    return lora_rope(ctx, &rotations, r->n_heads, r->D, r->rows, x, r->backward, err);
}

static int check_positions(const lora_py_ids *positions) {
    for (int64_t i = 0; i < positions->n; i++) {
        if (positions->data[i] >= 0) continue;
        PyErr_Format(PyExc_ValueError, "positions: expected numbers >= 0, got %d at index %lld", (int)positions->data[i], (long long)i);
        return -1;
    }
    return 0;
}

/* Tables with a row for each token, not for each position up to the highest: memory is of the size of x. rows: (M). */
static int rope_tables(lora_py_call *c, rope_args *r, int32_t *rows) {
    size_t bytes = (size_t)r->M * sizeof *rows;
    for (int64_t m = 0; m < r->M; m++) rows[m] = (int32_t)m;
    r->table = lora_py_work(c, (size_t)(r->M * r->rotary) * sizeof *r->table, "positions");
    r->rows = r->table ? lora_py_send(c, rows, bytes, "positions") : NULL;
    r->positions = r->rows ? lora_py_send(c, c->ids.data, bytes, "positions") : NULL;
    return r->positions ? 0 : -1;
}

/* x, positions, inv_freq; what the numbers of the struct are. */
static int take_rope(lora_py_call *c, rope_args *r, PyObject *const given[3], const char *name) {
    const int64_t any[] = {-1, -1, -1};
    int64_t n_freq;
    lora_py_array *x = lora_py_take(c, given[0], name, 0);
    if (!x || lora_py_expect(x, 3, any) < 0 || lora_py_get_ids(given[1], "positions", &c->ids) < 0 ||
        lora_py_expect(&c->ids.array, 1, &x->shape[0]) < 0 || check_positions(&c->ids) < 0 ||
        lora_py_get_doubles(given[2], "inv_freq", &r->inv_freq, &n_freq) < 0)
        return -1;
    r->given = x->data;
    r->M = x->shape[0];
    r->n_heads = x->shape[1];
    r->D = x->shape[2];
    r->rotary = 2 * n_freq;
    if (r->rotary <= r->D && isfinite(r->scale)) return 0;
    PyErr_Format(PyExc_ValueError, "inv_freq: expected at most D / 2 numbers for D = %lld and a finite scale, got %lld numbers",
                 (long long)r->D, (long long)n_freq);
    return -1;
}

static PyObject *rope(PyObject *module, PyObject *args, PyObject *kwargs, const char *format, const char *name, bool backward) {
    static char *names[] = {"", "", "", "scale", NULL};
    PyObject *given[3], *result = NULL;
    rope_args r = {.scale = 1.0, .backward = backward};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &given[0], &given[1], &given[2], &r.scale)) return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    int32_t *rows = NULL;
    int ready = take_rope(&c, &r, given, name) == 0 && (r.x = lora_py_give_like(&c, &c.in[0])) != NULL;
    if (ready && !(rows = PyMem_RawMalloc((size_t)r.M * sizeof *rows))) PyErr_NoMemory();
    if (ready && rows && rope_tables(&c, &r, rows) == 0) {
        lora_status status;
        LORA_PY_RUN(c, status, run_rope(c.at.ctx, &r, &c.err));
        result = lora_py_end(&c, status);
    } else {
        (void)lora_py_abandon(&c);
    }
    PyMem_RawFree(rows);
    PyMem_RawFree(r.inv_freq);
    return result;
}

PyDoc_STRVAR(rope_doc,
             "rope($module, x, positions, inv_freq, /, *, scale=1.0)\n--\n\n"
             "Rotate the pairs (i, i + n) of each head by positions[m] * inv_freq[i], n = len(inv_freq); elements from 2 n on stay.\n\n"
             "Shapes\n------\nx (M, heads, D) float32; positions (M,) integers; inv_freq (n,), n <= D / 2; result like x.\n\n"
             "Parameters\n----------\n"
             "x : array\n    Queries or keys.\n"
             "positions : array or list of int\n    The position of each token.\n"
             "inv_freq : array\n    float64: angle per position of each pair.\n"
             "scale : float\n    Multiplies cosine and sine.\n\n"
             "Raises\n------\nValueError, TypeError\n    A shape, a position or an element type does not fit.\n\n"
             "Source\n------\nRoFormer, arXiv:2104.09864, eq. 34, with the half-split pairing of Hugging Face folders.");

static PyObject *op_rope(PyObject *module, PyObject *args, PyObject *kwargs) {
    return rope(module, args, kwargs, "OOO|$d:rope", "x", false);
}

PyDoc_STRVAR(rope_backward_doc,
             "rope_backward($module, dy, positions, inv_freq, /, *, scale=1.0)\n--\n\n"
             "The gradient of rope: the rotation the other way.\n\n"
             "Shapes\n------\ndy (M, heads, D) float32; positions (M,) integers; inv_freq (n,), n <= D / 2; result like dy.\n\n"
             "Parameters\n----------\n"
             "dy : array\n    Gradient of the result.\n"
             "positions : array or list of int\n    As given to rope().\n"
             "inv_freq : array\n    As given to rope().\n"
             "scale : float\n    As given to rope().\n\n"
             "Raises\n------\nValueError, TypeError\n    As rope().\n\n"
             "Source\n------\nRoFormer, arXiv:2104.09864, eq. 34.");

static PyObject *op_rope_backward(PyObject *module, PyObject *args, PyObject *kwargs) {
    return rope(module, args, kwargs, "OOO|$d:rope_backward", "dy", true);
}

/* --- swiglu ------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(swiglu_doc, "swiglu($module, gate, up=None, /)\n--\n\n"
                         "silu(gate) * up; without up, silu(gate).\n\n"
                         "Shapes\n------\ngate, up (..., I); result like gate. float32.\n\n"
                         "Parameters\n----------\n"
                         "gate : array\n    Goes through silu.\n"
                         "up : array, optional\n    Is multiplied by it.\n\n"
                         "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                         "Source\n------\nGLU variants, arXiv:2002.05202.");

/* up NULL: none. */
static PyObject *mlp_forward(PyObject *module, lora_activation activation, PyObject *gate_given, PyObject *up_given) {
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *gate = lora_py_take(&c, gate_given, "gate", 0), *up = NULL;
    if (!gate || (up_given && !(up = lora_py_take_like(&c, up_given, "up", gate)))) return lora_py_abandon(&c);
    float *h = lora_py_give_like(&c, gate);
    if (!h) return lora_py_abandon(&c);
    lora_status status;
    LORA_PY_RUN(c, status,
                lora_mlp_forward(c.at.ctx, activation, lora_py_mat(gate), up ? lora_py_mat(up) : lora_mat_none(), lora_py_mat_like(h, gate),
                                 &c.err));
    return lora_py_end(&c, status);
}

static PyObject *mlp_backward(PyObject *module, lora_activation activation, PyObject *dh_given, PyObject *gate_given, PyObject *up_given) {
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *gate = lora_py_take(&c, gate_given, "gate", 0), *up = NULL;
    if (!gate || (up_given && !(up = lora_py_take_like(&c, up_given, "up", gate)))) return lora_py_abandon(&c);
    lora_py_array *dh = lora_py_take_like(&c, dh_given, "dh", gate);
    float *dgate = dh ? lora_py_give_like(&c, gate) : NULL, *dup = NULL;
    if (!dgate || (up && !(dup = lora_py_give_like(&c, gate)))) return lora_py_abandon(&c);
    lora_status status;
    LORA_PY_RUN(c, status,
                lora_mlp_backward(c.at.ctx, activation, lora_py_mat(dh), lora_py_mat(gate), up ? lora_py_mat(up) : lora_mat_none(),
                                  lora_py_mat_like(dgate, gate), up ? lora_py_mat_like(dup, gate) : lora_mat_none(), &c.err));
    return lora_py_end(&c, status);
}

/* The arguments gate and up=None. */
static PyObject *any_forward(PyObject *module, PyObject *args, const char *format, lora_activation activation) {
    PyObject *gate, *up = Py_None;
    if (!PyArg_ParseTuple(args, format, &gate, &up)) return NULL;
    return mlp_forward(module, activation, gate, up == Py_None ? NULL : up);
}

static PyObject *any_backward(PyObject *module, PyObject *args, const char *format, lora_activation activation) {
    PyObject *dh, *gate, *up = Py_None;
    if (!PyArg_ParseTuple(args, format, &dh, &gate, &up)) return NULL;
    return mlp_backward(module, activation, dh, gate, up == Py_None ? NULL : up);
}

static PyObject *op_swiglu(PyObject *module, PyObject *args) { return any_forward(module, args, "O|O:swiglu", LORA_SILU); }

PyDoc_STRVAR(swiglu_backward_doc, "swiglu_backward($module, dh, gate, up=None, /)\n--\n\n"
                                  "The gradients (dgate, dup) of swiglu; without up, dgate.\n\n"
                                  "Shapes\n------\ndh, gate, up (..., I); results like gate. float32.\n\n"
                                  "Parameters\n----------\n"
                                  "dh : array\n    Gradient of the result.\n"
                                  "gate, up : array\n    As given to swiglu().\n\n"
                                  "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                                  "Source\n------\nGLU variants, arXiv:2002.05202, differentiated.");

static PyObject *op_swiglu_backward(PyObject *module, PyObject *args) {
    return any_backward(module, args, "OO|O:swiglu_backward", LORA_SILU);
}

PyDoc_STRVAR(geglu_doc, "geglu($module, gate, up=None, /)\n--\n\n"
                        "gelu(gate) * up with the tanh form of GELU; without up, gelu(gate).\n\n"
                        "Shapes\n------\ngate, up (..., I); result like gate. float32.\n\n"
                        "Parameters\n----------\n"
                        "gate : array\n    Goes through gelu.\n"
                        "up : array, optional\n    Is multiplied by it.\n\n"
                        "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                        "Source\n------\nGLU variants, arXiv:2002.05202; GELU, arXiv:1606.08415, section 2.");

static PyObject *op_geglu(PyObject *module, PyObject *args) { return any_forward(module, args, "O|O:geglu", LORA_GELU_TANH); }

PyDoc_STRVAR(geglu_backward_doc, "geglu_backward($module, dh, gate, up=None, /)\n--\n\n"
                                 "The gradients (dgate, dup) of geglu; without up, dgate.\n\n"
                                 "Shapes\n------\ndh, gate, up (..., I); results like gate. float32.\n\n"
                                 "Parameters\n----------\n"
                                 "dh : array\n    Gradient of the result.\n"
                                 "gate, up : array\n    As given to geglu().\n\n"
                                 "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                                 "Source\n------\nGLU variants, arXiv:2002.05202, differentiated.");

static PyObject *op_geglu_backward(PyObject *module, PyObject *args) {
    return any_backward(module, args, "OO|O:geglu_backward", LORA_GELU_TANH);
}

PyDoc_STRVAR(reglu_doc, "reglu($module, gate, up=None, /)\n--\n\n"
                        "max(gate, 0) * up; without up, max(gate, 0).\n\n"
                        "Shapes\n------\ngate, up (..., I); result like gate. float32.\n\n"
                        "Parameters\n----------\n"
                        "gate : array\n    Goes through relu.\n"
                        "up : array, optional\n    Is multiplied by it.\n\n"
                        "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                        "Source\n------\nGLU variants, arXiv:2002.05202.");

static PyObject *op_reglu(PyObject *module, PyObject *args) { return any_forward(module, args, "O|O:reglu", LORA_RELU); }

PyDoc_STRVAR(reglu_backward_doc, "reglu_backward($module, dh, gate, up=None, /)\n--\n\n"
                                 "The gradients (dgate, dup) of reglu; without up, dgate.\n\n"
                                 "Shapes\n------\ndh, gate, up (..., I); results like gate. float32.\n\n"
                                 "Parameters\n----------\n"
                                 "dh : array\n    Gradient of the result.\n"
                                 "gate, up : array\n    As given to reglu().\n\n"
                                 "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                                 "Source\n------\nGLU variants, arXiv:2002.05202, differentiated.");

static PyObject *op_reglu_backward(PyObject *module, PyObject *args) {
    return any_backward(module, args, "OO|O:reglu_backward", LORA_RELU);
}

/* --- scaling vectors ---------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(scale_columns_doc, "scale_columns($module, x, l, /)\n--\n\n"
                                "x * l, column by column.\n\n"
                                "Shapes\n------\nx (..., N); l (N,); result like x. float32.\n\n"
                                "Parameters\n----------\n"
                                "x : array\n    Rows to scale.\n"
                                "l : array\n    The factor of each column.\n\n"
                                "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                                "Source\n------\nIA3, arXiv:2205.05638, eq. 1.");

static PyObject *op_scale_columns(PyObject *module, PyObject *args) {
    PyObject *x_given, *l_given;
    if (!PyArg_ParseTuple(args, "OO:scale_columns", &x_given, &l_given)) return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *x = lora_py_take(&c, x_given, "x", LORA_PY_ROWS), *l = x ? lora_py_take(&c, l_given, "l", 0) : NULL;
    float *y = l && lora_py_expect(l, 1, &x->cols) == 0 ? lora_py_give_like(&c, x) : NULL;
    if (!y) return lora_py_abandon(&c);
    lora_status status;
    LORA_PY_RUN(c, status, lora_scale_columns(c.at.ctx, l->data, lora_py_mat(x), lora_py_mat_like(y, x), &c.err));
    return lora_py_end(&c, status);
}

PyDoc_STRVAR(scale_columns_backward_doc, "scale_columns_backward($module, dy, x, l, /)\n--\n\n"
                                         "The gradients (dx, dl) of scale_columns.\n\n"
                                         "Shapes\n------\ndy, x (..., N); l (N,); dx like x; dl (N,). float32.\n\n"
                                         "Parameters\n----------\n"
                                         "dy : array\n    Gradient of the result.\n"
                                         "x, l : array\n    As given to scale_columns().\n\n"
                                         "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
                                         "Source\n------\nIA3, arXiv:2205.05638, eq. 1, differentiated.");

static PyObject *op_scale_columns_backward(PyObject *module, PyObject *args) {
    PyObject *dy_given, *x_given, *l_given;
    if (!PyArg_ParseTuple(args, "OOO:scale_columns_backward", &dy_given, &x_given, &l_given)) return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *x = lora_py_take(&c, x_given, "x", 0), *dy = x ? lora_py_take_like(&c, dy_given, "dy", x) : NULL;
    lora_py_array *l = dy ? lora_py_take(&c, l_given, "l", 0) : NULL;
    float *dx = l && lora_py_expect(l, 1, &x->cols) == 0 ? lora_py_give_like(&c, x) : NULL, *dl = NULL;
    if (!dx || !(dl = lora_py_give(&c, 1, &x->cols, 1))) return lora_py_abandon(&c);
    lora_status status;
    LORA_PY_RUN(
        c, status,
        lora_scale_columns_backward(c.at.ctx, l->data, lora_py_mat(dy), lora_py_mat(x), lora_py_mat_like(dx, x), false, dl, &c.err));
    return lora_py_end(&c, status);
}

/* --- optimizer ---------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(
    adamw_step_doc,
    "adamw_step($module, p, g, m, v, /, *, step, lr, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0, grad_scale=1.0)\n--\n\n"
    "One step of AdamW; p, m and v are changed in place.\n\n"
    "Shapes\n------\np, g, m, v of one shape. float32.\n\n"
    "Parameters\n----------\n"
    "p : array\n    Parameters.\n"
    "g : array\n    Their gradient.\n"
    "m, v : array\n    First and second moments.\n"
    "step : int\n    1 for the first step.\n"
    "lr : float\n    Learning rate.\n"
    "beta1, beta2 : float\n    Decay rates of the moments.\n"
    "eps : float\n    Added to the root of the second moment.\n"
    "weight_decay : float\n    Decoupled: lr * weight_decay of each parameter is taken off first.\n"
    "grad_scale : float\n    The gradient is multiplied by this first.\n\n"
    "Raises\n------\nValueError, TypeError\n    A shape, a number or an element type does not fit; arrays overlap or are read-only.\n\n"
    "Source\n------\nAdamW, arXiv:1711.05101, algorithm 2.");

static PyObject *op_adamw_step(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "step", "lr", "beta1", "beta2", "eps", "weight_decay", "grad_scale", NULL};
    static const char *const shown[] = {"p", "g", "m", "v"};
    PyObject *given[4];
    int64_t step = 0;
    lora_adamw_hyper h = {.lr = NAN, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.0, .step = 0, .grad_scale = 1.0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$O&dddddd:adamw_step", names, &given[0], &given[1], &given[2], &given[3],
                                     lora_py_whole, &step, &h.lr, &h.beta1, &h.beta2, &h.eps, &h.weight_decay, &h.grad_scale))
        return NULL;
    h.step = step;
    if (step < 1 || !isfinite(h.lr)) {
        PyErr_SetString(PyExc_ValueError, "step, lr: expected step >= 1 and a finite lr, got others");
        return NULL;
    }
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *a[4];
    for (int i = 0; i < 4; i++) {
        a[i] = lora_py_take(&c, given[i], shown[i], i == 1 ? 0 : LORA_PY_WRITABLE);
        if (!a[i] || lora_py_expect(a[i], a[0]->ndim, a[0]->shape) < 0) return lora_py_abandon(&c);
        for (int j = 0; j < i; j++)
            if (lora_py_apart(a[i], a[j]) < 0) return lora_py_abandon(&c);
    }
    lora_status status;
    lora_param param = {.data = a[0]->data, .grad = a[1]->data, .n = a[0]->n, .decay = true, .lr_ratio = 1.0};
    LORA_PY_RUN(c, status, lora_adamw_step(c.at.ctx, 1, &param, a[2]->data, a[3]->data, &h, &c.err));
    return lora_py_end(&c, status);
}

PyDoc_STRVAR(sum_of_squares_doc,
             "sum_of_squares($module, g, /)\n--\n\n"
             "The sum of the squares of a float32 array of any device, in float64 and in an order that does not depend on threads.");

static lora_status sum_to_host(lora_ctx *ctx, const lora_param *param, double *sum, lora_error *err) {
    void *there;
    LORA_TRY(lora_output_open(ctx, sum, sizeof *sum, &there, err));
    LORA_TRY(lora_output_close(ctx, sum, sizeof *sum, there, lora_sum_of_squares(ctx, 1, param, there, err), err));
    return lora_sync(ctx, err);
}

static PyObject *op_sum_of_squares(PyObject *module, PyObject *given) {
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *g = lora_py_take(&c, given, "g", 0);
    if (!g) return lora_py_abandon(&c);
    double sum = 0.0;
    lora_status status;
    lora_param param = {.grad = g->data, .n = g->n};
    LORA_PY_RUN(c, status, sum_to_host(c.at.ctx, &param, &sum, &c.err));
    PyObject *none = lora_py_end(&c, status);
    Py_XDECREF(none);
    return none ? PyFloat_FromDouble(sum) : NULL;
}

LORA_PY_KEEP(op_rmsnorm)
LORA_PY_KEEP(op_rmsnorm_backward)
LORA_PY_KEEP(op_layernorm)
LORA_PY_KEEP(op_layernorm_backward)
LORA_PY_KEEP(op_rope)
LORA_PY_KEEP(op_rope_backward)
LORA_PY_KEEP(op_adamw_step)

PyMethodDef lora_py_row_ops[] = {
    {"rmsnorm", LORA_PY_KEYWORDS op_rmsnorm_kept, METH_VARARGS | METH_KEYWORDS, rmsnorm_doc},
    {"rmsnorm_backward", LORA_PY_KEYWORDS op_rmsnorm_backward_kept, METH_VARARGS | METH_KEYWORDS, rmsnorm_backward_doc},
    {"layernorm", LORA_PY_KEYWORDS op_layernorm_kept, METH_VARARGS | METH_KEYWORDS, layernorm_doc},
    {"layernorm_backward", LORA_PY_KEYWORDS op_layernorm_backward_kept, METH_VARARGS | METH_KEYWORDS, layernorm_backward_doc},
    {"rope", LORA_PY_KEYWORDS op_rope_kept, METH_VARARGS | METH_KEYWORDS, rope_doc},
    {"rope_backward", LORA_PY_KEYWORDS op_rope_backward_kept, METH_VARARGS | METH_KEYWORDS, rope_backward_doc},
    {"swiglu", op_swiglu, METH_VARARGS, swiglu_doc},
    {"swiglu_backward", op_swiglu_backward, METH_VARARGS, swiglu_backward_doc},
    {"geglu", op_geglu, METH_VARARGS, geglu_doc},
    {"geglu_backward", op_geglu_backward, METH_VARARGS, geglu_backward_doc},
    {"reglu", op_reglu, METH_VARARGS, reglu_doc},
    {"reglu_backward", op_reglu_backward, METH_VARARGS, reglu_backward_doc},
    {"scale_columns", op_scale_columns, METH_VARARGS, scale_columns_doc},
    {"scale_columns_backward", op_scale_columns_backward, METH_VARARGS, scale_columns_backward_doc},
    {"adamw_step", LORA_PY_KEYWORDS op_adamw_step_kept, METH_VARARGS | METH_KEYWORDS, adamw_step_doc},
    {"sum_of_squares", op_sum_of_squares, METH_O, sum_of_squares_doc},
    {0},
};
