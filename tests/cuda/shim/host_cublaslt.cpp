#include "tests/cuda/shim/host_cublaslt.h"

const lora_cublaslt *shim_cublaslt(char *, size_t) {
    static const lora_cublaslt table = {};
    return &table;
}
