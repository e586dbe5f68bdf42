/* cuBLASLt for the shim. It refuses what cuBLASLt refuses: types and shapes that do not fit each other, leading dimensions that are too
 * small, addresses less aligned than the heuristic was told, an algorithm of another product, too little workspace; and alpha and beta
 * elsewhere than the pointer mode says, which cuBLASLt would read all the same. Sums are float32, of k from 0 up, one rounding each. */
#include "tests/cuda/shim/host_cublaslt.h"

#include <cstring>

#include "tests/cuda/shim/host_product.h"

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 }; /* cublasStatus_t */
enum { WORKSPACE_ALIGNMENT = 16, PREFERENCES = 9, NEEDED_WORKSPACE = 4096 };

struct operation {
    int compute_type, scale_type;
    int32_t transpose[2] = {LORA_CUBLAS_OP_N, LORA_CUBLAS_OP_N};
    int32_t pointer_mode = LORA_CUBLASLT_POINTER_MODE_HOST;
};
struct preference {
    uint64_t workspace = 0;
    uint32_t values[PREFERENCES] = {0, 0, 0, 7, 0, 256, 256, 256, 256}; /* by attribute: the documented defaults */
};

/* What an algorithm was made for: has to fit in the 64 bytes of the real one. */
struct algorithm {
    uint64_t shape; /* of the operation and of the layouts, mixed */
    uint64_t workspace;
    uint32_t alignment[4]; /* of A, B, C, D */
};
static_assert(sizeof(algorithm) <= sizeof(lora_cublaslt_algo), "64 bytes");

bool is_type(int type) { return type == LORA_CUDA_R_32F || type == LORA_CUDA_R_16F || type == LORA_CUDA_R_16BF; }
size_t bytes_of(int type) { return type == LORA_CUDA_R_32F ? 4 : 2; }

uint64_t mix(uint64_t hash, uint64_t value) { return (hash ^ value) * 1099511628211u; } /* FNV-1a, by words */
uint64_t mix(uint64_t hash, const layout *l) { return mix(mix(mix(mix(hash, (uint64_t)l->type), l->rows), l->cols), (uint64_t)l->ld); }

uint64_t shape_of(const operation *o, const layout *a, const layout *b, const layout *c, const layout *d) {
    uint64_t hash = mix(mix(14695981039346656037u, (uint64_t)o->transpose[0]), (uint64_t)o->transpose[1]);
    hash = mix(hash, (uint64_t)o->pointer_mode);
    return mix(mix(mix(mix(hash, a), b), c), d);
}

product_shape sizes_of(const operation *o, const layout *a, const layout *c) {
    return {c->rows, c->cols, o->transpose[0] == LORA_CUBLAS_OP_N ? a->cols : a->rows};
}

int check(const operation *o, const layout *a, const layout *b, const layout *c, const layout *d) {
    if (!o || !a || !b || !c || !d) return INVALID_VALUE;
    if (o->compute_type != LORA_CUBLAS_COMPUTE_32F || o->scale_type != LORA_CUDA_R_32F) return NOT_SUPPORTED;
    if (a->type != b->type || c->type != d->type || (c->type != a->type && c->type != LORA_CUDA_R_32F)) return NOT_SUPPORTED;
    for (const layout *l : {a, b, c, d})
        if (l->rows == 0 || l->cols == 0 || l->ld < (int64_t)l->rows) return INVALID_VALUE;
    if (c->rows != d->rows || c->cols != d->cols) return INVALID_VALUE;
    auto [m, n, k] = sizes_of(o, a, c);
    uint64_t a_rows = o->transpose[0] == LORA_CUBLAS_OP_N ? a->rows : a->cols;
    uint64_t b_rows = o->transpose[1] == LORA_CUBLAS_OP_N ? b->rows : b->cols, b_cols = b->rows + b->cols - b_rows;
    return a_rows == m && b_rows == k && b_cols == n ? SUCCESS : INVALID_VALUE;
}

/* --- objects --- */

int create(void **handle) {
    *handle = new int(0);
    return SUCCESS;
}
int destroy(void *handle) {
    delete static_cast<int *>(handle);
    return SUCCESS;
}
size_t version() { return 130000; }
int desc_create(void **desc, int compute_type, int scale_type) {
    *desc = new operation{compute_type, scale_type};
    return SUCCESS;
}
int desc_destroy(void *desc) {
    delete static_cast<operation *>(desc);
    return SUCCESS;
}
int desc_set(void *desc, int attribute, const void *value, size_t bytes) {
    operation *o = static_cast<operation *>(desc);
    int32_t number;
    if (bytes != sizeof number) return INVALID_VALUE;
    memcpy(&number, value, bytes);
    if (number != 0 && number != 1) return INVALID_VALUE; /* the first two of either enumeration are all that is used */
    if (attribute == LORA_CUBLASLT_MATMUL_DESC_POINTER_MODE)
        o->pointer_mode = number;
    else if (attribute == LORA_CUBLASLT_MATMUL_DESC_TRANSA || attribute == LORA_CUBLASLT_MATMUL_DESC_TRANSB)
        o->transpose[attribute - LORA_CUBLASLT_MATMUL_DESC_TRANSA] = number;
    else
        return INVALID_VALUE;
    return SUCCESS;
}
int layout_create(void **made, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    if (!is_type(type)) return NOT_SUPPORTED;
    *made = new layout{type, rows, cols, ld};
    return SUCCESS;
}
int layout_destroy(void *l) {
    delete static_cast<layout *>(l);
    return SUCCESS;
}
int preference_create(void **made) {
    *made = new preference;
    return SUCCESS;
}
int preference_destroy(void *p) {
    delete static_cast<preference *>(p);
    return SUCCESS;
}
int preference_set(void *to, int attribute, const void *value, size_t bytes) {
    preference *p = static_cast<preference *>(to);
    if (attribute == LORA_CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
        if (bytes != sizeof p->workspace) return INVALID_VALUE;
        memcpy(&p->workspace, value, bytes);
        return SUCCESS;
    }
    if (attribute < 0 || attribute >= PREFERENCES || bytes != sizeof(uint32_t)) return INVALID_VALUE;
    memcpy(&p->values[attribute], value, bytes);
    return SUCCESS;
}

