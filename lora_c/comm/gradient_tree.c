/* The sum of a process's micro-batches: what is in the gradients is the last node, those before it lie aside. */
#include <inttypes.h>

#include "lora_c/base/mat.h"
#include "lora_c/base/util.h"
#include "lora_c/comm/nodes.h"
#include "lora_c/device.h"
#include "lora_c/nn.h"

enum { ROW = 4096 }; /* elements of a row of what is added: tasks are made of rows */

/* Gradients that lie behind each other. */
typedef struct run {
    float *data;
    int64_t n;
} run;

struct lora_gradient_tree {
    lora_ctx *ctx;
    int64_t n_runs, elements, next, last;
    run *runs;
    lora_node_stack stack;
    float *aside[LORA_TREE_NODES]; /* (elements) each: the nodes before the last one */
    int64_t joined, lowest;        /* the leaf that came last is the sum of itself and of aside[joined - 1] .. aside[lowest] */
};

/* to += from, or to = from. */
static lora_status take(lora_ctx *ctx, const float *from, float *to, int64_t n, bool accumulate, lora_error *err) {
    int64_t rows = n / ROW, whole = rows * ROW;
    if (rows > 0)
        LORA_TRY(lora_copy_rows(ctx, lora_mat_f32(from, rows, ROW, ROW), NULL, lora_mat_f32(to, rows, ROW, ROW), NULL, accumulate, err));
    if (whole == n) return LORA_OK;
    return lora_copy_rows(ctx, lora_mat_vector(from + whole, n - whole), NULL, lora_mat_vector(to + whole, n - whole), NULL, accumulate,
                          err);
}

/* --- creation --- */

static lora_status add_runs(lora_gradient_tree *tree, const lora_param *params, int64_t n_params, lora_error *err) {
    for (int64_t i = 0; i < n_params; i++) {
        LORA_CHECK(params[i].n >= 0 && (params[i].n == 0 || params[i].grad), err, LORA_EINVAL,
                   "params[%" PRId64 "]: expected a gradient of 0 elements or more, got none", i);
        if (params[i].n == 0) continue;
        run *before = tree->n_runs > 0 ? &tree->runs[tree->n_runs - 1] : NULL;
        if (before && before->data + before->n == params[i].grad)
            before->n += params[i].n;
        else
            tree->runs[tree->n_runs++] = (run){.data = params[i].grad, .n = params[i].n};
        tree->elements += params[i].n;
    }
    return LORA_OK;
}

lora_status lora_gradient_tree_create(lora_ctx *ctx, const lora_param *params, int64_t n_params, lora_gradient_tree **out,
                                      lora_error *err) {
    *out = NULL;
    LORA_CHECK(params && n_params >= 1, err, LORA_EINVAL, "params: expected at least one array, got none");
    LORA_TRY(lora_device_check(ctx, err));
    lora_gradient_tree *tree = lora_host_alloc(ctx, LORA_MEM_SCRATCH, sizeof *tree);
    LORA_CHECK(tree, err, LORA_ENOMEM, "gradient_tree: expected %zu bytes of memory, got none", sizeof *tree);
    tree->ctx = ctx;
    tree->runs = lora_host_alloc(ctx, LORA_MEM_SCRATCH, (size_t)n_params * sizeof *tree->runs);
    lora_status status = tree->runs ? add_runs(tree, params, n_params, err)
                                    : lora_fail(err, LORA_ENOMEM, "params: expected memory for a list of %" PRId64 ", got none", n_params);
    if (status != LORA_OK) {
        lora_gradient_tree_destroy(tree);
        return status;
    }
    *out = tree;
    return LORA_OK;
}

void lora_gradient_tree_destroy(lora_gradient_tree *tree) {
    if (!tree) return;
    for (int i = 0; i < LORA_TREE_NODES; i++) lora_ctx_free(tree->ctx, tree->aside[i]);
    lora_host_free(tree->ctx, tree->runs);
    lora_host_free(tree->ctx, tree);
}

int64_t lora_gradient_tree_elements(const lora_gradient_tree *tree) { return tree->elements; }
int64_t lora_gradient_tree_leaves(const lora_gradient_tree *tree) { return tree->stack.leaves; }

/* --- a step --- */

