/* LoRALinear: y = W x + b + s B A x with a frozen W. No state is kept between forward and backward. */
#include "lora_c/bindings/py_devicearray.h"

#include <math.h>
#include <string.h>

#include "lora_c/place.h"

typedef struct loralinear {
    lora_py_object base;
    PyObject *given; /* the base as it was passed */
    lora_py_weight weight;
    PyObject *bias_keep;
    const float *bias;
    float *dbias;
    lora_py_parameter *A, *B, *magnitude; /* magnitude: DoRA's, or NULL */
    float *norm;                          /* (out_features), with magnitude: of the present W + s B A */
    int64_t rank;
    double lora_alpha, scaling, dropout;
    uint64_t seed;
    const char *apart;                 /* what does not lie in one block with A; NULL: all does */
    Py_ssize_t flat_size, flat_stride; /* of the buffer: A, B, ... behind each other, and bytes of an element */
} loralinear;

static int linear_traverse(PyObject *o, visitproc visit, void *arg) {
    loralinear *self = (loralinear *)o;
    Py_VISIT(self->given);
    Py_VISIT(self->weight.keep);
    Py_VISIT(self->bias_keep);
    return lora_py_traverse(o, visit, arg);
}

static void linear_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    loralinear *self = (loralinear *)o;
    Py_XDECREF(self->given);
    Py_XDECREF(self->weight.keep);
    Py_XDECREF(self->bias_keep);
    Py_XDECREF(self->A);
    Py_XDECREF(self->B);
    Py_XDECREF(self->magnitude);
    lora_ctx_free(self->base.ctx, self->norm);
    lora_py_delete(o);
}

/* --- construction ------------------------------------------------------------------------------------------------- */

/* What the layer reads on its device: what is there already, or a copy of what the host has. *keep becomes what owns it. */
static int keep_placed(const loralinear *self, lora_py_state *state, lora_status status, void *memory, const lora_error *err,
                       PyObject **keep) {
    PyObject *placed = status == LORA_OK ? lora_py_hold(&self->base, memory) : lora_py_raise(state, err);
    Py_SETREF(*keep, placed);
    return placed ? 0 : -1;
}

static int set_base(loralinear *self, lora_py_state *state) {
    lora_ctx *ctx = self->base.ctx;
    if (lora_py_get_weight(state, ctx, self->given, "base", &self->weight) < 0) return -1;
    if (self->weight.there) return 0;
    lora_status status;
    lora_error err = {0};
    lora_weight host = self->weight.w;
    void *memory = NULL;
    LORA_PY_CALL(ctx, status, lora_weight_place(ctx, &host, &self->weight.w, &memory, &err));
    return keep_placed(self, state, status, memory, &err, &self->weight.keep);
}

static int place_bias(const loralinear *self, lora_py_state *state, lora_py_vector *bias) {
    lora_ctx *ctx = self->base.ctx;
    if (bias->there) return 0;
    lora_status status;
    lora_error err = {0};
    void *memory = NULL;
    LORA_PY_CALL(ctx, status, lora_vector_place(ctx, bias->data, bias->n, &bias->data, &memory, &err));
    return keep_placed(self, state, status, memory, &err, &bias->keep);
}

static int set_bias(loralinear *self, lora_py_state *state, PyObject *bias) {
    if (bias == Py_None) return 0;
    lora_py_vector given;
    if (lora_py_get_vector(state, self->base.ctx, bias, "bias", &given) < 0 || place_bias(self, state, &given) < 0) return -1;
    self->bias = given.data;
    self->dbias = given.grad;
    self->bias_keep = given.keep;
    int64_t n = given.n;
    if (n == self->weight.w.rows) return 0;
    PyErr_Format(PyExc_ValueError, "bias: expected shape (%lld,), got shape (%lld,)", (long long)self->weight.w.rows, (long long)n);
    return -1;
}

static lora_adapter adapter_of(const loralinear *self);

/* The row norms of W + s B A as A and B are now. */
static int refresh_norm(loralinear *self) {
    if (!self->norm) return 0;
    lora_adapter adapter = adapter_of(self);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_dora_norm(self->base.ctx, &self->weight.w, &adapter, self->norm, &err));
    if (status == LORA_OK) return 0;
    lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
    return -1;
}

