/* GradientTree: the sum of a step's micro-batches, as lora_c/comm has it. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devices.h"
#include "lora_c/bindings/py_tree_nodes.h"

typedef struct gradient_tree {
    lora_py_object base;
    PyObject *parameters; /* a tuple: they hold the gradients */
    lora_gradient_tree *tree;
    lora_ctx *beside; /* of the CPU, with an engine and the caller's thread: computes while another thread is in a pass, which holds its
                       * engine to its end */
} gradient_tree;

static void gradient_tree_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    gradient_tree *self = (gradient_tree *)o;
    lora_gradient_tree_destroy(self->tree);
    lora_ctx_destroy(self->beside);
    Py_XDECREF(self->parameters);
    lora_py_delete(o);
}

static int gradient_tree_traverse(PyObject *o, visitproc visit, void *arg) {
    Py_VISIT(((gradient_tree *)o)->parameters);
    return lora_py_traverse(o, visit, arg);
}

/* --- construction ------------------------------------------------------------------------------------------------- */

static int add_parameter(gradient_tree *self, lora_py_state *state, Py_ssize_t i, lora_param *param) {
    lora_py_parameter *p = lora_py_trained_parameter(self, state, PyTuple_GET_ITEM(self->parameters, i), i);
    if (!p) return -1;
    *param = (lora_param){.grad = p->grad, .n = p->size};
    return 0;
}

static PyObject *make_gradient_tree(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", NULL};
    PyObject *given;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:GradientTree", names, &given)) return NULL;
    lora_py_state *state = lora_py_state_of(type);
    gradient_tree *self = lora_py_new(type);
    if (!self) return NULL;
    self->parameters = lora_py_items(given, "params: expected a list of Parameter objects");
    Py_ssize_t n = self->parameters ? PyTuple_GET_SIZE(self->parameters) : 0;
    lora_param *params = n ? PyMem_Calloc((size_t)n, sizeof *params) : NULL;
    if (self->parameters && n == 0) PyErr_SetString(PyExc_ValueError, "params: expected at least one Parameter, got none");
    if (n && !params) PyErr_NoMemory();
    int status = params ? 0 : -1;
    for (Py_ssize_t i = 0; status == 0 && i < n; i++) status = add_parameter(self, state, i, &params[i]);
    lora_error err = {0};
    if (status == 0 && (lora_ctx_create(&(lora_ctx_options){.n_threads = 1}, &self->beside, &err) != LORA_OK ||
                        lora_gradient_tree_create(self->base.ctx, params, n, &self->tree, &err) != LORA_OK)) {
        lora_py_raise(state, &err);
        status = -1;
    }
    PyMem_Free(params);
    if (status < 0) Py_CLEAR(self);
    return lora_py_publish(self);
}

static PyObject *gradient_tree_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    return lora_py_new_with_kept(make_gradient_tree, type, args, kwargs);
}

/* --- a step ------------------------------------------------------------------------------------------------------- */

/* The end of a method that changes the tree. */
static PyObject *end(gradient_tree *self, lora_status status, const lora_error *err) {
    lora_py_leave(&self->base);
    if (status != LORA_OK) return lora_py_raise(lora_py_state_of(Py_TYPE((PyObject *)self)), err);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(begin_doc, "begin($self, leaves, first, last, /)\n--\n\n"
                        "Begin a step: gradients are cleared, and its micro-batches first to last - 1 are to come.\n\n"
                        "Parameters\n----------\n"
                        "leaves : int\n    The micro-batches of the step, whoever computes them.\n"
                        "first, last : int\n    Those of this process.\n\n"
                        "Raises\n------\nValueError\n    They are out of range.\nRuntimeError\n    Another thread is using this tree.");

static PyObject *gradient_tree_begin(PyObject *o, PyObject *args) {
    int64_t leaves, first, last;
    gradient_tree *self = (gradient_tree *)o;
    if (!PyArg_ParseTuple(args, "O&O&O&:begin", lora_py_whole, &leaves, lora_py_whole, &first, lora_py_whole, &last)) return NULL;
    if (lora_py_enter(&self->base) < 0) return NULL;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_gradient_tree_begin(self->tree, leaves, first, last, &err));
    return end(self, status, &err);
}

PyDoc_STRVAR(next_doc, "next($self, /)\n--\n\n"
                       "Take the gradients in as those of the next micro-batch.\n\n"
                       "Where another one follows they are cleared for it; after the last one of all they are the sum of the step.\n\n"
                       "Raises\n------\nValueError\n    None was to come.\nMemoryError\n    There is no memory for a partial sum.\n"
                       "RuntimeError\n    Another thread is using this tree.");

