/* Operations with a weight matrix, and attention, on arrays of any device. */
#include "lora_c/bindings/py_ops.h"

#include <math.h>
#include <string.h>

/* The same leading dimensions with another last one. */
static float *give_last(lora_py_call *c, const lora_py_array *like, int64_t cols) {
    int64_t shape[LORA_PY_MAX_DIMS];
    memcpy(shape, like->shape, sizeof shape);
    shape[like->ndim - 1] = cols;
    return lora_py_give(c, like->ndim, shape, 0);
}

static float *give_matrix(lora_py_call *c, int64_t rows, int64_t cols) {
    const int64_t shape[] = {rows, cols};
    return lora_py_give(c, 2, shape, 1);
}

/* The ids of a call, for the device; weight NULL: each of them is looked at. NULL with an exception. */
static const int32_t *send_ids(lora_py_call *c, const char *name, int64_t end, const float *weight) {
    if (lora_py_check_ids(c, name, end, weight) < 0) return NULL;
    return lora_py_send(c, c->ids.data, (size_t)c->ids.n * sizeof *c->ids.data, name);
}

/* --- linear ------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(
    linear_doc,
    "linear($module, x, w, /, bias=None)\n--\n\n"
    "y = x w^T + bias.\n\n"
    "Shapes\n------\nx (..., in_features) float32; w (out_features, in_features); bias (out_features,); result (..., out_features).\n\n"
    "Parameters\n----------\n"
    "x : array\n    Input.\n"
    "w : NF4Tensor, GGMLTensor, Parameter or array\n    NF4, GGUF blocks, float32 or bfloat16.\n"
    "bias : array, optional\n    float32; added to each row.\n\n"
    "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
    "Source\n------\nQLoRA, arXiv:2305.14314, eq. 5, without the adapter.");

static PyObject *op_linear(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "bias", NULL};
    PyObject *x_given, *w_given, *bias_given = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:linear", names, &x_given, &w_given, &bias_given)) return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *x = lora_py_take(&c, x_given, "x", LORA_PY_ROWS), *bias = NULL;
    if (!x || lora_py_take_weight(&c, w_given, "w") < 0) return lora_py_abandon(&c);
    const lora_weight *w = &c.weight.w;
    if (lora_py_expect_last(x, w->cols, NULL) < 0) return lora_py_abandon(&c);
    if (bias_given != Py_None && (!(bias = lora_py_take(&c, bias_given, "bias", 0)) || lora_py_expect(bias, 1, &w->rows) < 0))
        return lora_py_abandon(&c);
    float *y = give_last(&c, x, w->rows);
    if (!y) return lora_py_abandon(&c);
    lora_status status;
    lora_linear_layer layer = {.w = w, .bias = bias ? bias->data : NULL, .y = lora_mat_f32(y, x->rows, w->rows, w->rows)};
    LORA_PY_RUN(c, status, lora_linear_forward(c.at.ctx, lora_mat_f32(x->data, x->rows, w->cols, x->ld), 1, &layer, &c.err));
    return lora_py_end(&c, status);
}

PyDoc_STRVAR(linear_backward_doc,
             "linear_backward($module, dy, w, /, x=None)\n--\n\n"
             "The gradients of linear: dx = dy w and, when x is given, (dx, dw, dbias) with dw = dy^T x and dbias = sum of dy.\n\n"
             "Shapes\n------\ndy (..., out_features); w (out_features, in_features); x and dx (..., in_features); dw like w; dbias "
             "(out_features,).\n\n"
             "Parameters\n----------\n"
             "dy : array\n    Gradient of the result.\n"
             "w : NF4Tensor, GGMLTensor, Parameter or array\n    As given to linear().\n"
             "x : array, optional\n    As given to linear(); with it the gradients of w and bias are computed, too.\n\n"
             "Raises\n------\nValueError, TypeError\n    A shape or an element type does not fit.\n\n"
             "Source\n------\nQLoRA, arXiv:2305.14314, eq. 5, differentiated.");

static PyObject *op_linear_backward(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "x", NULL};
    PyObject *dy_given, *w_given, *x_given = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:linear_backward", names, &dy_given, &w_given, &x_given)) return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *dy = lora_py_take(&c, dy_given, "dy", LORA_PY_ROWS), *x = NULL;
    if (!dy || lora_py_take_weight(&c, w_given, "w") < 0) return lora_py_abandon(&c);
    const lora_weight *w = &c.weight.w;
    if (lora_py_expect_last(dy, w->rows, NULL) < 0) return lora_py_abandon(&c);
    if (x_given != Py_None && (!(x = lora_py_take(&c, x_given, "x", LORA_PY_ROWS)) || lora_py_expect_last(x, w->cols, dy) < 0))
        return lora_py_abandon(&c);
    float *dx = give_last(&c, dy, w->cols), *dw = NULL, *dbias = NULL;
    if (!dx) return lora_py_abandon(&c);
    if (x && (!(dw = give_matrix(&c, w->rows, w->cols)) || !(dbias = lora_py_give(&c, 1, &w->rows, 1)))) return lora_py_abandon(&c);
    lora_status status;
    lora_linear_gradient gradient = {.dy = lora_mat_f32(dy->data, dy->rows, w->rows, dy->ld), .w = w, .dW = dw, .dbias = dbias};
    lora_mat input = x ? lora_mat_f32(x->data, x->rows, w->cols, x->ld) : lora_mat_none();
    LORA_PY_RUN(c, status,
                lora_linear_backward(c.at.ctx, input, 1, &gradient, lora_mat_f32(dx, dy->rows, w->cols, w->cols), false, &c.err));
    return lora_py_end(&c, status);
}

/* --- embedding ---------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(embedding_doc, "embedding($module, ids, w, /)\n--\n\n"
                            "w[ids].\n\n"
                            "Shapes\n------\nids (M,) integers; w (V, H); result (M, H) float32.\n\n"
                            "Parameters\n----------\n"
                            "ids : array or list of int\n    Rows of w.\n"
                            "w : NF4Tensor, GGMLTensor, Parameter or array\n    NF4, GGUF blocks, float32 or bfloat16.\n\n"
                            "Raises\n------\nValueError\n    An id is not in 0 ... V - 1 (its index is named), or a shape does not fit.");

static PyObject *op_embedding(PyObject *module, PyObject *args) {
    PyObject *ids_given, *w_given;
    if (!PyArg_ParseTuple(args, "OO:embedding", &ids_given, &w_given)) return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    if (lora_py_get_ids(ids_given, "ids", &c.ids) < 0 || lora_py_take_weight(&c, w_given, "w") < 0) return lora_py_abandon(&c);
    int64_t M = c.ids.n, H = c.weight.w.cols;
    const int32_t *ids = send_ids(&c, "ids", c.weight.w.rows, NULL);
    float *y = ids ? give_matrix(&c, M, H) : NULL;
    if (!y) return lora_py_abandon(&c);
    lora_status status;
    LORA_PY_RUN(c, status, lora_embedding_forward(c.at.ctx, ids, &c.weight.w, lora_mat_f32(y, M, H, H), &c.err));
    return lora_py_end(&c, status);
}

PyDoc_STRVAR(embedding_backward_doc, "embedding_backward($module, ids, dy, vocab_size, /)\n--\n\n"
                                     "The gradient of embedding: dw[v] is the sum of dy[m] over ids[m] == v.\n\n"
                                     "Shapes\n------\nids (M,) integers; dy (M, H) float32; result (vocab_size, H).\n\n"
                                     "Parameters\n----------\n"
                                     "ids : array or list of int\n    As given to embedding().\n"
                                     "dy : array\n    Gradient of the result.\n"
                                     "vocab_size : int\n    Rows of the embedding.\n\n"
                                     "Raises\n------\nValueError\n    An id is not in 0 ... vocab_size - 1, or a shape does not fit.");

static PyObject *op_embedding_backward(PyObject *module, PyObject *args) {
    PyObject *ids_given, *dy_given;
    int64_t V;
    if (!PyArg_ParseTuple(args, "OOO&:embedding_backward", &ids_given, &dy_given, lora_py_whole, &V)) return NULL;
    if (V < 1 || V > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "vocab_size: expected 1 to 2**31 - 1, got %lld", (long long)V);
        return NULL;
    }
    lora_py_call c;
    lora_py_begin(&c, module);
    if (lora_py_get_ids(ids_given, "ids", &c.ids) < 0) return lora_py_abandon(&c);
    lora_py_array *dy = lora_py_take(&c, dy_given, "dy", 0);
    const int64_t shape[] = {c.ids.n, -1};
    if (!dy || lora_py_expect(dy, 2, shape) < 0) return lora_py_abandon(&c);
    const int32_t *ids = send_ids(&c, "ids", V, NULL);
    float *dw = ids ? give_matrix(&c, V, dy->cols) : NULL;
    if (!dw) return lora_py_abandon(&c);
    lora_status status;
    LORA_PY_RUN(c, status, lora_embedding_backward(c.at.ctx, ids, lora_py_mat(dy), lora_mat_f32(dw, V, dy->cols, dy->cols), &c.err));
    return lora_py_end(&c, status);
}

/* --- loss --------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(
    cross_entropy_doc,
    "cross_entropy($module, x, w, targets, loss_weight, /, *, gradients=False, grad_scale=1.0, logit_scale=1.0, logit_softcap=0.0)\n--\n\n"
    "The loss of a linear head without ever holding all logits.\n\n"
    "Shapes\n------\nx (M, H) float32; w (V, H); targets (M,) integers; loss_weight (M,) float32.\n\n"
    "Parameters\n----------\n"
    "x : array\n    What the head reads.\n"
    "w : NF4Tensor, GGMLTensor, Parameter or array\n    The head.\n"
    "targets : array or list of int\n    The token that each row must predict.\n"
    "loss_weight : array\n    0 where a row carries no loss.\n"
    "gradients : bool\n    Compute them too.\n"
    "grad_scale : float\n    Multiplies the gradients.\n"
    "logit_scale, logit_softcap : float\n    Logits are c tanh(logit_scale x w^T / c) with c = logit_softcap; 0: without tanh.\n\n"
    "Returns\n-------\nfloat, or (float, dx, dw)\n    Sum of loss_weight * (logsumexp(x w^T) - logit of the target), in nats; dx like x, "
    "dw like w.\n\n"
    "Raises\n------\nValueError\n    A target is not in 0 ... V - 1 where loss_weight is not 0, or a shape does not fit.");

/* loss->loss_sum is an address of the host. */
static lora_status run_cross_entropy(lora_ctx *ctx, lora_mat x, const lora_weight *w, lora_loss *loss, lora_mat dx, float *dw,
                                     lora_error *err) {
    double *sum = loss->loss_sum;
    void *there;
    LORA_TRY(lora_output_open(ctx, sum, sizeof *sum, &there, err));
    loss->loss_sum = there;
    lora_status status = lora_linear_cross_entropy(ctx, x, w, loss, dx, dw, err);
    LORA_TRY(lora_output_close(ctx, sum, sizeof *sum, there, status, err));
    return lora_sync(ctx, err);
}

