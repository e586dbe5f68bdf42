/* Which of the mutants that are built into the kernels (mutants.py) is at work: the one that LORA_C_MUTANT names, from 1. The file
 * that LORA_C_MUTANTS_MET names gets a byte for each that was met: 1 where its condition or barrier ran. */
#ifndef LORA_TESTS_CUDA_MUTANT_H
#define LORA_TESTS_CUDA_MUTANT_H

#include <cstdio>
#include <cstdlib>

inline const int lora_mutant_chosen = std::getenv("LORA_C_MUTANT") ? std::atoi(std::getenv("LORA_C_MUTANT")) : 0;

struct lora_mutants_met {
    unsigned char at[1024];
    ~lora_mutants_met() {
        const char *path = std::getenv("LORA_C_MUTANTS_MET");
        std::FILE *file = path ? std::fopen(path, "wb") : nullptr;
        if (!file) return;
        std::fwrite(at, 1, sizeof at, file);
        std::fclose(file);
    }
};
inline lora_mutants_met lora_met = {};

inline bool lora_mutant(int number) {
    if (!lora_met.at[number]) lora_met.at[number] = 1;
    return number == lora_mutant_chosen;
}

#endif