/* A's start, drawn by the host wherever the layer lies: the same everywhere. */
static int draw_A(const loralinear *self) {
    size_t bytes = (size_t)self->A->size * sizeof(float);
    float *drawn = lora_py_is_host(self->base.ctx) ? self->A->data : PyMem_RawMalloc(bytes);
    if (!drawn) {
        PyErr_NoMemory();
        return -1;
    }
    lora_adapter_init(self->rank, self->weight.w.cols, self->seed, drawn);
    if (drawn == self->A->data) return 0;
    int status = lora_py_upload(&self->base, self->A->data, drawn, bytes);
    PyMem_RawFree(drawn);
    return status;
}

/* The magnitude that changes nothing. */
static int copy_norm(const loralinear *self, lora_py_state *state) {
    int64_t N = self->weight.w.rows;
    lora_mat from = lora_mat_f32(self->norm, 1, N, N), to = lora_mat_f32(self->magnitude->data, 1, N, N);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_copy_rows(self->base.ctx, from, NULL, to, NULL, false, &err));
    if (status != LORA_OK) lora_py_raise(state, &err);
    return status == LORA_OK ? 0 : -1;
}

/* A, B, and DoRA's magnitude, which starts from the lengths that the rows have. */
static int set_adapter(loralinear *self, lora_py_state *state, PyObject *A, PyObject *B, PyObject *magnitude, int use_dora) {
    int64_t K = self->weight.w.cols, N = self->weight.w.rows;
    int has_magnitude = use_dora || magnitude != Py_None, n_parts = has_magnitude ? 3 : 2;
    lora_py_part parts[] = {
        {.place = &self->A, .given = A, .arg = "A", .name = "lora_A", .ndim = 2, .shape = {self->rank, K}},
        {.place = &self->B, .given = B, .arg = "B", .name = "lora_B", .ndim = 2, .shape = {N, self->rank}},
        {.place = &self->magnitude, .given = magnitude, .arg = "magnitude", .name = "lora_magnitude_vector", .ndim = 1, .shape = {N}},
    };
    if (A != Py_None && A == B && Py_IS_TYPE(A, state->parameter_type)) { /* r may be both sizes */
        PyErr_SetString(PyExc_ValueError, "B: expected a Parameter of its own, got the one of A");
        return -1;
    }
    if (lora_py_set_parts(state, lora_py_device_of(self), parts, n_parts) < 0) return -1;
    if (A == Py_None && draw_A(self) < 0) return -1;
    if (!has_magnitude) return 0;
    size_t bytes = (size_t)N * sizeof(float);
    self->norm = lora_py_alloc(self->base.ctx, LORA_MEM_SCRATCH, bytes, "norm");
    if (!self->norm || refresh_norm(self) < 0) return -1;
    return magnitude == Py_None ? copy_norm(self, state) : 0;
}

/* The buffer ends where a part lies elsewhere; a bias belongs to it only where it follows. */
static void find_flat_size(loralinear *self, lora_py_state *state) {
    const lora_py_parameter *last = self->B;
    self->flat_stride = (Py_ssize_t)sizeof(float);
    if (!lora_py_lies_behind(self->A, self->B)) self->apart = "B";
    if (!self->apart && self->magnitude) {
        if (!lora_py_lies_behind(self->B, self->magnitude)) self->apart = "the magnitude";
        last = self->magnitude;
    }
    if (self->apart) return;
    PyObject *bias = self->bias_keep;
    if (bias && Py_IS_TYPE(bias, state->parameter_type) && lora_py_lies_behind(last, (lora_py_parameter *)bias))
        last = (lora_py_parameter *)bias;
    self->flat_size = (Py_ssize_t)(last->data + last->size - self->A->data);
}

/* A seed is any 64 bits. */
static int seed_converter(PyObject *o, void *out) {
    uint64_t seed = PyLong_AsUnsignedLongLong(o);
    if (seed == UINT64_MAX && PyErr_Occurred()) {
        (void)lora_py_refuse(PyExc_ValueError, "seed, step: expected a whole number from 0 to 2**64 - 1", o);
        return 0;
    }
    *(uint64_t *)out = seed;
    return 1;
}

