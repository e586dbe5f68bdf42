/* One operation at a time on any device: inputs are made on the host and sent there, results are kept as the host's. */
#ifndef LORA_TESTS_OP_RUN_H
#define LORA_TESTS_OP_RUN_H

#include "tests/c/check_ops.h"
#include "tests/c/devices.h"

enum { OP_RUN_ARRAYS = 2048, OP_RUN_RESULTS = 1024 };

typedef enum value_kind { VALUES_F32, VALUES_F64, VALUES_BF16 } value_kind;

typedef struct op_values {
    char what[64];
    value_kind kind;
    int64_t n;
    void *data; /* of the host */
} op_values;

typedef struct op_run {
    lora_ctx *ctx;
    uint64_t seed; /* of the next array */
    void *arrays[OP_RUN_ARRAYS];
    int n_arrays;
    op_values results[OP_RUN_RESULTS];
    int n_results;
} op_run;

/* A case names an operation of the table. Its inputs are the same whatever the context. */
typedef struct op_case {
    const char *name;
    void (*run)(op_run *r);
} op_case;

/* Arrays of the device with these contents, or with n numbers from N(0, scale). They live as long as the run. */
void *op_send(op_run *r, const void *host, size_t bytes);
float *op_floats(op_run *r, int64_t n, float scale);
/* A matrix of the same, three elements of padding between its rows. */
lora_mat op_mat(op_run *r, int64_t rows, int64_t cols, float scale);
/* A weight of the host on the device. */
lora_weight op_weight(op_run *r, const lora_weight *host);

/* The array becomes a result of the run. Of a matrix with what lies between its rows. */
void op_keep(op_run *r, const char *what, const void *device, int64_t n, value_kind kind);
void op_keep_mat(op_run *r, const char *what, lora_mat m);

/* Every case on every device in both precisions: the CPU within its tolerance of the ref rung, others within theirs or bit for bit. */
void op_check_cases(const op_case *cases, int n);
/* The same bits on every device, of operations whose results have one rounding or an order that is promised. */
void op_check_same_bits(const op_case *cases, int n);

#endif
