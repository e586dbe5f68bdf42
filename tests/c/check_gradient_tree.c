/* The tree over micro-batches: every division of up to 17 of them among up to 5 processes gives the bits of a tree that is written down as
 * recursion, on every device; a process keeps no more than log2 of its leaves aside. */
#include "tests/c/check_ops.h"

#include "lora_c/comm.h"
#include "tests/c/devices.h"

enum { ARRAYS = 4, MOST_LEAVES = 17 };
static const int64_t sizes[ARRAYS] = {5, 4096, 0, 4099};
enum { ELEMENTS = 5 + 4096 + 4099 };

/* The sum of the leaves of a node, as comm.h defines it. */
static void oracle(float *const *leaves, int64_t n, int64_t first, int64_t level, float *out) {
    if (level == 0) {
        memcpy(out, leaves[first], ELEMENTS * sizeof(float));
        return;
    }
    int64_t half = (int64_t)1 << (level - 1);
    oracle(leaves, n, first, level - 1, out);
    if (first + half >= n) return;
    float *second = random_floats(ELEMENTS, 0, 0);
    oracle(leaves, n, first + half, level - 1, second);
    for (int64_t i = 0; i < ELEMENTS; i++) out[i] += second[i];
    free(second);
}

static int64_t root_level(int64_t leaves) {
    int64_t level = 0;
    while ((int64_t)1 << level < leaves) level++;
    return level;
}

/* The gradients of one process: two arrays behind each other and one apart. */
typedef struct process {
    lora_param params[ARRAYS];
    float *together, *apart;
    lora_gradient_tree *tree;
} process;

static process make_process(lora_ctx *ctx) {
    process p = {.together = lora_ctx_alloc(ctx, LORA_MEM_GRAD, (5 + 4096) * sizeof(float)),
                 .apart = lora_ctx_alloc(ctx, LORA_MEM_GRAD, 4099 * sizeof(float))};
    float *grads[ARRAYS] = {p.together, p.together + 5, NULL, p.apart};
    for (int i = 0; i < ARRAYS; i++) p.params[i] = (lora_param){.grad = grads[i], .n = sizes[i]};
    OK(lora_gradient_tree_create(ctx, p.params, ARRAYS, &p.tree, ERR));
    CHECK(lora_gradient_tree_elements(p.tree) == ELEMENTS, "elements");
    return p;
}

static void free_process(lora_ctx *ctx, process *p) {
    lora_gradient_tree_destroy(p->tree);
    lora_ctx_free(ctx, p->together);
    lora_ctx_free(ctx, p->apart);
}

/* The last leaf in parts, the later ones first, as a backward pass completes them; beside may be another context of the device. */
static void last_in_parts(lora_ctx *beside, lora_gradient_tree *tree) {
    static const int64_t cuts[] = {0, 3, 5 + 17, 4101, 5 + 4096 + 1, ELEMENTS};
    for (int i = 4; i >= 0; i--) OK(lora_gradient_tree_join(tree, beside, cuts[i], cuts[i + 1] - cuts[i], ERR));
    OK(lora_sync(beside, ERR));
}

/* Sums the leaves first to last - 1, and writes its nodes below each other. Returns how many. */
static int64_t sum_range(lora_ctx *ctx, lora_ctx *beside, float *const *leaves, int64_t n, int64_t first, int64_t last,
                         lora_tree_node *nodes, float *parts) {
    process p = make_process(ctx);
    OK(lora_gradient_tree_begin(p.tree, n, first, last, ERR));
    for (int64_t leaf = first; leaf < last; leaf++) {
        OK(lora_gradient_tree_write(p.tree, ctx, 0, ELEMENTS, leaves[leaf], ERR));
        OK(lora_sync(ctx, ERR));
        bool in_parts = leaf == last - 1 && n % 2;
        if (in_parts) OK(lora_gradient_tree_begin_last(p.tree, ERR));
        if (in_parts)
            last_in_parts(beside, p.tree);
        else
            OK(lora_gradient_tree_next(p.tree, ERR));
    }
    const lora_tree_node *own;
    lora_tree_node expected[LORA_TREE_NODES];
    int64_t count = lora_gradient_tree_nodes(p.tree, &own);
    CHECK(count == lora_tree_cover(n, first, last, expected), "%lld nodes of leaves %lld to %lld", (long long)count, (long long)first,
          (long long)last);
    for (int64_t i = 0; i < count; i++) {
        CHECK(own[i].first == expected[i].first && own[i].level == expected[i].level, "node %lld", (long long)i);
        nodes[i] = own[i];
        OK(lora_gradient_tree_read(p.tree, ctx, i, 0, 7, parts + i * ELEMENTS, ERR));
        OK(lora_gradient_tree_read(p.tree, ctx, i, 7, ELEMENTS - 7, parts + i * ELEMENTS + 7, ERR));
    }
    OK(lora_sync(ctx, ERR));
    free_process(ctx, &p);
    return count;
}