/* --- products --- */

/* One algorithm, which wants some workspace where it may have it. One that would add in place is refused: its bits depend on timing. */
int heuristic(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preferred, int most, lora_cublaslt_heuristic *out,
              int *n) {
    const preference *p = static_cast<preference *>(preferred);
    *n = 0;
    if (!handle || !p || most < 1) return INVALID_VALUE;
    const operation *o = static_cast<operation *>(desc);
    const layout *layouts[] = {static_cast<layout *>(a), static_cast<layout *>(b), static_cast<layout *>(c), static_cast<layout *>(d)};
    int code = check(o, layouts[0], layouts[1], layouts[2], layouts[3]);
    if (code != SUCCESS) return code;
    if (p->values[LORA_CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK] & 1) return NOT_SUPPORTED;
    algorithm made = {shape_of(o, layouts[0], layouts[1], layouts[2], layouts[3]),
                      p->workspace < (uint64_t)NEEDED_WORKSPACE ? (uint64_t)0 : (uint64_t)NEEDED_WORKSPACE,
                      {}};
    for (int i = 0; i < 4; i++) {
        made.alignment[i] = p->values[LORA_CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i];
        if (made.alignment[i] < bytes_of(layouts[i]->type)) return NOT_SUPPORTED;
    }
    *out = {};
    memcpy(&out->algo, &made, sizeof made);
    out->workspace_bytes = made.workspace;
    out->waves = 1;
    *n = 1;
    return SUCCESS;
}

int matmul(void *handle, void *desc, const void *alpha, const void *A, void *a, const void *B, void *b, const void *beta, const void *C,
           void *c, void *D, void *d, const lora_cublaslt_algo *algo, void *workspace, size_t workspace_bytes, void *stream) {
    const operation *o = static_cast<operation *>(desc);
    const layout *la = static_cast<layout *>(a), *lb = static_cast<layout *>(b), *lc = static_cast<layout *>(c),
                 *ld = static_cast<layout *>(d);
    int code = check(o, la, lb, lc, ld);
    if (code != SUCCESS) return code;
    if (!handle || !alpha || !beta || !A || !B || !C || !D || !algo) return INVALID_VALUE;
    algorithm chosen;
    memcpy(&chosen, algo, sizeof chosen);
    if (chosen.shape != shape_of(o, la, lb, lc, ld)) return INVALID_VALUE;
    if (workspace_bytes < chosen.workspace || (chosen.workspace && (!workspace || (uintptr_t)workspace % WORKSPACE_ALIGNMENT)))
        return INVALID_VALUE;
    const void *addresses[] = {A, B, C, D};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)addresses[i] % chosen.alignment[i]) return INVALID_VALUE;
    bool on_device = o->pointer_mode == LORA_CUBLASLT_POINTER_MODE_DEVICE;
    if (shim_on_device(alpha) != on_device || shim_on_device(beta) != on_device) return INVALID_VALUE;
    std::function<float(const void *)> number = [](const void *p) { return *static_cast<const float *>(p); };
    if (!on_device) { /* now, else when the product is computed */
        float by = number(alpha), plus = number(beta);
        number = [=](const void *p) { return p == alpha ? by : plus; };
    }
    operand left = {A, *la, o->transpose[0] == LORA_CUBLAS_OP_T}, right = {B, *lb, o->transpose[1] == LORA_CUBLAS_OP_T},
            before = {C, *lc, false};
    shim_add_work(stream,
                  [s = sizes_of(o, la, lc), number, alpha, beta, left, right, before, D, of_d = *ld, workspace, bytes = chosen.workspace] {
                      if (bytes) memset(workspace, 0xA5, bytes); /* whoever else uses it loses what is there */
                      multiply(s, number(alpha), left, right, number(beta), before, D, of_d);
                  });
    return SUCCESS;
}

} // namespace

const lora_cublaslt *shim_cublaslt(char *, size_t) {
    static const lora_cublaslt table = {create,         destroy,       version,        desc_create,       desc_destroy,
                                        desc_set,       layout_create, layout_destroy, preference_create, preference_destroy,
                                        preference_set, heuristic,     matmul};
    return &table;
}