static int check_numbers(const loralinear *self) {
    int64_t rank = self->rank;
    if (rank < 1 || rank > 65536) {
        PyErr_Format(PyExc_ValueError, "r: expected 1 to 65536, got %lld", (long long)rank);
        return -1;
    }
    if (!isfinite(self->lora_alpha)) {
        PyErr_SetString(PyExc_ValueError, "lora_alpha: expected a finite number, got NaN or infinity");
        return -1;
    }
    if (!(self->dropout >= 0.0 && self->dropout < 1.0)) {
        PyErr_SetString(PyExc_ValueError, "lora_dropout: expected 0 <= lora_dropout < 1, got a number outside");
        return -1;
    }
    return 0;
}

static PyObject *make_linear(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"base", "r",          "lora_alpha", "lora_dropout", "bias",   "A", "B",
                            "seed", "use_rslora", "use_dora",   "magnitude",    "device", NULL};
    PyObject *given, *bias = Py_None, *A = Py_None, *B = Py_None, *magnitude = Py_None;
    int64_t rank = 8;
    double dropout = 0.0;
    uint64_t seed = 0;
    int rslora = 0, dora = 0;
    double alpha = 8;
    const char *name = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O&$ddOOOO&ppOz:LoRALinear", names, &given, lora_py_whole, &rank, &alpha, &dropout,
                                     &bias, &A, &B, seed_converter, &seed, &rslora, &dora, &magnitude, &name))
        return NULL;
    lora_py_state *state = lora_py_state_of(type);
    lora_py_device device = lora_py_device_given(state, given);
    if (name && lora_py_find_device(state, name, &device) < 0) return NULL;
    loralinear *self = lora_py_new(type);
    if (!self) return NULL;
    lora_py_put_on(self, device);
    self->rank = rank;
    self->dropout = dropout;
    self->seed = seed;
    self->lora_alpha = alpha;
    if (check_numbers(self) < 0) goto fail;
    self->scaling = self->lora_alpha / (rslora ? sqrt((double)rank) : (double)rank);
    self->given = Py_NewRef(given);
    if (set_base(self, state) < 0) goto fail;
    if (set_bias(self, state, bias) < 0 || set_adapter(self, state, A, B, magnitude, dora) < 0) goto fail;
    find_flat_size(self, state);
    return lora_py_publish(self);
fail:
    Py_DECREF(self);
    return NULL;
}

static PyObject *linear_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    return lora_py_new_with_kept(make_linear, type, args, kwargs);
}

/* --- calls -------------------------------------------------------------------------------------------------------- */

static lora_adapter adapter_of(const loralinear *self) {
    return (lora_adapter){
        .rank = self->rank,
        .A = self->A->data,
        .B = self->B->data,
        .dA = self->A->grad,
        .dB = self->B->grad,
        .scale = (float)self->scaling,
        .dropout = (float)self->dropout,
        .dropout_seed = self->seed,
        .magnitude = self->magnitude ? self->magnitude->data : NULL,
        .dmagnitude = self->magnitude ? self->magnitude->grad : NULL,
    };
}

static lora_adapter_pass pass_of(const loralinear *self, int training, uint64_t step) {
    return (lora_adapter_pass){.dropout = training ? (float)self->dropout : 0.0f, .dropout_stream = step, .norm = self->norm};
}

/* The step that chooses the dropout mask. One that is left out would be the same mask in every step. */
static int read_step(const loralinear *self, PyObject *given, int training, uint64_t *step) {
    *step = 0;
    if (given != Py_None) return seed_converter(given, step) ? 0 : -1;
    if (!training || self->dropout == 0.0) return 0;
    PyErr_SetString(PyExc_ValueError, "step: expected the number of the training step with lora_dropout, which draws another mask in each, "
                                      "got none; give forward() and backward() of a step the same");
    return -1;
}