static lora_status clear(lora_gradient_tree *tree, lora_error *err) {
    for (int64_t i = 0; i < tree->n_runs; i++)
        LORA_TRY(lora_clear(tree->ctx, tree->runs[i].data, (size_t)tree->runs[i].n * sizeof(float), err));
    return LORA_OK;
}

/* What of the gradients from element begin on lies behind each other, count elements at most. */
static run part_of(const lora_gradient_tree *tree, int64_t begin, int64_t count) {
    for (int64_t i = 0, start = 0; i < tree->n_runs; start += tree->runs[i++].n) {
        run r = tree->runs[i];
        if (begin < start + r.n) return (run){.data = r.data + (begin - start), .n = lora_min_i64(count, start + r.n - begin)};
    }
    return (run){.n = count}; /* not reached: ranges are checked */
}

static lora_status keep_aside(lora_gradient_tree *tree, float *aside, lora_error *err) {
    for (int64_t i = 0; i < tree->n_runs; aside += tree->runs[i++].n)
        LORA_TRY(take(tree->ctx, tree->runs[i].data, aside, tree->runs[i].n, false, err));
    return LORA_OK;
}

static lora_status add_aside(const lora_gradient_tree *tree, lora_ctx *ctx, const float *aside, int64_t begin, int64_t count,
                             lora_error *err) {
    for (run r; count > 0; begin += r.n, count -= r.n) {
        r = part_of(tree, begin, count);
        LORA_TRY(take(ctx, aside + begin, r.data, r.n, true, err));
    }
    return LORA_OK;
}

lora_status lora_gradient_tree_begin(lora_gradient_tree *tree, int64_t leaves, int64_t first, int64_t last, lora_error *err) {
    LORA_CHECK(leaves >= 1, err, LORA_EINVAL, "leaves: expected 1 or more, got %" PRId64, leaves);
    LORA_CHECK(first >= 0 && first <= last && last <= leaves, err, LORA_EINVAL,
               "first, last: expected 0 <= first <= last <= %" PRId64 ", got %" PRId64 " and %" PRId64, leaves, first, last);
    LORA_TRY(lora_device_check(tree->ctx, err));
    tree->stack = (lora_node_stack){.leaves = leaves};
    tree->next = first;
    tree->last = last;
    return clear(tree, err);
}

/* The leaf that comes is a node; those of which it is the last part are sums of what lies aside and of it. */
static void enter_leaf(lora_gradient_tree *tree) {
    lora_node_stack *stack = &tree->stack;
    stack->nodes[stack->n++] = (lora_tree_node){.first = tree->next++, .level = 0};
    tree->joined = stack->n - 1;
    while (lora_nodes_join(stack)) continue;
    tree->lowest = stack->n - 1;
}

static lora_status join(lora_gradient_tree *tree, lora_ctx *ctx, int64_t begin, int64_t count, lora_error *err) {
    for (int64_t i = tree->joined - 1; i >= tree->lowest; i--) LORA_TRY(add_aside(tree, ctx, tree->aside[i], begin, count, err));
    return LORA_OK;
}

lora_status lora_gradient_tree_next(lora_gradient_tree *tree, lora_error *err) {
    LORA_CHECK(tree->next < tree->last, err, LORA_EINVAL, "next: expected a leaf of those that were announced, got one more");
    enter_leaf(tree);
    LORA_TRY(join(tree, tree->ctx, 0, tree->elements, err));
    if (tree->next == tree->last) return LORA_OK;
    float **aside = &tree->aside[tree->stack.n - 1];
    if (!*aside) *aside = lora_ctx_alloc_uncleared(tree->ctx, LORA_MEM_GRAD, (size_t)tree->elements * sizeof(float));
    LORA_CHECK(*aside, err, LORA_ENOMEM, "gradients: expected memory for a partial sum of %" PRId64 " elements, got none", tree->elements);
    LORA_TRY(keep_aside(tree, *aside, err));
    return clear(tree, err);
}

lora_status lora_gradient_tree_begin_last(lora_gradient_tree *tree, lora_error *err) {
    LORA_CHECK(tree->next == tree->last - 1, err, LORA_EINVAL,
               "begin_last: expected one leaf of those that were announced to be left, got %" PRId64, tree->last - tree->next);
    enter_leaf(tree);
    return LORA_OK;
}