static PyObject *op_cross_entropy(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "gradients", "grad_scale", "logit_scale", "logit_softcap", NULL};
    PyObject *x_given, *w_given, *targets_given, *weight_given;
    int gradients = 0;
    double grad_scale = 1.0, loss_sum = 0.0;
    lora_logit_map map = {.scale = 1.0f, .softcap = 0.0f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$pdff:cross_entropy", names, &x_given, &w_given, &targets_given, &weight_given,
                                     &gradients, &grad_scale, &map.scale, &map.softcap))
        return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *x = lora_py_take(&c, x_given, "x", 0);
    if (!x || lora_py_take_weight(&c, w_given, "w") < 0) return lora_py_abandon(&c);
    const lora_weight *w = &c.weight.w;
    const int64_t x_shape[] = {-1, w->cols};
    if (lora_py_expect(x, 2, x_shape) < 0 || lora_py_get_ids(targets_given, "targets", &c.ids) < 0 ||
        lora_py_expect(&c.ids.array, 1, &x->rows) < 0)
        return lora_py_abandon(&c);
    lora_py_array *weight = lora_py_take_host(&c, weight_given, "loss_weight", x->rows); /* says which targets are read */
    const int32_t *targets = weight ? send_ids(&c, "targets", w->rows, weight->data) : NULL;
    const float *loss_weight = targets ? lora_py_send(&c, weight->data, (size_t)x->rows * sizeof(float), "loss_weight") : NULL;
    if (!loss_weight) return lora_py_abandon(&c);
    float *dx = NULL, *dw = NULL;
    if (gradients && (!(dx = lora_py_give_like(&c, x)) || !(dw = give_matrix(&c, w->rows, w->cols)))) return lora_py_abandon(&c);
    lora_loss loss = {.targets = targets, .loss_weight = loss_weight, .grad_scale = (float)grad_scale, .loss_sum = &loss_sum, .map = map};
    lora_status status;
    LORA_PY_RUN(c, status, run_cross_entropy(c.at.ctx, lora_py_mat(x), w, &loss, lora_py_mat_like(dx, x), dw, &c.err));
    PyObject *result = lora_py_end(&c, status);
    if (!result || !gradients) {
        Py_XDECREF(result);
        return result ? PyFloat_FromDouble(loss_sum) : NULL;
    }
    PyObject *with_loss = Py_BuildValue("(dOO)", loss_sum, PyTuple_GET_ITEM(result, 0), PyTuple_GET_ITEM(result, 1));
    Py_DECREF(result);
    return with_loss;
}