static PyObject *new_result(const loralinear *self, int ndim, const int64_t *shape, float **data) {
    lora_py_state *state = lora_py_state_of(Py_TYPE((PyObject *)self));
    return lora_py_new_on(state, lora_py_device_of(self), LORA_PY_F32, ndim, shape, 0, (void **)data);
}

/* The output for the leading dimensions of like and a last one of cols: out itself, checked, or a new array. */
static PyObject *output(const loralinear *self, PyObject *out, const lora_py_array *like, int64_t cols, lora_py_array *held, float **data,
                        int64_t *ld) {
    *held = (lora_py_array){0};
    if (out == Py_None) {
        int64_t shape[LORA_PY_MAX_DIMS];
        memcpy(shape, like->shape, sizeof shape);
        shape[like->ndim - 1] = cols;
        *ld = cols;
        return new_result(self, like->ndim, shape, data);
    }
    if (lora_py_get_on(self->base.ctx, out, "out", LORA_PY_F32, LORA_PY_WRITABLE | LORA_PY_ROWS, held) < 0) return NULL;
    *data = held->data;
    *ld = held->ld;
    return lora_py_expect_last(held, cols, like) == 0 ? Py_NewRef(out) : NULL;
}

/* What the layer reads and adds to, by name. */
typedef struct linear_memory {
    const char *name;
    PyObject *owner;
} linear_memory;

enum { MEMORIES = 5 };

static void list_memory(const loralinear *self, linear_memory all[MEMORIES]) {
    const linear_memory list[MEMORIES] = {{"base", self->weight.keep},
                                          {"bias", self->bias_keep},
                                          {"A", (PyObject *)self->A},
                                          {"B", (PyObject *)self->B},
                                          {"magnitude", (PyObject *)self->magnitude}};
    memcpy(all, list, sizeof list);
}

/* Writing over the layer's own weights through out= must fail, too. */
static int apart_from_weights(const loralinear *self, const lora_py_array *out) {
    linear_memory all[MEMORIES];
    list_memory(self, all);
    for (int i = 0; i < MEMORIES; i++)
        if (lora_py_apart_from_owner(lora_py_state_of(Py_TYPE((PyObject *)self)), out, all[i].name, all[i].owner) < 0) return -1;
    return 0;
}

/* An input of backward() in the memory of a gradient would change while it is read. */
static int apart_from_gradients(const loralinear *self, const lora_py_array *in) {
    linear_memory all[MEMORIES];
    list_memory(self, all);
    for (int i = 0; i < MEMORIES; i++)
        if (lora_py_apart_from_gradient(lora_py_state_of(Py_TYPE((PyObject *)self)), in, all[i].name, all[i].owner) < 0) return -1;
    return 0;
}

static PyObject *finish(loralinear *self, PyObject *result, lora_status status, const lora_error *err) {
    if (status == LORA_OK) return result;
    Py_DECREF(result);
    return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
}

PyDoc_STRVAR(
    forward_doc,
    "forward($self, x, /, *, out=None, training=False, step=None)\n--\n\n"
    "Compute y = x W^T + bias + s (drop(x) A^T) B^T.\n\n"
    "Shapes\n------\nx (..., in_features); result (..., out_features).\n\n"
    "Parameters\n----------\n"
    "x : array\n    float32; rows may lie apart, elements of a row may not.\n"
    "out : array, optional\n    float32, writable, apart from x and the weights.\n"
    "training : bool\n    Apply lora_dropout.\n"
    "step : int, optional\n    Chooses the dropout mask; give backward() the same. Needed where training with lora_dropout.\n\n"
    "Returns\n-------\nndarray or DeviceArray\n    out, or a new array.\n\n"
    "Raises\n------\nValueError\n    A shape or stride does not fit, or out overlaps an input.\n"
    "TypeError\n    Another element type, or an array that lies elsewhere than the layer.\nRuntimeError\n    Another thread is using this "
    "layer.\n\n"
    "Notes\n-----\nError bound (2 K + R + 16) 2^-24 (|x||W| + s |x||A||B| + |bias|); the same bits for any number of threads.\n\n"
    "Source\n------\nLoRA, arXiv:2106.09685, eq. 3; QLoRA, arXiv:2305.14314, eq. 5.");

