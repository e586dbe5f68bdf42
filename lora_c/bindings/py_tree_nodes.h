/* Nodes of the tree over micro-batches, to and from Python. */
#ifndef LORA_PY_TREE_NODES_H
#define LORA_PY_TREE_NODES_H

#include "lora_c/bindings/py_state.h"

/** A list of (first leaf, level); NULL with an exception. */
PyObject *lora_py_list_of_nodes(const lora_tree_node *nodes, int64_t n);
/** Nodes of a sequence of pairs. Free them with PyMem_Free; NULL with an exception. */
lora_tree_node *lora_py_nodes_of(PyObject *given, int64_t *n);

#endif