int64_t lora_gradient_tree_nodes(const lora_gradient_tree *tree, const lora_tree_node **nodes) {
    *nodes = tree->stack.nodes;
    return tree->stack.n;
}

/* --- to and from other processes --- */

static lora_status check_range(const lora_gradient_tree *tree, int64_t begin, int64_t count, lora_error *err) {
    LORA_CHECK(begin >= 0 && count >= 0 && begin <= tree->elements - count, err, LORA_EINVAL,
               "begin, count: expected a range of %" PRId64 " elements, got %" PRId64 " and %" PRId64, tree->elements, begin, count);
    return LORA_OK;
}

lora_status lora_gradient_tree_join(lora_gradient_tree *tree, lora_ctx *ctx, int64_t begin, int64_t count, lora_error *err) {
    LORA_TRY(check_range(tree, begin, count, err));
    return join(tree, ctx, begin, count, err);
}

lora_status lora_gradient_tree_read(lora_gradient_tree *tree, lora_ctx *ctx, int64_t index, int64_t begin, int64_t count, float *to,
                                    lora_error *err) {
    LORA_CHECK(index >= 0 && index < tree->stack.n, err, LORA_EINVAL, "index: expected a node of %" PRId64 ", got %" PRId64, tree->stack.n,
               index);
    LORA_CHECK(to || count == 0, err, LORA_EINVAL, "to: expected a pointer, got NULL");
    LORA_TRY(check_range(tree, begin, count, err));
    if (index < tree->stack.n - 1)
        return count == 0 ? LORA_OK : lora_download(ctx, to, tree->aside[index] + begin, (size_t)count * sizeof(float), err);
    for (run r; count > 0; begin += r.n, count -= r.n, to += r.n) {
        r = part_of(tree, begin, count);
        LORA_TRY(lora_download(ctx, to, r.data, (size_t)r.n * sizeof(float), err));
    }
    return LORA_OK;
}

lora_status lora_gradient_tree_write(lora_gradient_tree *tree, lora_ctx *ctx, int64_t begin, int64_t count, const float *from,
                                     lora_error *err) {
    LORA_CHECK(from || count == 0, err, LORA_EINVAL, "from: expected a pointer, got NULL");
    LORA_TRY(check_range(tree, begin, count, err));
    for (run r; count > 0; begin += r.n, count -= r.n, from += r.n) {
        r = part_of(tree, begin, count);
        LORA_TRY(lora_upload(ctx, r.data, from, (size_t)r.n * sizeof(float), err));
    }
    return LORA_OK;
}

/* --- the nodes of all processes --- */

lora_status lora_tree_combine(lora_ctx *ctx, int64_t leaves, int64_t n_nodes, const lora_tree_node *nodes, lora_mat parts,
                              lora_error *err) {
    LORA_CHECK(leaves >= 1, err, LORA_EINVAL, "leaves: expected 1 or more, got %" PRId64, leaves);
    LORA_CHECK(n_nodes == parts.rows, err, LORA_ESHAPE, "parts: expected a row for each of %" PRId64 " nodes, got %" PRId64, n_nodes,
               parts.rows);
    lora_node_stack stack = {.leaves = leaves};
    int64_t rows[LORA_TREE_NODES], next = 0;
    for (int64_t i = 0; i < n_nodes; i++) {
        lora_tree_node node = nodes[i];
        LORA_CHECK(node.first == next && node.level >= 0 && node.level < 62 && node.first >> node.level << node.level == node.first, err,
                   LORA_EINVAL,
                   "nodes[%" PRId64 "]: expected one that begins with leaf %" PRId64 ", got leaf %" PRId64 " at level %" PRId64, i, next,
                   node.first, node.level);
        next = lora_min_i64(leaves, node.first + ((int64_t)1 << node.level));
        stack.nodes[stack.n] = node;
        rows[stack.n++] = i;
        while (lora_nodes_join(&stack)) {
            float *from = (float *)parts.data + rows[stack.n] * parts.ld, *to = (float *)parts.data + rows[stack.n - 1] * parts.ld;
            if (parts.cols > 0) LORA_TRY(take(ctx, from, to, parts.cols, true, err));
        }
    }
    LORA_CHECK(next == leaves && stack.n == 1, err, LORA_EINVAL, "nodes: expected all of %" PRId64 " leaves, got %" PRId64, leaves, next);
    return LORA_OK;
}