static PyObject *linear_forward(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "out", "training", "step", NULL};
    PyObject *x_given, *out = Py_None, *step_given = Py_None;
    int training = 0;
    uint64_t step;
    loralinear *self = (loralinear *)o;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$OpO:forward", names, &x_given, &out, &training, &step_given) ||
        read_step(self, step_given, training, &step) < 0)
        return NULL;
    lora_weight w = self->weight.w;
    lora_py_array x, held = {0};
    if (lora_py_get_on(self->base.ctx, x_given, "x", LORA_PY_F32, LORA_PY_ROWS, &x) < 0) return NULL;
    float *y;
    int64_t ldy;
    PyObject *result = lora_py_expect_last(&x, w.cols, NULL) < 0 ? NULL : output(self, out, &x, w.rows, &held, &y, &ldy);
    if (result && (lora_py_apart(&held, &x) < 0 || apart_from_weights(self, &held) < 0 || lora_py_enter(&self->base) < 0)) Py_CLEAR(result);
    if (result && refresh_norm(self) < 0) {
        lora_py_leave(&self->base);
        Py_CLEAR(result);
    }
    if (result) {
        lora_adapter adapter = adapter_of(self);
        lora_linear_layer layer = {.w = &w,
                                   .bias = self->bias,
                                   .adapter = &adapter,
                                   .pass = pass_of(self, training, step),
                                   .y = lora_mat_f32(y, x.rows, w.rows, ldy)};
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status,
                     lora_linear_forward(self->base.ctx, lora_mat_f32(x.data, x.rows, w.cols, x.ld), 1, &layer, &err));
        lora_py_leave(&self->base);
        result = finish(self, result, status, &err);
    }
    lora_py_release(&held);
    lora_py_release(&x);
    return result;
}

PyDoc_STRVAR(backward_doc,
             "backward($self, dy, x, /, *, out=None, training=False, step=None)\n--\n\n"
             "Compute dx = dy W + s drop\'((dy B) A) and add to A.grad and B.grad.\n\n"
             "Shapes\n------\ndy (..., out_features); x (..., in_features) as given to forward(); result like x.\n\n"
             "Parameters\n----------\n"
             "dy, x : array\n    float32; rows may lie apart.\n"
             "out : array, optional\n    float32, writable, apart from dy, x and the weights.\n"
             "training, step\n    As given to forward().\n\n"
             "Returns\n-------\nndarray or DeviceArray\n    dx: out, or a new array. Overwritten, while the gradients are added to.\n\n"
             "Raises\n------\nValueError, TypeError, RuntimeError\n    As forward().\n\n"
             "Notes\n-----\nx A^T is computed again, so that the layer keeps no activation.\n\n"
             "Source\n------\nLoRA, arXiv:2106.09685, eq. 3.");

static PyObject *linear_backward(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "out", "training", "step", NULL};
    PyObject *dy_given, *x_given, *out = Py_None, *step_given = Py_None;
    int training = 0;
    uint64_t step;
    loralinear *self = (loralinear *)o;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OpO:backward", names, &dy_given, &x_given, &out, &training, &step_given) ||
        read_step(self, step_given, training, &step) < 0)
        return NULL;
    lora_weight w = self->weight.w;
    lora_py_array dy = {0}, x = {0}, held = {0};
    PyObject *result = NULL;
    float *dx;
    int64_t lddx;
    if (lora_py_get_on(self->base.ctx, dy_given, "dy", LORA_PY_F32, LORA_PY_ROWS, &dy) < 0) return NULL;
    if (lora_py_get_on(self->base.ctx, x_given, "x", LORA_PY_F32, LORA_PY_ROWS, &x) < 0) goto done;
    if (lora_py_expect_last(&x, w.cols, NULL) < 0 || lora_py_expect_last(&dy, w.rows, &x) < 0) goto done;
    result = output(self, out, &x, w.cols, &held, &dx, &lddx);
    if (!result) goto done;
    if (lora_py_apart(&held, &x) < 0 || lora_py_apart(&held, &dy) < 0 || apart_from_weights(self, &held) < 0 ||
        apart_from_gradients(self, &x) < 0 || apart_from_gradients(self, &dy) < 0 || lora_py_enter(&self->base) < 0) {
        Py_CLEAR(result);
        goto done;
    }
    if (refresh_norm(self) < 0) {
        lora_py_leave(&self->base);
        Py_CLEAR(result);
        goto done;
    }
    lora_adapter adapter = adapter_of(self);
    lora_linear_gradient gradient = {.dy = lora_mat_f32(dy.data, x.rows, w.rows, dy.ld),
                                     .w = &w,
                                     .adapter = &adapter,
                                     .pass = pass_of(self, training, step),
                                     .dW = self->weight.grad,
                                     .dbias = self->dbias};
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status,
                 lora_linear_backward(self->base.ctx, lora_mat_f32(x.data, x.rows, w.cols, x.ld), 1, &gradient,
                                      lora_mat_f32(dx, x.rows, w.cols, lddx), false, &err));
    lora_py_leave(&self->base);
    result = finish(self, result, status, &err);