PyDoc_STRVAR(
    values_loss_doc,
    "values_loss($module, y, values, loss_weight, /, *, kind, gradients=False, grad_scale=1.0)\n--\n\n"
    "The loss of numbers that are each compared with a value: a regression's, or that of several answers of yes or no.\n\n"
    "Shapes\n------\ny, values (M, N) float32; loss_weight (M,) float32.\n\n"
    "Parameters\n----------\n"
    "y : array\n    The numbers.\n"
    "values : array\n    What they should be; from 0 to 1 for 'binary_entropy'.\n"
    "loss_weight : array\n    0 where a row carries no loss; its values are not looked at.\n"
    "kind : 'squared_error' or 'binary_entropy'\n    (y - v)^2, or -v log s(y) - (1 - v) log(1 - s(y)) with the logistic function s.\n"
    "gradients : bool\n    Compute them too.\n"
    "grad_scale : float\n    Multiplies the gradients.\n\n"
    "Returns\n-------\nfloat, or (float, dy)\n    Sum of loss_weight times the mean of a row; dy like y.\n\n"
    "Raises\n------\nValueError\n    There is no such kind, or a shape does not fit.");

static lora_status run_values_loss(lora_ctx *ctx, lora_mat y, lora_values *loss, lora_mat dy, lora_error *err) {
    double *sum = loss->loss_sum;
    void *there;
    LORA_TRY(lora_output_open(ctx, sum, sizeof *sum, &there, err));
    loss->loss_sum = there;
    LORA_TRY(lora_output_close(ctx, sum, sizeof *sum, there, lora_values_loss(ctx, y, loss, dy, err), err));
    return lora_sync(ctx, err);
}

