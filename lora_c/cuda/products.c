/* Products by cuBLASLt. Its matrices are column-major: a row-major matrix is its transpose there, and c^T = op(b)^T op(a)^T.
 * The heuristic chooses an algorithm by shapes, types, strides and alignments alone; what it chose is kept, as asking takes longer than a
 * small product. Sums that are split are added in memory of their own, in a fixed order: the same bits each time.
 * Source   docs.nvidia.com/cuda/cublas, "cublasLtMatmul", "cublasLtMatmulAlgoGetHeuristic" */
#include "lora_c/cuda/products.h"

#include <inttypes.h>
#include <string.h>

#include "lora_c/base/alloc.h"
#include "lora_c/base/util.h"
#include "lora_c/cuda/graphs.h"
#include "lora_c/cuda/cublaslt.h"
#include "lora_c/cuda/scaled.h"
#include "lora_c/kernels/tmpl/gpu_scratch_tmpl.h"

enum {
    PLANS = 512,                    /* kept; a power of two */
    WORKSPACE = LORA_GPU_WORKSPACE, /* bytes: what NVIDIA advises for Hopper */
    MOST_ALIGNMENT = 16,            /* bytes: what the loads of kernels need at most */
    NO_ALGORITHM = 15,              /* CUBLAS_STATUS_NOT_SUPPORTED */
    OPERANDS = 3,                   /* A, B, C of cuBLASLt */
};

/* What an algorithm is chosen by. Cleared before it is filled: compared as bytes. */
typedef struct plan_key {
    struct {
        uint64_t rows, cols; /* of cuBLASLt: column-major */
        int64_t ld;
        int type;
        int32_t transpose;
        uint32_t alignment;
    } of[OPERANDS];
    int32_t pointer_mode, reserved; /* of alpha and beta */
} plan_key;

typedef struct plan {
    plan_key key;
    void *desc, *layouts[OPERANDS];
    lora_cublaslt_heuristic chosen;
    bool used;
} plan;

struct lora_cuda_products {
    const lora_cublaslt *lt;
    void *handle, *preference;
    plan plans[PLANS];
};

static lora_status check(lora_cuda *c, int code, const char *what, lora_error *err) {
    LORA_CHECK(code != 3, err, LORA_ENOMEM, "%s: expected memory on %s:%d, got none", what, c->api->name, c->device); /* _ALLOC_FAILED */
    LORA_CHECK(code == 0, err, LORA_EDEVICE, "%s: expected success, got cublasStatus_t %d on %s:%d", what, code, c->api->name, c->device);
    return LORA_OK;
}

/* --- begin and end --- */

lora_status lora_cuda_products_create(lora_cuda *c, lora_mem *host, lora_error *err) {
    char why[LORA_ERROR_BYTES / 2] = "";
    const lora_cublaslt *lt = c->api->cublaslt(why, sizeof why);
    LORA_CHECK(lt, err, LORA_EDEVICE, "%s:%d: %s", c->api->name, c->device, why);
    lora_cuda_products *p = lora_mem_calloc(host, LORA_MEM_SCRATCH, sizeof *p);
    LORA_CHECK(p, err, LORA_ENOMEM, "device: expected %zu bytes, got none", sizeof *p);
    c->products = p;
    p->lt = lt;
    LORA_TRY(check(c, lt->create(&p->handle), "cublasLtCreate", err));
    LORA_TRY(check(c, lt->preference_create(&p->preference), "cublasLtMatmulPreferenceCreate", err));
    const uint64_t workspace = WORKSPACE;
    const uint32_t reductions = LORA_CUBLASLT_REDUCTION_NONE | LORA_CUBLASLT_REDUCTION_COMPUTE_TYPE;
    int code = lt->preference_set(p->preference, LORA_CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    if (code == 0)
        code = lt->preference_set(p->preference, LORA_CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
    return check(c, code, "cublasLtMatmulPreferenceSetAttribute", err);
}

static void end_plan(const lora_cublaslt *lt, plan *p) {
    for (int i = 0; i < OPERANDS; i++)
        if (p->layouts[i]) (void)lt->layout_destroy(p->layouts[i]);
    if (p->desc) (void)lt->desc_destroy(p->desc);
    memset(p, 0, sizeof *p);
}

void lora_cuda_products_destroy(lora_cuda *c, lora_mem *host) {
    lora_cuda_products *p = c->products;
    if (!p) return;
    for (int i = 0; i < PLANS; i++) end_plan(p->lt, &p->plans[i]);
    if (p->preference) (void)p->lt->preference_destroy(p->preference);
    if (p->handle) (void)p->lt->destroy(p->handle);
    lora_mem_free(host, p);
    c->products = NULL;
}

/* --- plans --- */

static int type_of(lora_dtype t) { return t == LORA_F32 ? LORA_CUDA_R_32F : t == LORA_BF16 ? LORA_CUDA_R_16BF : LORA_CUDA_R_16F; }

static bool is_scaled(const lora_cuda_product *g) { return g->a_exponent || g->b_exponent; }

/* Of the address only: the heuristic sees the leading dimension. */
static uint32_t alignment_of(lora_mat m) {
    uint32_t alignment = MOST_ALIGNMENT;
    while ((uintptr_t)m.data % alignment) alignment /= 2;
    return alignment;
}

static plan_key key_of(const lora_cuda_product *g) {
    const lora_mat matrices[OPERANDS] = {g->b, g->a, g->c};
    const bool transposed[OPERANDS] = {g->transpose_b, g->transpose_a, false};
    plan_key key;
    memset(&key, 0, sizeof key);
    key.pointer_mode = is_scaled(g) ? LORA_CUBLASLT_POINTER_MODE_DEVICE : LORA_CUBLASLT_POINTER_MODE_HOST;
    for (int i = 0; i < OPERANDS; i++) {
        key.of[i].rows = (uint64_t)matrices[i].cols;
        key.of[i].cols = (uint64_t)matrices[i].rows;
        key.of[i].ld = lora_max_i64(matrices[i].ld, matrices[i].cols); /* one row has none */
        key.of[i].type = type_of(matrices[i].dtype);
        key.of[i].transpose = transposed[i] ? LORA_CUBLAS_OP_T : LORA_CUBLAS_OP_N;
        key.of[i].alignment = alignment_of(matrices[i]);
    }
    return key;
}

static size_t slot_of(const plan_key *key) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *key; i++) hash = (hash ^ ((const unsigned char *)key)[i]) * 1099511628211u;
    return (size_t)(hash >> 20) & (PLANS - 1);
}

