/* GradientTree: the sum of a step's micro-batches, as lora_c/comm has it, and the functions of its nodes. */
#include "lora_c/bindings/py_array.h"
#include "lora_c/bindings/py_devices.h"

typedef struct gradient_tree {
    lora_py_object base;
    PyObject *parameters; /* a tuple: they hold the gradients */
    lora_gradient_tree *tree;
} gradient_tree;

static void gradient_tree_dealloc(PyObject *o) {
    PyObject_GC_UnTrack(o);
    gradient_tree *self = (gradient_tree *)o;
    lora_gradient_tree_destroy(self->tree);
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
    if (status == 0 && lora_gradient_tree_create(self->base.ctx, params, n, &self->tree, &err) != LORA_OK) {
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

static lora_status read_node(gradient_tree *self, int64_t index, int64_t begin, const lora_py_array *out, lora_error *err) {
    LORA_TRY(lora_gradient_tree_read(self->tree, index, begin, out->n, out->data, err));
    return lora_sync(self->base.ctx, err);
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
    if (!PyArg_ParseTuple(args, "O&O&O:read", lora_py_whole, &index, lora_py_whole, &begin, &given) ||
        lora_py_get(given, "out", LORA_PY_F32, LORA_PY_WRITABLE, &out) < 0)
        return NULL;
    PyObject *none = NULL;
    if (lora_py_enter(&self->base) >= 0) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status, read_node(self, index, begin, &out, &err));
        none = end(self, status, &err);
    }
    lora_py_release(&out);
    return none;
}

static lora_status write_gradients(gradient_tree *self, int64_t begin, const lora_py_array *from, lora_error *err) {
    LORA_TRY(lora_gradient_tree_write(self->tree, begin, from->n, from->data, err));
    return lora_sync(self->base.ctx, err);
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
    if (!PyArg_ParseTuple(args, "O&O:write", lora_py_whole, &begin, &given) || lora_py_get(given, "values", LORA_PY_F32, 0, &values) < 0)
        return NULL;
    PyObject *none = NULL;
    if (lora_py_enter(&self->base) >= 0) {
        lora_status status;
        lora_error err = {0};
        LORA_PY_CALL(self->base.ctx, status, write_gradients(self, begin, &values, &err));
        none = end(self, status, &err);
    }
    lora_py_release(&values);
    return none;
}

/* --- nodes -------------------------------------------------------------------------------------------------------- */

