/* Sums of the gradients of a step's micro-batches, whoever computed which of them.
 *
 * The leaves of a binary tree are the micro-batches 0 .. leaves-1. A node of level l and first leaf f, a multiple of 2^l, is the sum of the
 * leaves f .. f + 2^l - 1 as far as they exist: the sum of its two halves, or where the second has no leaves the first one itself. So the
 * bits of the root depend on the leaves only, and not on how they are divided among processes. */
#ifndef LORA_C_COMM_H
#define LORA_C_COMM_H

#include "lora_c/context.h"
#include "lora_c/optim.h"
#include "lora_c/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lora_tree_node {
    int64_t first, level;
} lora_tree_node;

enum { LORA_TREE_NODES = 128 }; /* more than any range of leaves needs */

/** The fewest nodes that together are the leaves first .. last-1, in their order; returns how many, none for an empty range. */
int64_t lora_tree_cover(int64_t leaves, int64_t first, int64_t last, lora_tree_node nodes[LORA_TREE_NODES]);

/** Adds nodes up to the root, which is left in row 0; what other rows hold afterwards is undefined.
 *  Shapes    parts (n_nodes, n) in memory of ctx: row i is nodes[i], which cover all leaves in their order
 *  Numerics  one float32 addition for each node above the given ones; the bits are those of lora_gradient_tree
 *  Errors    EINVAL where the nodes are not all leaves in their order */
lora_status lora_tree_combine(lora_ctx *ctx, int64_t leaves, int64_t n_nodes, const lora_tree_node *nodes, lora_mat parts,
                              lora_error *err) LORA_MUST_CHECK;

/* Takes in the gradients of a process's micro-batches one after the other. */
typedef struct lora_gradient_tree lora_gradient_tree;

/** params: gradients on the device of ctx, which outlive the tree; those that lie behind each other are added together. */
lora_status lora_gradient_tree_create(lora_ctx *ctx, const lora_param *params, int64_t n_params, lora_gradient_tree **out,
                                      lora_error *err) LORA_MUST_CHECK;
void lora_gradient_tree_destroy(lora_gradient_tree *tree); /* NULL allowed */
int64_t lora_gradient_tree_elements(const lora_gradient_tree *tree);
int64_t lora_gradient_tree_leaves(const lora_gradient_tree *tree); /* of the step that was begun last; 0 before the first one */

/** Begins a step: gradients are cleared, and the leaves first .. last-1 of so many are to come.
 *  Memory   log2(last - first) gradients at most, which the tree keeps until it is destroyed
 *  Errors   EINVAL, ENOMEM */
lora_status lora_gradient_tree_begin(lora_gradient_tree *tree, int64_t leaves, int64_t first, int64_t last,
                                     lora_error *err) LORA_MUST_CHECK;
/** The gradients are the next leaf. Where another one follows, they are cleared for it; after the last leaf of all they are the root. */
lora_status lora_gradient_tree_next(lora_gradient_tree *tree, lora_error *err) LORA_MUST_CHECK;
/** In the place of lora_gradient_tree_next for the last leaf, before its gradients are computed: parts of them that are complete may be
 *  joined, read and written while others are not, by another thread with a context of its own. A process without leaves needs neither.
 *  Errors   EINVAL where not exactly one leaf is to come */
lora_status lora_gradient_tree_begin_last(lora_gradient_tree *tree, lora_error *err) LORA_MUST_CHECK;
/** Adds to count elements of the last leaf, from element begin on, what lies aside of the sums that it ends: once for every element.
 *  ctx: of the tree's device; another context than the tree's where another thread is in a pass of that. */
lora_status lora_gradient_tree_join(lora_gradient_tree *tree, lora_ctx *ctx, int64_t begin, int64_t count, lora_error *err) LORA_MUST_CHECK;
/** The nodes that the process has after its last leaf: those of lora_tree_cover. Returns how many. */
int64_t lora_gradient_tree_nodes(const lora_gradient_tree *tree, const lora_tree_node **nodes);
/** to (host) = count elements of node index from element begin on, to be there after the next lora_sync of ctx, which is one as for
 *  lora_gradient_tree_join. */
lora_status lora_gradient_tree_read(lora_gradient_tree *tree, lora_ctx *ctx, int64_t index, int64_t begin, int64_t count, float *to,
                                    lora_error *err) LORA_MUST_CHECK;
/** count elements of the gradients from element begin on = from (host), which stays until the next lora_sync of ctx. */
lora_status lora_gradient_tree_write(lora_gradient_tree *tree, lora_ctx *ctx, int64_t begin, int64_t count, const float *from,
                                     lora_error *err) LORA_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
