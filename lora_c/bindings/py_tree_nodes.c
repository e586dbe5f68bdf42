/* Nodes of the tree over micro-batches as pairs of int. */
#include "lora_c/bindings/py_tree_nodes.h"

#include "lora_c/bindings/py_array.h"

PyObject *lora_py_list_of_nodes(const lora_tree_node *nodes, int64_t n) {
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list && i < n; i++) {
        PyObject *pair = Py_BuildValue("(LL)", (long long)nodes[i].first, (long long)nodes[i].level);
        if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

lora_tree_node *lora_py_nodes_of(PyObject *given, int64_t *n) {
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
    return lora_py_list_of_nodes(nodes, lora_tree_cover(leaves, first, last, nodes));
}

PyMethodDef lora_py_tree_functions[] = {
    {"tree_cover", tree_cover, METH_VARARGS, cover_doc},
    {0},
};
