/* What is used of cuBLASLt 13, declared here: its header need not be on the machine that compiles, nor the library on the one that runs.
 * Source   docs.nvidia.com/cuda/cublas, "Using the cuBLASLt API": names, numbers and meanings of the enumerations */
#ifndef LORA_CUDA_CUBLASLT_H
#define LORA_CUDA_CUBLASLT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cudaDataType_t, cublasComputeType_t, cublasOperation_t, attributes: those that are used. */
enum { LORA_CUDA_R_32F = 0, LORA_CUDA_R_16F = 2, LORA_CUDA_R_16BF = 14 };
enum { LORA_CUBLAS_COMPUTE_32F = 68 };
enum { LORA_CUBLAS_OP_N = 0, LORA_CUBLAS_OP_T = 1 };
enum { LORA_CUBLASLT_MATMUL_DESC_POINTER_MODE = 2, LORA_CUBLASLT_MATMUL_DESC_TRANSA = 3, LORA_CUBLASLT_MATMUL_DESC_TRANSB = 4 };
/* Where alpha and beta are, both. */
enum { LORA_CUBLASLT_POINTER_MODE_HOST = 0, LORA_CUBLASLT_POINTER_MODE_DEVICE = 1 };
enum {
    LORA_CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    LORA_CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    LORA_CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    LORA_CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    LORA_CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    LORA_CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
};
/* Split sums in memory of their own, then added in a fixed order; sums in place depend on timing. */
enum { LORA_CUBLASLT_REDUCTION_NONE = 0, LORA_CUBLASLT_REDUCTION_COMPUTE_TYPE = 2 };

typedef struct lora_cublaslt_algo {
    uint64_t data[8];
} lora_cublaslt_algo;

typedef struct lora_cublaslt_heuristic {
    lora_cublaslt_algo algo;
    size_t workspace_bytes;
    int state; /* 0: it can be used */
    float waves;
    int reserved[4];
} lora_cublaslt_heuristic;

/* cublasLtX is x here; every function returns 0 or a cublasStatus_t. Matrices are column-major. */
typedef struct lora_cublaslt {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    size_t (*version)(void);
    int (*desc_create)(void **desc, int compute_type, int scale_type);
    int (*desc_destroy)(void *desc);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*layout_destroy)(void *layout);
    int (*preference_create)(void **preference);
    int (*preference_destroy)(void *preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*heuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference, int most, lora_cublaslt_heuristic *out,
                     int *n);
    int (*matmul)(void *handle, void *desc, const void *alpha, const void *A, void *a, const void *B, void *b, const void *beta,
                  const void *C, void *c, void *D, void *d, const lora_cublaslt_algo *algo, void *workspace, size_t workspace_bytes,
                  void *stream);
} lora_cublaslt;

#ifdef __cplusplus
}
#endif
#endif
