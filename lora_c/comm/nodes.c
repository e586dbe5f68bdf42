#include "lora_c/comm/nodes.h"

static bool is_second_half(lora_tree_node node) { return node.first >> node.level & 1; }
static bool is_root(lora_tree_node node, int64_t leaves) { return node.first == 0 && (leaves - 1) >> node.level == 0; }
static bool has_no_sibling(lora_tree_node node, int64_t leaves) {
    return !is_second_half(node) && leaves - node.first <= (int64_t)1 << node.level;
}

bool lora_nodes_join(lora_node_stack *stack) {
    if (stack->n == 0) return false;
    lora_tree_node *last = &stack->nodes[stack->n - 1];
    while (!is_root(*last, stack->leaves) && has_no_sibling(*last, stack->leaves)) last->level++;
    if (stack->n == 1 || !is_second_half(*last) || last[-1].level != last->level) return false;
    last[-1].level++;
    stack->n--;
    return true;
}

int64_t lora_tree_cover(int64_t leaves, int64_t first, int64_t last, lora_tree_node nodes[LORA_TREE_NODES]) {
    lora_node_stack stack = {.leaves = leaves};
    for (int64_t i = first; i < last; i++) {
        stack.nodes[stack.n++] = (lora_tree_node){.first = i, .level = 0};
        while (lora_nodes_join(&stack)) continue;
    }
    for (int64_t i = 0; i < stack.n; i++) nodes[i] = stack.nodes[i];
    return stack.n;
}