done:
    lora_py_release(&held);
    lora_py_release(&x);
    lora_py_release(&dy);
    return result;
}

PyDoc_STRVAR(merge_doc,
             "merge($self, /, *, sign=1.0)\n--\n\n"
             "Return W + sign s B A; with DoRA g (W + s B A).\n\n"
             "Parameters\n----------\nsign : float\n    1 to merge, -1 to take a merged adapter out (not with DoRA: keep the base).\n\n"
             "Returns\n-------\nndarray or DeviceArray\n    float32, (out_features, in_features); each element is rounded once.\n\n"
             "Source\n------\nLoRA, arXiv:2106.09685, section 4.1.");

static PyObject *linear_merge(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sign", NULL};
    double sign = 1.0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$d:merge", names, &sign)) return NULL;
    loralinear *self = (loralinear *)o;
    lora_weight w = self->weight.w;
    const int64_t shape[] = {w.rows, w.cols};
    float *merged;
    PyObject *result = new_result(self, 2, shape, &merged);
    if (!result || lora_py_enter(&self->base) < 0) {
        Py_XDECREF(result);
        return NULL;
    }
    if (refresh_norm(self) < 0) {
        lora_py_leave(&self->base);
        Py_DECREF(result);
        return NULL;
    }
    lora_adapter adapter = adapter_of(self);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_linear_merge(self->base.ctx, &w, &adapter, self->norm, (float)sign, merged, &err));
    lora_py_leave(&self->base);
    return finish(self, result, status, &err);
}

PyDoc_STRVAR(parameters_doc, "parameters($self, /)\n--\n\nReturn the trained parameters: A, B, DoRA\'s magnitude, then a base and a bias "
                             "that were given as Parameter.");

static PyObject *linear_parameters(PyObject *o, PyObject *unused) {
    (void)unused;
    loralinear *self = (loralinear *)o;
    PyObject *list = PyList_New(0);
    struct {
        PyObject *parameter;
        float *grad;
    } all[] = {{(PyObject *)self->A, self->A->grad},
               {(PyObject *)self->B, self->B->grad},
               {(PyObject *)self->magnitude, self->magnitude ? self->magnitude->grad : NULL},
               {self->weight.keep, self->weight.grad},
               {self->bias_keep, self->dbias}};
    for (size_t i = 0; list && i < sizeof all / sizeof *all; i++)
        if (all[i].grad && PyList_Append(list, all[i].parameter) < 0) Py_CLEAR(list);
    return list;
}

/* --- buffer ------------------------------------------------------------------------------------------------------- */