static PyObject *op_values_loss(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "kind", "gradients", "grad_scale", NULL};
    PyObject *y_given, *values_given, *weight_given;
    const char *kind = NULL;
    int gradients = 0;
    double grad_scale = 1.0, loss_sum = 0.0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$spd:values_loss", names, &y_given, &values_given, &weight_given, &kind, &gradients,
                                     &grad_scale))
        return NULL;
    bool squared = kind && strcmp(kind, "squared_error") == 0;
    if (!squared && (!kind || strcmp(kind, "binary_entropy") != 0))
        return PyErr_Format(PyExc_ValueError, "kind: expected 'squared_error' or 'binary_entropy', got '%s'", kind ? kind : "");
    lora_py_call c;
    lora_py_begin(&c, module);
    lora_py_array *y = lora_py_take(&c, y_given, "y", 0);
    const int64_t shape[] = {-1, -1};
    if (!y || lora_py_expect(y, 2, shape) < 0) return lora_py_abandon(&c);
    lora_py_array *values = lora_py_take_like(&c, values_given, "values", y), *weight = NULL;
    if (!values || !(weight = lora_py_take_host(&c, weight_given, "loss_weight", y->rows))) return lora_py_abandon(&c);
    const float *loss_weight = lora_py_send(&c, weight->data, (size_t)y->rows * sizeof(float), "loss_weight");
    if (!loss_weight) return lora_py_abandon(&c);
    float *dy = NULL;
    if (gradients && !(dy = lora_py_give_like(&c, y))) return lora_py_abandon(&c);
    lora_values loss = {.kind = squared ? LORA_VALUES_SQUARED_ERROR : LORA_VALUES_BINARY_ENTROPY,
                        .values = values->data,
                        .loss_weight = loss_weight,
                        .grad_scale = (float)grad_scale,
                        .loss_sum = &loss_sum};
    lora_status status;
    LORA_PY_RUN(c, status, run_values_loss(c.at.ctx, lora_py_mat(y), &loss, lora_py_mat_like(dy, y), &c.err));
    PyObject *result = lora_py_end(&c, status);
    if (!result || !gradients) {
        Py_XDECREF(result);
        return result ? PyFloat_FromDouble(loss_sum) : NULL;
    }
    PyObject *with_loss = Py_BuildValue("(dO)", loss_sum, result);
    Py_DECREF(result);
    return with_loss;
}