static PyObject *gradient_tree_next(PyObject *o, PyObject *unused) {
    (void)unused;
    gradient_tree *self = (gradient_tree *)o;
    if (lora_py_enter(&self->base) < 0) return NULL;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(self->base.ctx, status, lora_gradient_tree_next(self->tree, &err));
    return end(self, status, &err);
}

PyDoc_STRVAR(begin_last_doc,
             "begin_last($self, /)\n--\n\n"
             "In the place of next for the last micro-batch of this process, before its pass: then join parts of its gradients as they are "
             "complete.\n\n"
             "Raises\n------\nValueError\n    More than one is to come, or none.\nRuntimeError\n    Another thread is using this tree.");

static PyObject *gradient_tree_begin_last(PyObject *o, PyObject *unused) {
    (void)unused;
    gradient_tree *self = (gradient_tree *)o;
    lora_error err = {0};
    if (lora_py_enter(&self->base) < 0) return NULL;
    return end(self, lora_gradient_tree_begin_last(self->tree, &err), &err);
}

/* Where parts of gradients are computed. */
static lora_ctx *ctx_of_parts(const gradient_tree *self) { return lora_py_is_host(self->base.ctx) ? self->beside : self->base.ctx; }

PyDoc_STRVAR(join_doc,
             "join($self, begin, count, /)\n--\n\n"
             "Add to gradients of the last micro-batch what earlier ones have summed: once for every element.\n\n"
             "Parameters\n----------\n"
             "begin, count : int\n    Elements, counted through all parameters. They are complete; another thread may be in the pass "
             "that\n    computes others.\n\n"
             "Raises\n------\nValueError\n    A number is out of range.\nRuntimeError\n    Another thread is using this tree.");

static PyObject *gradient_tree_join(PyObject *o, PyObject *args) {
    int64_t begin, count;
    gradient_tree *self = (gradient_tree *)o;
    lora_ctx *ctx = ctx_of_parts(self);
    if (!PyArg_ParseTuple(args, "O&O&:join", lora_py_whole, &begin, lora_py_whole, &count) || lora_py_enter(&self->base) < 0) return NULL;
    lora_status status;
    lora_error err = {0};
    LORA_PY_CALL(ctx, status, lora_gradient_tree_join(self->tree, ctx, begin, count, &err));
    return end(self, status, &err);
}

static lora_status read_node(gradient_tree *self, lora_ctx *ctx, int64_t index, int64_t begin, const lora_py_array *out, lora_error *err) {
    LORA_TRY(lora_gradient_tree_read(self->tree, ctx, index, begin, out->n, out->data, err));
    return lora_sync(ctx, err);
}

PyDoc_STRVAR(read_doc, "read($self, index, begin, out, /)\n--\n\n"
                       "Copy elements of a node.\n\n"
                       "Parameters\n----------\n"
                       "index : int\n    Which one of nodes.\n"
                       "begin : int\n    Its first element, counted through all parameters.\n"
                       "out : array\n    float32; as many elements as it has.\n\n"
                       "Raises\n------\nValueError\n    A number is out of range.\nRuntimeError\n    Another thread is using this tree.");

static PyObject *gradient_tree_read(PyObject *o, PyObject *args) {
    int64_t index, begin;
    PyObject *given;
    gradient_tree *self = (gradient_tree *)o;
    lora_py_array out;
    lora_ctx *ctx = ctx_of_parts(self);
    if (!PyArg_ParseTuple(args, "O&O&O:read", lora_py_whole, &index, lora_py_whole, &begin, &given) ||
        lora_py_get(given, "out", LORA_PY_F32, LORA_PY_WRITABLE, &out) < 0)
        return NULL;
    PyObject *none = NULL;
    if (lora_py_enter(&self->base) >= 0) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(ctx, status, read_node(self, ctx, index, begin, &out, &err));
        none = end(self, status, &err);
    }
    lora_py_release(&out);
    return none;
}

static lora_status write_gradients(gradient_tree *self, lora_ctx *ctx, int64_t begin, const lora_py_array *from, lora_error *err) {
    LORA_TRY(lora_gradient_tree_write(self->tree, ctx, begin, from->n, from->data, err));
    return lora_sync(ctx, err);
}

PyDoc_STRVAR(write_doc, "write($self, begin, values, /)\n--\n\n"
                        "Put values in the place of gradients.\n\n"
                        "Parameters\n----------\n"
                        "begin : int\n    The first element, counted through all parameters.\n"
                        "values : array\n    float32.\n\n"
                        "Raises\n------\nValueError\n    A number is out of range.\nRuntimeError\n    Another thread is using this tree.");