static void check_division(lora_ctx *cpu, lora_ctx *ctx, float *const *leaves, int64_t n, int64_t ranks, const float *expected) {
    lora_tree_node nodes[MOST_LEAVES];
    float *parts = random_floats(MOST_LEAVES * ELEMENTS, 0, 0);
    lora_ctx *beside = strcmp(lora_ctx_device(ctx), "cpu") == 0 ? cpu : ctx;
    int64_t count = 0, first = 0;
    for (int64_t rank = 0; rank < ranks; rank++) {
        int64_t even = n * (rank + 1) / ranks, last = even > first ? even : first;
        if (rank == 1 && last < n) last++; /* not only the even division */
        count += sum_range(ctx, beside, leaves, n, first, last, nodes + count, parts + count * ELEMENTS);
        first = last;
    }
    OK(lora_tree_combine(cpu, n, count, nodes, lora_mat_f32(parts, count, ELEMENTS, ELEMENTS), ERR));
    CHECK(memcmp(parts, expected, ELEMENTS * sizeof(float)) == 0, "%lld leaves, %lld processes", (long long)n, (long long)ranks);
    if (ranks == 1) CHECK(count == 1, "one process has the root, got %lld nodes", (long long)count);
    free(parts);
}

static void check_memory(lora_ctx *ctx) {
    process p = make_process(ctx);
    size_t before = lora_ctx_memory(ctx, LORA_MEM_GRAD).live_bytes;
    OK(lora_gradient_tree_begin(p.tree, 64, 0, 64, ERR));
    for (int i = 0; i < 64; i++) OK(lora_gradient_tree_next(p.tree, ERR));
    size_t kept = lora_ctx_memory(ctx, LORA_MEM_GRAD).live_bytes - before;
    CHECK(kept >= 6 * ELEMENTS * sizeof(float) && kept < 7 * ELEMENTS * sizeof(float), "%zu bytes", kept); /* log2 64 */
    REFUSED(LORA_EINVAL, "next: expected a leaf", lora_gradient_tree_next(p.tree, ERR));
    REFUSED(LORA_EINVAL, "begin_last: expected one leaf", lora_gradient_tree_begin_last(p.tree, ERR));
    REFUSED(LORA_EINVAL, "begin, count: expected", lora_gradient_tree_join(p.tree, ctx, 1, ELEMENTS, ERR));
    REFUSED(LORA_EINVAL, "first, last: expected", lora_gradient_tree_begin(p.tree, 4, 3, 5, ERR));
    REFUSED(LORA_EINVAL, "leaves: expected 1", lora_gradient_tree_begin(p.tree, 0, 0, 0, ERR));
    REFUSED(LORA_EINVAL, "index: expected", lora_gradient_tree_read(p.tree, ctx, 1, 0, 0, NULL, ERR));
    REFUSED(LORA_EINVAL, "begin, count: expected", lora_gradient_tree_write(p.tree, ctx, ELEMENTS, 1, p.together, ERR));
    free_process(ctx, &p);
}

static void check_refused(lora_ctx *cpu) {
    float parts[2] = {1, 2};
    lora_mat rows = lora_mat_f32(parts, 2, 1, 1);
    const lora_tree_node gap[] = {{.first = 0}, {.first = 2}}, no_end[] = {{.first = 0}, {.first = 1}},
                         odd[] = {{.first = 0}, {.first = 1, .level = 1}};
    REFUSED(LORA_EINVAL, "nodes[1]: expected one that begins with leaf 1", lora_tree_combine(cpu, 3, 2, gap, rows, ERR));
    REFUSED(LORA_EINVAL, "nodes: expected all of 3 leaves", lora_tree_combine(cpu, 3, 2, no_end, rows, ERR));
    REFUSED(LORA_EINVAL, "nodes[1]: expected one that begins with leaf 1", lora_tree_combine(cpu, 3, 2, odd, rows, ERR));
    REFUSED(LORA_ESHAPE, "parts: expected a row", lora_tree_combine(cpu, 1, 1, (lora_tree_node[]){{.first = 0}}, rows, ERR));
}

static void on_a_device(void) {
    restart_random();
    float *leaves[MOST_LEAVES], *expected = random_floats(ELEMENTS, 0, 0);
    for (int i = 0; i < MOST_LEAVES; i++) leaves[i] = random_floats(ELEMENTS, -1, 1);
    FOR_EACH_DEVICE_ISA(isa) {
        lora_ctx *ctx = device_ctx(isa, 2), *cpu;
        OK(lora_ctx_create(&(lora_ctx_options){.n_threads = 2, .isa = isa}, &cpu, ERR));
        for (int64_t n = 1; n <= MOST_LEAVES; n++) {
            oracle(leaves, n, 0, root_level(n), expected);
            for (int64_t ranks = 1; ranks <= 5; ranks++) check_division(cpu, ctx, leaves, n, ranks, expected);
        }
        check_memory(ctx);
        check_refused(cpu);
        lora_ctx_destroy(cpu);
        device_ctx_free(ctx);
    }
    for (int i = 0; i < MOST_LEAVES; i++) free(leaves[i]);
    free(expected);
}

void check_gradient_tree(void) { on_every_device(on_a_device); }