/* --- attention ---------------------------------------------------------------------------------------------------- */

typedef struct attention_args {
    lora_attention_shape shape;
    int64_t M, n_segments;
    const int32_t *cu, *cu_there; /* of the host, and for the device */
    const float *q, *k, *v, *dout;
    float *o, *lse, *dq, *dk, *dv;
    int64_t *table;                /* start and length, (n_segments) each, of the host */
    const int64_t *start, *length; /* for the device */
} attention_args;

/* Shapes of q, k, v and the segments; what the segments must satisfy the library checks. */
static int attention_inputs(lora_py_call *c, PyObject *const given[4], double scale, int64_t window, float softcap, attention_args *a) {
    const int64_t any[] = {-1, -1, -1};
    lora_py_array *q = lora_py_take(c, given[0], "q", 0);
    if (!q || lora_py_expect(q, 3, any) < 0) return -1;
    const int64_t kv_shape[] = {q->shape[0], -1, q->shape[2]};
    lora_py_array *k = lora_py_take(c, given[1], "k", 0);
    if (!k || lora_py_expect(k, 3, kv_shape) < 0) return -1;
    lora_py_array *v = lora_py_take_like(c, given[2], "v", k);
    if (!v || lora_py_get_ids(given[3], "cu_seqlens", &c->ids) < 0) return -1;
    int64_t n = c->ids.n;
    const int32_t *cu = c->ids.data;
    if (n < 2 || cu[0] != 0 || cu[n - 1] != q->shape[0]) {
        PyErr_Format(PyExc_ValueError, "cu_seqlens: expected 0, the ends of the segments, and at last %lld, got %lld numbers from %d to %d",
                     (long long)q->shape[0], (long long)n, (int)cu[0], (int)cu[n - 1]);
        return -1;
    }
    for (int64_t i = 1; i < n; i++) { /* the tables below are made from them before the library sees them */
        if (cu[i] > cu[i - 1]) continue;
        PyErr_Format(PyExc_ValueError, "cu_seqlens: expected rising numbers, got %d after %d", (int)cu[i], (int)cu[i - 1]);
        return -1;
    }
    *a = (attention_args){
        .shape = {.n_heads = q->shape[1],
                  .n_kv_heads = k->shape[1],
                  .head_dim = q->shape[2],
                  .scale = (float)(isnan(scale) ? 1.0 / sqrt((double)q->shape[2]) : scale),
                  .sliding_window = window,
                  .softcap = softcap},
        .M = q->shape[0],
        .n_segments = n - 1,
        .cu = cu,
        .q = q->data,
        .k = k->data,
        .v = v->data,
    };
    return 0;
}