static PyObject *gradient_tree_write(PyObject *o, PyObject *args) {
    int64_t begin;
    PyObject *given;
    gradient_tree *self = (gradient_tree *)o;
    lora_py_array values;
    lora_ctx *ctx = ctx_of_parts(self);
    if (!PyArg_ParseTuple(args, "O&O:write", lora_py_whole, &begin, &given) || lora_py_get(given, "values", LORA_PY_F32, 0, &values) < 0)
        return NULL;
    PyObject *none = NULL;
    if (lora_py_enter(&self->base) >= 0) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(ctx, status, write_gradients(self, ctx, begin, &values, &err));
        none = end(self, status, &err);
    }
    lora_py_release(&values);
    return none;
}

PyDoc_STRVAR(combine_doc, "combine($self, nodes, parts, /)\n--\n\n"
                          "Add nodes of all processes up to the root, the sum of the step, which is left in row 0.\n\n"
                          "Parameters\n----------\n"
                          "nodes : sequence of tuple of int\n    (first leaf, level) of each row; all leaves in their order.\n"
                          "parts : array (nodes, n)\n    float32; changed.\n\n"
                          "Raises\n------\nValueError\n    The nodes are not all leaves in their order.\n"
                          "RuntimeError\n    Another thread is using this tree.");

static PyObject *gradient_tree_combine(PyObject *o, PyObject *args) {
    int64_t n = 0;
    PyObject *given, *given_parts, *none = NULL;
    gradient_tree *self = (gradient_tree *)o;
    lora_py_array parts;
    if (!PyArg_ParseTuple(args, "OO:combine", &given, &given_parts)) return NULL;
    lora_tree_node *nodes = lora_py_nodes_of(given, &n);
    if (!nodes) return NULL;
    if (lora_py_get(given_parts, "parts", LORA_PY_F32, LORA_PY_WRITABLE, &parts) == 0) {
        if (lora_py_expect(&parts, 2, (int64_t[]){-1, -1}) == 0 && lora_py_enter(&self->base) >= 0) {
            lora_mat rows = lora_mat_f32(parts.data, parts.shape[0], parts.shape[1], parts.shape[1]);
            lora_status status;
            lora_error err = {0};
            LORA_PY_CALL(self->beside, status,
                         lora_tree_combine(self->beside, lora_gradient_tree_leaves(self->tree), n, nodes, rows, &err));
            none = end(self, status, &err);
        }
        lora_py_release(&parts);
    }
    PyMem_Free(nodes);
    return none;
}

/* --- type --------------------------------------------------------------------------------------------------------- */

static PyObject *get_nodes(PyObject *o, void *unused) {
    (void)unused;
    gradient_tree *self = (gradient_tree *)o;
    lora_tree_node nodes[LORA_TREE_NODES];
    const lora_tree_node *own;
    if (lora_py_enter(&self->base) < 0) return NULL;
    int64_t n = lora_gradient_tree_nodes(self->tree, &own);
    for (int64_t i = 0; i < n; i++) nodes[i] = own[i];
    lora_py_leave(&self->base);
    return lora_py_list_of_nodes(nodes, n);
}

static PyObject *get_elements(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(lora_gradient_tree_elements(((gradient_tree *)o)->tree));
}

PyDoc_STRVAR(gradient_tree_doc,
             "GradientTree(params)\n--\n\n"
             "The sum of the gradients of a step's micro-batches, in an order that does not depend on who computed which.\n\n"
             "Parameters\n----------\n"
             "params : sequence of Parameter\n    All with requires_grad, all on one device.\n\n"
             "Notes\n-----\nA process with n of them keeps log2(n) partial sums beside the gradients. One thread at a time.");

static PyMethodDef methods[] = {
    {"begin", gradient_tree_begin, METH_VARARGS, begin_doc},
    {"next", gradient_tree_next, METH_NOARGS, next_doc},
    {"begin_last", gradient_tree_begin_last, METH_NOARGS, begin_last_doc},
    {"join", gradient_tree_join, METH_VARARGS, join_doc},
    {"combine", gradient_tree_combine, METH_VARARGS, combine_doc},
    {"read", gradient_tree_read, METH_VARARGS, read_doc},
    {"write", gradient_tree_write, METH_VARARGS, write_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},
    {0},
};

static PyGetSetDef attributes[] = {
    {"nodes", get_nodes, NULL, "What this process has summed, as (first leaf, level) in the order of the leaves.", NULL},
    {"elements", get_elements, NULL, "Of all parameters together.", NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_new, gradient_tree_new},
    {Py_tp_dealloc, gradient_tree_dealloc},
    {Py_tp_traverse, gradient_tree_traverse},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_doc, (void *)gradient_tree_doc},
    {0, NULL},
};

PyType_Spec lora_py_gradient_tree_spec = {
    .name = "lora_c._core.GradientTree",
    .basicsize = sizeof(gradient_tree),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
