/* How a LoRALinear is made: its base, its bias, its adapter, and where they lie. */
#include "lora_c/bindings/py_loralinear.h"

#include <math.h>

#include "lora_c/place.h"

/* What the layer reads on its device: what is there already, or a copy of what the host has. *keep becomes what owns it. */
static int keep_placed(const lora_py_loralinear *self, lora_py_state *state, lora_status status, void *memory, const lora_error *err,
                       PyObject **keep) {
    PyObject *placed = status == LORA_OK ? lora_py_hold(&self->base, memory) : lora_py_raise(state, err);
    Py_SETREF(*keep, placed);
    return placed ? 0 : -1;
}

static int set_base(lora_py_loralinear *self, lora_py_state *state) {
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

static int place_bias(const lora_py_loralinear *self, lora_py_state *state, lora_py_vector *bias) {
    lora_ctx *ctx = self->base.ctx;
    if (bias->there) return 0;
    lora_status status;
    lora_error err = {0};
    void *memory = NULL;
    LORA_PY_CALL(ctx, status, lora_vector_place(ctx, bias->data, bias->n, &bias->data, &memory, &err));
    return keep_placed(self, state, status, memory, &err, &bias->keep);
}

static int set_bias(lora_py_loralinear *self, lora_py_state *state, PyObject *bias) {
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

lora_adapter lora_py_linear_adapter(const lora_py_loralinear *self) {
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

int lora_py_refresh_norm(lora_py_loralinear *self) {
    if (!self->norm) return 0;
    lora_adapter adapter = lora_py_linear_adapter(self);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_dora_norm(self->base.ctx, &self->weight.w, &adapter, self->norm, &err));
    if (status == LORA_OK) return 0;
    lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), &err);
    return -1;
}

/* A's start, drawn by the host wherever the layer lies: the same everywhere. */
static int draw_A(const lora_py_loralinear *self) {
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
static int copy_norm(const lora_py_loralinear *self, lora_py_state *state) {
    int64_t N = self->weight.w.rows;
    lora_mat from = lora_mat_f32(self->norm, 1, N, N), to = lora_mat_f32(self->magnitude->data, 1, N, N);
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_copy_rows(self->base.ctx, from, NULL, to, NULL, false, &err));
    if (status != LORA_OK) lora_py_raise(state, &err);
    return status == LORA_OK ? 0 : -1;
}

/* A, B, and DoRA's magnitude, which starts from the lengths that the rows have. */
static int set_adapter(lora_py_loralinear *self, lora_py_state *state, PyObject *A, PyObject *B, PyObject *magnitude, int use_dora) {
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
    if (!self->norm || lora_py_refresh_norm(self) < 0) return -1;
    return magnitude == Py_None ? copy_norm(self, state) : 0;
}

/* The buffer ends where a part lies elsewhere; a bias belongs to it only where it follows. */
static void find_flat_size(lora_py_loralinear *self, lora_py_state *state) {
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

int lora_py_seed(PyObject *o, void *out) {
    uint64_t seed = PyLong_AsUnsignedLongLong(o);
    if (seed == UINT64_MAX && PyErr_Occurred()) {
        (void)lora_py_refuse(PyExc_ValueError, "seed, step: expected a whole number from 0 to 2**64 - 1", o);
        return 0;
    }
    *(uint64_t *)out = seed;
    return 1;
}

static int check_numbers(const lora_py_loralinear *self) {
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
                                     &bias, &A, &B, lora_py_seed, &seed, &rslora, &dora, &magnitude, &name))
        return NULL;
    lora_py_state *state = lora_py_state_of(type);
    lora_py_device device = lora_py_device_given(state, given);
    if (name && lora_py_find_device(state, name, &device) < 0) return NULL;
    lora_py_loralinear *self = lora_py_new(type);
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

PyObject *lora_py_linear_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    return lora_py_new_with_kept(make_linear, type, args, kwargs);
}
