/* The arithmetic of the tree: which node stands above two others. */
#ifndef LORA_COMM_NODES_H
#define LORA_COMM_NODES_H

#include "lora_c/comm.h"

/* Nodes side by side, none the sibling of the one before it. */
typedef struct lora_node_stack {
    int64_t leaves, n;
    lora_tree_node nodes[LORA_TREE_NODES];
} lora_node_stack;

/** Whether the last two nodes are halves of one, which then takes the place of both: their sums are to be added. A last node whose other
 *  half has no leaves is its parent first. */
bool lora_nodes_join(lora_node_stack *stack);

#endif