static lora_status run_attention(lora_ctx *ctx, attention_args *a, lora_error *err) {
    int64_t M = a->M, D = a->shape.head_dim, width = a->shape.n_heads * D, kv_width = a->shape.n_kv_heads * D;
    lora_segments segments = {.n = a->n_segments, .cu_seqlens = a->cu, .on_device = a->cu_there};
    lora_kv kv = {.k = a->k, .v = a->v, .ldk = kv_width, .ldv = kv_width, .start = a->start, .length = a->length};
    lora_mat q = lora_mat_f32(a->q, M, width, width), o = lora_mat_f32(a->o, M, width, width);
    LORA_TRY(lora_attention_forward(ctx, &a->shape, &segments, q, &kv, o, a->lse, err));
    if (!a->dout) return LORA_OK;
    lora_attention_gradient gradient = {.q = q,
                                        .k = lora_mat_f32(a->k, M, kv_width, kv_width),
                                        .v = lora_mat_f32(a->v, M, kv_width, kv_width),
                                        .o = o,
                                        .dout = lora_mat_f32(a->dout, M, width, width),
                                        .lse = a->lse,
                                        .dq = lora_mat_f32(a->dq, M, width, width),
                                        .dk = lora_mat_f32(a->dk, M, kv_width, kv_width),
                                        .dv = lora_mat_f32(a->dv, M, kv_width, kv_width)};
    return lora_attention_backward(ctx, &a->shape, &segments, &gradient, err);
}

/* The tables of the segments; -1 with an exception. */
static int attention_tables(lora_py_call *c, attention_args *a) {
    size_t n = (size_t)a->n_segments;
    a->table = PyMem_RawMalloc(2 * n * sizeof *a->table);
    if (!a->table) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t s = 0; s < n; s++) {
        a->table[s] = a->cu[s];
        a->table[n + s] = a->cu[s + 1] - a->cu[s];
    }
    a->start = lora_py_send(c, a->table, 2 * n * sizeof *a->table, "cu_seqlens");
    a->length = a->start ? a->start + n : NULL;
    a->cu_there = a->start ? lora_py_send(c, a->cu, (n + 1) * sizeof *a->cu, "cu_seqlens") : NULL;
    return a->cu_there ? 0 : -1;
}

/* The end of a call that could compute, or not: with an exception then. */
static PyObject *end_attention(lora_py_call *c, attention_args *a, int ready) {
    PyObject *result = NULL;
    if (ready) {
        lora_status status;
        LORA_PY_RUN(*c, status, run_attention(c->at.ctx, a, &c->err));
        result = lora_py_end(c, status);
    } else {
        (void)lora_py_abandon(c);
    }
    PyMem_RawFree(a->table);
    return result;
}

PyDoc_STRVAR(attention_doc, "attention($module, q, k, v, cu_seqlens, /, *, scale=None, sliding_window=0, softcap=0.0)\n--\n\n"
                            "Causal grouped-query attention over packed segments.\n\n"
                            "Shapes\n------\nq (M, heads, D); k, v (M, kv_heads, D) with heads a multiple of kv_heads; cu_seqlens "
                            "(segments + 1,): 0 and the ends of the\n"
                            "segments; result like q. float32.\n\n"
                            "Parameters\n----------\n"
                            "q, k, v : array\n    Queries, keys and values.\n"
                            "cu_seqlens : array or list of int\n    0 and the ends of the segments.\n"
                            "scale : float, optional\n    By default 1 / sqrt(D).\n"
                            "sliding_window : int\n    A query sees this many keys, itself included; 0: all before it.\n"
                            "softcap : float\n    Scores are softcap tanh(score / softcap); 0: without tanh.\n\n"
                            "Raises\n------\nValueError, TypeError\n    A shape, a segment or an element type does not fit.\n\n"
                            "Notes\n-----\nTiled: no M x M matrix exists.\n\n"
                            "Source\n------\nFlashAttention-2, arXiv:2307.08691, algorithm 1.");

static int scale_converter(PyObject *o, void *out) {
    double scale = o == Py_None ? NAN : PyFloat_AsDouble(o);
    if (PyErr_Occurred()) return 0;
    if (o != Py_None && !isfinite(scale)) {
        PyErr_SetString(PyExc_ValueError, "scale: expected a finite number, got NaN or infinity");
        return 0;
    }
    *(double *)out = scale;
    return 1;
}

static PyObject *op_attention(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "scale", "sliding_window", "softcap", NULL};
    PyObject *given[4];
    double scale = NAN;
    float softcap = 0.0f;
    int64_t window = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$O&O&f:attention", names, &given[0], &given[1], &given[2], &given[3],
                                     scale_converter, &scale, lora_py_whole, &window, &softcap))
        return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    attention_args a = {0};
    int ready = attention_inputs(&c, given, scale, window, softcap, &a) == 0 && (a.o = lora_py_give_like(&c, &c.in[0])) != NULL &&
                attention_tables(&c, &a) == 0;
    return end_attention(&c, &a, ready);
}