static int linear_getbuffer(PyObject *o, Py_buffer *view, int flags) {
    loralinear *self = (loralinear *)o;
    if (!lora_py_is_host(self->base.ctx)) {
        view->obj = NULL;
        PyErr_Format(PyExc_BufferError,
                     "LoRALinear: expected one on the CPU, got one on device %s; use read() and write() of its parameters()",
                     lora_ctx_device(self->base.ctx));
        return -1;
    }
    if (self->apart) {
        view->obj = NULL;
        PyErr_Format(PyExc_BufferError,
                     "LoRALinear: expected A, B%s behind each other in one block of memory, got %s elsewhere; give arrays, "
                     "which are copied, or Parameters of one Parameter.block()",
                     self->magnitude ? " and the magnitude" : "", self->apart);
        return -1;
    }
    *view = (Py_buffer){
        .buf = self->A->data,
        .obj = Py_NewRef(o),
        .len = self->flat_size * self->flat_stride,
        .itemsize = self->flat_stride,
        .format = flags & PyBUF_FORMAT ? "f" : NULL,
        .ndim = 1,
        .shape = flags & PyBUF_ND ? &self->flat_size : NULL,
        .strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? &self->flat_stride : NULL,
    };
    return 0;
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

enum { ATTR_A, ATTR_B, MAGNITUDE, BASE, IN, OUT, RANK, ALPHA, SCALING, DROPOUT };

static PyObject *linear_get(PyObject *o, void *which) {
    loralinear *self = (loralinear *)o;
    switch ((int)(intptr_t)which) {
    case ATTR_A: return Py_NewRef((PyObject *)self->A);
    case ATTR_B: return Py_NewRef((PyObject *)self->B);
    case MAGNITUDE: return Py_NewRef(self->magnitude ? (PyObject *)self->magnitude : Py_None);
    case BASE: return Py_NewRef(self->given);
    case IN: return PyLong_FromLongLong(self->weight.w.cols);
    case OUT: return PyLong_FromLongLong(self->weight.w.rows);
    case RANK: return PyLong_FromLongLong(self->rank);
    case ALPHA: return PyFloat_FromDouble(self->lora_alpha);
    case SCALING: return PyFloat_FromDouble(self->scaling);
    default: return PyFloat_FromDouble(self->dropout);
    }
}

static PyObject *linear_repr(PyObject *o) {
    loralinear *self = (loralinear *)o;
    static const char *const kinds[] = {"float32", "bfloat16", "NF4", "GGML"};
    PyObject *alpha = PyFloat_FromDouble(self->lora_alpha);
    int is_host = lora_py_is_host(self->base.ctx);
    PyObject *text = alpha ? PyUnicode_FromFormat("LoRALinear(in_features=%lld, out_features=%lld, r=%lld, lora_alpha=%R, base=%s%s%s%s)",
                                                  (long long)self->weight.w.cols, (long long)self->weight.w.rows, (long long)self->rank,
                                                  alpha, kinds[self->weight.w.kind], is_host ? "" : ", device='",
                                                  is_host ? "" : lora_ctx_device(self->base.ctx), is_host ? "" : "'")
                           : NULL;
    Py_XDECREF(alpha);
    return text;
}

#define GETTER(name, which, doc) {name, linear_get, NULL, doc, (void *)(intptr_t)(which)}
static PyGetSetDef linear_getset[] = {
    GETTER("A", ATTR_A, "(r, in_features)."),
    GETTER("B", ATTR_B, "(out_features, r)."),
    GETTER("magnitude", MAGNITUDE, "(out_features,) with DoRA, else None."),
    GETTER("base", BASE, "The frozen matrix as it was given."),
    GETTER("in_features", IN, "Columns of the base."),
    GETTER("out_features", OUT, "Rows of the base."),
    GETTER("r", RANK, "Rank of the adapter."),
    GETTER("lora_alpha", ALPHA, "Numerator of the scale."),
    GETTER("scaling", SCALING, "s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."),
    GETTER("lora_dropout", DROPOUT, "Probability of zeroing an element of x on its way to A in training."),
    {"device", lora_py_get_device, NULL, "The name of the device that it lies and computes on.", NULL},
    {0},
};

LORA_PY_KEEP(linear_forward)
LORA_PY_KEEP(linear_backward)
LORA_PY_KEEP(linear_merge)

static PyObject *linear_repr_html(PyObject *o, PyObject *unused) {
    (void)unused;
    static const char *const attributes[] = {"in_features", "out_features", "base", "r", "lora_alpha", "scaling", "lora_dropout", NULL};
    return lora_py_html(o, attributes);
}

static PyMethodDef linear_methods[] = {
    {"forward", LORA_PY_KEYWORDS linear_forward_kept, METH_VARARGS | METH_KEYWORDS, forward_doc},
    {"backward", LORA_PY_KEYWORDS linear_backward_kept, METH_VARARGS | METH_KEYWORDS, backward_doc},
    {"merge", LORA_PY_KEYWORDS linear_merge_kept, METH_VARARGS | METH_KEYWORDS, merge_doc},
    {"parameters", linear_parameters, METH_NOARGS, parameters_doc},
    {"_repr_html_", linear_repr_html, METH_NOARGS, "A table for notebooks."},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

PyDoc_STRVAR(
    linear_doc,
    "LoRALinear(base, r=8, *, lora_alpha=8.0, lora_dropout=0.0, bias=None, A=None, B=None, seed=0, use_rslora=False, "
    "use_dora=False, magnitude=None, device=None)\n--\n\n"
    "A linear layer with a LoRA adapter: y = W x + bias + s B A x.\n\n"
    "Shapes\n------\nbase (out_features, in_features); bias (out_features,); A (r, in_features); B (out_features, r).\n\n"
    "Parameters\n----------\n"
    "base : NF4Tensor, GGMLTensor, array or Parameter\n    Frozen as NF4Tensor, GGMLTensor or as a float32 or bfloat16 array, which is "
    "borrowed, not copied;\n"
    "    trained as Parameter. On another device than the CPU also DeviceWeight and DeviceArray, which are borrowed; what the host\n"
    "    has is copied there.\n"
    "r : int\n    Rank.\n"
    "lora_alpha : float\n    s = lora_alpha / r.\n"
    "lora_dropout : float\n    Dropout on the input of A while training.\n"
    "bias : array or Parameter, optional\n    Added to every row.\n"
    "A, B : array or Parameter, optional\n    Start values (copied) or shared parameters. By default A is uniform in\n"
    "    +-1/sqrt(in_features), as PEFT draws it, and B is zero.\n"
    "seed : int\n    For A and for the dropout masks.\n"
    "use_rslora : bool\n    s = lora_alpha / sqrt(r).\n"
    "use_dora : bool\n    DoRA: y = g (W x + s B A x) + bias with g = magnitude / ||W + s B A|| by rows.\n"
    "magnitude : array or Parameter, optional\n    (out_features,), implies use_dora; by default the row lengths of W + s B A.\n"
    "device : str, optional\n    Where it lies and computes, a name of devices(); by default where base lies. forward() and backward() "
    "take "
    "and give arrays\n    there.\n\n"
    "Raises\n------\nValueError\n    A shape or a number does not fit.\nTypeError\n    Another element type.\n\n"
    "Notes\n-----\nOne thread at a time per layer; a second one gets RuntimeError.\n\n"
    "The buffer protocol gives the parameters as one flat float32 array, writable: A, B, the magnitude where there is one, and a\n"
    "bias that is a Parameter right behind them. A.data, B.data and magnitude.data are views of it. It stays valid after the layer\n"
    "is gone, and takes no lock: what another thread writes while the layer is in use counts from some moment on. BufferError\n"
    "where shared Parameters do not lie behind each other (see Parameter.block).\n\n"
    "Source\n------\nLoRA, arXiv:2106.09685, eq. 3; rsLoRA, arXiv:2312.03732; DoRA,\n"
    "arXiv:2402.09353, eq. 5.");

static PyType_Slot linear_slots[] = {
    {Py_tp_new, linear_new},
    {Py_tp_dealloc, linear_dealloc},
    {Py_tp_traverse, linear_traverse},
    {Py_tp_repr, linear_repr},
    {Py_tp_methods, linear_methods},
    {Py_tp_getset, linear_getset},
    {Py_tp_doc, (void *)linear_doc},
    {Py_tp_call, linear_forward_kept},
    {Py_bf_getbuffer, linear_getbuffer},
    {0, NULL},
};

PyType_Spec lora_py_loralinear_spec = {
    .name = "lora_c._core.LoRALinear",
    .basicsize = sizeof(loralinear),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = linear_slots,
};