static PyObject *list_of(const lora_tree_node *nodes, int64_t n) {
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list && i < n; i++) {
        PyObject *pair = Py_BuildValue("(LL)", (long long)nodes[i].first, (long long)nodes[i].level);
        if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *get_nodes(PyObject *o, void *unused) {
    (void)unused;
    gradient_tree *self = (gradient_tree *)o;
    lora_tree_node nodes[LORA_TREE_NODES];
    const lora_tree_node *own;
    if (lora_py_enter(&self->base) < 0) return NULL;
    int64_t n = lora_gradient_tree_nodes(self->tree, &own);
    for (int64_t i = 0; i < n; i++) nodes[i] = own[i];
    lora_py_leave(&self->base);
    return list_of(nodes, n);
}

static PyObject *get_elements(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(lora_gradient_tree_elements(((gradient_tree *)o)->tree));
}

PyDoc_STRVAR(cover_doc, "tree_cover($module, leaves, first, last, /)\n--\n\n"
                        "Return the fewest nodes (first leaf, level) of the tree over micro-batches that are first to last - 1.\n\n"
                        "Raises\n------\nValueError\n    They are out of range.");

static PyObject *tree_cover(PyObject *module, PyObject *args) {
    (void)module;
    int64_t leaves, first, last;
    lora_tree_node nodes[LORA_TREE_NODES];
    if (!PyArg_ParseTuple(args, "O&O&O&:tree_cover", lora_py_whole, &leaves, lora_py_whole, &first, lora_py_whole, &last)) return NULL;
    if (first < 0 || first > last || last > leaves || leaves > LORA_PY_MOST_ITEMS) {
        PyErr_Format(PyExc_ValueError, "first, last: expected 0 <= first <= last <= leaves <= %d, got %lld, %lld and %lld",
                     (int)LORA_PY_MOST_ITEMS, (long long)first, (long long)last, (long long)leaves);
        return NULL;
    }
    return list_of(nodes, lora_tree_cover(leaves, first, last, nodes));
}

/* Free them with PyMem_Free; NULL with an exception. */
static lora_tree_node *nodes_of(PyObject *given, int64_t *n) {
    PyObject *items = lora_py_items(given, "nodes: expected a list of pairs of int");
    if (!items) return NULL;
    *n = PyTuple_GET_SIZE(items);
    lora_tree_node *nodes = PyMem_Calloc((size_t)*n + 1, sizeof *nodes);
    if (!nodes) PyErr_NoMemory();
    for (int64_t i = 0; nodes && i < *n; i++) {
        PyObject *pair = PyTuple_GET_ITEM(items, i);
        if (!PyTuple_Check(pair)) lora_py_refuse(PyExc_TypeError, "nodes: expected a list of pairs of int", pair);
        if (PyTuple_Check(pair) && PyArg_ParseTuple(pair, "O&O&", lora_py_whole, &nodes[i].first, lora_py_whole, &nodes[i].level)) continue;
        PyMem_Free(nodes);
        nodes = NULL;
    }
    Py_DECREF(items);
    return nodes;
}

PyDoc_STRVAR(combine_doc, "tree_combine($module, leaves, nodes, parts, /)\n--\n\n"
                          "Add nodes of the tree over micro-batches up to its root, the sum of them all, which is left in row 0.\n\n"
                          "Parameters\n----------\n"
                          "leaves : int\n    The micro-batches.\n"
                          "nodes : sequence of tuple of int\n    (first leaf, level) of each row; all leaves in their order.\n"
                          "parts : array (nodes, n)\n    float32; changed.\n\n"
                          "Raises\n------\nValueError\n    The nodes are not all leaves in their order.");

static PyObject *tree_combine(PyObject *module, PyObject *args) {
    lora_py_state *state = PyModule_GetState(module);
    int64_t leaves, n = 0;
    PyObject *given, *given_parts, *none = NULL;
    lora_py_array parts;
    if (!PyArg_ParseTuple(args, "O&OO:tree_combine", lora_py_whole, &leaves, &given, &given_parts)) return NULL;
    lora_tree_node *nodes = nodes_of(given, &n);
    if (!nodes) return NULL;
    if (lora_py_get(given_parts, "parts", LORA_PY_F32, LORA_PY_WRITABLE, &parts) == 0) {
        if (lora_py_expect(&parts, 2, (int64_t[]){-1, -1}) == 0) {
            lora_mat rows = lora_mat_f32(parts.data, parts.shape[0], parts.shape[1], parts.shape[1]);
            lora_status status;
            lora_error err = {0};
            LORA_PY_CALL(state->ctx, status, lora_tree_combine(state->ctx, leaves, n, nodes, rows, &err));
            none = status == LORA_OK ? Py_NewRef(Py_None) : lora_py_raise(state, &err);
        }
        lora_py_release(&parts);
    }
    PyMem_Free(nodes);
    return none;
}

PyMethodDef lora_py_tree_functions[] = {
    {"tree_cover", tree_cover, METH_VARARGS, cover_doc},
    {"tree_combine", tree_combine, METH_VARARGS, combine_doc},
    {0},
};

/* --- type --------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(gradient_tree_doc,
             "GradientTree(params)\n--\n\n"
             "The sum of the gradients of a step's micro-batches, in an order that does not depend on who computed which.\n\n"
             "Parameters\n----------\n"
             "params : sequence of Parameter\n    All with requires_grad, all on one device.\n\n"
             "Notes\n-----\nA process with n of them keeps log2(n) partial sums beside the gradients. One thread at a time.");

static PyMethodDef methods[] = {
    {"begin", gradient_tree_begin, METH_VARARGS, begin_doc}, {"next", gradient_tree_next, METH_NOARGS, next_doc},
    {"read", gradient_tree_read, METH_VARARGS, read_doc},    {"write", gradient_tree_write, METH_VARARGS, write_doc},
    {"__reduce__", lora_py_reduce, METH_NOARGS, NULL},       {0},
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