static lora_status describe(lora_cuda *c, plan *p, lora_error *err) {
    const lora_cublaslt *lt = c->products->lt;
    LORA_TRY(check(c, lt->desc_create(&p->desc, LORA_CUBLAS_COMPUTE_32F, LORA_CUDA_R_32F), "cublasLtMatmulDescCreate", err));
    int code = lt->desc_set(p->desc, LORA_CUBLASLT_MATMUL_DESC_TRANSA, &p->key.of[0].transpose, sizeof p->key.of[0].transpose);
    if (code == 0) code = lt->desc_set(p->desc, LORA_CUBLASLT_MATMUL_DESC_TRANSB, &p->key.of[1].transpose, sizeof p->key.of[1].transpose);
    if (code == 0) code = lt->desc_set(p->desc, LORA_CUBLASLT_MATMUL_DESC_POINTER_MODE, &p->key.pointer_mode, sizeof p->key.pointer_mode);
    LORA_TRY(check(c, code, "cublasLtMatmulDescSetAttribute", err));
    for (int i = 0; i < OPERANDS; i++) {
        code = lt->layout_create(&p->layouts[i], p->key.of[i].type, p->key.of[i].rows, p->key.of[i].cols, p->key.of[i].ld);
        LORA_TRY(check(c, code, "cublasLtMatrixLayoutCreate", err));
    }
    return LORA_OK;
}

static lora_status choose(lora_cuda *c, plan *p, lora_error *err) {
    const lora_cublaslt *lt = c->products->lt;
    void *preference = c->products->preference;
    LORA_TRY(describe(c, p, err));
    int code = 0, n = 0;
    for (int i = 0; i < OPERANDS && code == 0; i++)
        code =
            lt->preference_set(preference, LORA_CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i, &p->key.of[i].alignment, sizeof(uint32_t));
    if (code == 0)
        code = lt->preference_set(preference, LORA_CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &p->key.of[2].alignment, sizeof(uint32_t));
    LORA_TRY(check(c, code, "cublasLtMatmulPreferenceSetAttribute", err));
    code = lt->heuristic(c->products->handle, p->desc, p->layouts[0], p->layouts[1], p->layouts[2], p->layouts[2], preference, 1,
                         &p->chosen, &n);
    if (code == 0 && (n < 1 || p->chosen.state != 0)) code = NO_ALGORITHM;
    return check(c, code, "cublasLtMatmulAlgoGetHeuristic", err);
}

static lora_status find_plan(lora_cuda *c, const lora_cuda_product *g, plan **out, lora_error *err) {
    plan_key key = key_of(g);
    plan *p = *out = &c->products->plans[slot_of(&key)];
    if (p->used && memcmp(&p->key, &key, sizeof key) == 0) return LORA_OK;
    end_plan(c->products->lt, p);
    p->key = key;
    lora_status status = choose(c, p, err);
    p->used = status == LORA_OK;
    return status;
}

lora_status lora_cuda_multiply(lora_cuda *c, const lora_cuda_product *g, lora_error *err) {
    if (g->c.rows == 0 || g->c.cols == 0) return LORA_OK;
    const float *alpha = &g->alpha, *beta = &g->beta;
    void *workspace;
    plan *p;
    LORA_TRY(lora_cuda_scratch(c, LORA_CUDA_SCRATCH_WORKSPACE, WORKSPACE, &workspace, err));
    LORA_TRY(find_plan(c, g, &p, err));
    if (is_scaled(g)) LORA_TRY(lora_cuda_scalars(c, g, &alpha, &beta, err));
    LORA_TRY(lora_cuda_check(c, c->api->set_device(c->device), "cudaSetDevice", err)); /* the thread may have used another */
    int code = c->products->lt->matmul(c->products->handle, p->desc, alpha, g->b.data, p->layouts[0], g->a.data, p->layouts[1], beta,
                                       g->c.data, p->layouts[2], g->c.data, p->layouts[2], &p->chosen.algo, workspace, WORKSPACE,
                                       lora_cuda_stream_of_products(c));
    return check(c, code, "cublasLtMatmul", err);
}