PyDoc_STRVAR(attention_backward_doc,
             "attention_backward($module, dout, q, k, v, cu_seqlens, /, *, scale=None, sliding_window=0, softcap=0.0)\n--\n\n"
             "The gradients (dq, dk, dv) of attention.\n\n"
             "Shapes\n------\ndout, q and dq (M, heads, D); k, v, dk and dv (M, kv_heads, D). float32.\n\n"
             "Parameters\n----------\n"
             "dout : array\n    Gradient of the result.\n"
             "q, k, v : array\n    As given to attention().\n"
             "cu_seqlens : array or list of int\n    As given to attention().\n"
             "scale : float, optional\n    As given to attention().\n"
             "sliding_window : int\n    As given to attention().\n"
             "softcap : float\n    As given to attention().\n\n"
             "Raises\n------\nValueError, TypeError\n    As attention().\n\n"
             "Source\n------\nFlashAttention-2, arXiv:2307.08691, algorithm 2.");

/* dout, what its gradients are written to, and what the forward pass makes again. */
static int take_gradient(lora_py_call *c, PyObject *dout_given, attention_args *a) {
    lora_py_array *dout = lora_py_take_like(c, dout_given, "dout", &c->in[0]);
    if (!dout || !(a->dq = lora_py_give_like(c, &c->in[0])) || !(a->dk = lora_py_give_like(c, &c->in[1])) ||
        !(a->dv = lora_py_give_like(c, &c->in[1])) || !(a->o = lora_py_work(c, (size_t)dout->n * sizeof(float), "o")))
        return -1;
    a->dout = dout->data;
    a->lse = lora_py_work(c, (size_t)(a->M * a->shape.n_heads) * sizeof(float), "lse");
    return a->lse ? 0 : -1;
}

static PyObject *op_attention_backward(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "", "", "", "", "scale", "sliding_window", "softcap", NULL};
    PyObject *given[4], *dout_given;
    double scale = NAN;
    float softcap = 0.0f;
    int64_t window = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO|$O&O&f:attention_backward", names, &dout_given, &given[0], &given[1], &given[2],
                                     &given[3], scale_converter, &scale, lora_py_whole, &window, &softcap))
        return NULL;
    lora_py_call c;
    lora_py_begin(&c, module);
    attention_args a = {0};
    int ready = attention_inputs(&c, given, scale, window, softcap, &a) == 0 && take_gradient(&c, dout_given, &a) == 0 &&
                attention_tables(&c, &a) == 0;
    return end_attention(&c, &a, ready);
}

LORA_PY_KEEP(op_linear)
LORA_PY_KEEP(op_linear_backward)
LORA_PY_KEEP(op_cross_entropy)
LORA_PY_KEEP(op_values_loss)
LORA_PY_KEEP(op_attention)
LORA_PY_KEEP(op_attention_backward)

PyMethodDef lora_py_matrix_ops[] = {
    {"linear", LORA_PY_KEYWORDS op_linear_kept, METH_VARARGS | METH_KEYWORDS, linear_doc},
    {"linear_backward", LORA_PY_KEYWORDS op_linear_backward_kept, METH_VARARGS | METH_KEYWORDS, linear_backward_doc},
    {"embedding", op_embedding, METH_VARARGS, embedding_doc},
    {"embedding_backward", op_embedding_backward, METH_VARARGS, embedding_backward_doc},
    {"cross_entropy", LORA_PY_KEYWORDS op_cross_entropy_kept, METH_VARARGS | METH_KEYWORDS, cross_entropy_doc},
    {"values_loss", LORA_PY_KEYWORDS op_values_loss_kept, METH_VARARGS | METH_KEYWORDS, values_loss_doc},
    {"attention", LORA_PY_KEYWORDS op_attention_kept, METH_VARARGS | METH_KEYWORDS, attention_doc},
    {"attention_backward", LORA_PY_KEYWORDS op_attention_backward_kept, METH_VARARGS | METH_KEYWORDS, attention_backward_doc},
    {0},
};
