/* What the shim of the CUDA plug-in tells beside its table, found where LORA_C_BACKENDS names it. */
#ifndef LORA_TESTS_SHIM_SYMBOLS_H
#define LORA_TESTS_SHIM_SYMBOLS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct shim_symbols {
    int64_t (*fail_at)(int64_t n); /* as in tests/cuda/shim/faults.h */
    int64_t (*live)(void);
    int64_t (*graph_launches)(void);
    int64_t (*run_ends)(int64_t blocks); /* as in tests/cuda/shim/grids.h */
} shim_symbols;

/* false where it is not loaded */
bool find_shim_symbols(shim_symbols *out);

#endif
