/* The start values of a LoRA adapter. */
#include <math.h>

#include "lora_c/base/philox.h"
#include "lora_c/linear.h"

/* A stream of its own: dropout masks of the same seed count their streams from 0. */
static const uint64_t INIT_STREAM = UINT64_C(0x6c6f72615f696e69);

void lora_adapter_init(int64_t rank, int64_t in_features, uint64_t seed, float *A) {
    float bound = (float)(1.0 / sqrt((double)in_features));
    int64_t n = rank * in_features;
    for (int64_t i = 0; i < n; i += 4) {
        uint32_t words[4];
        lora_philox4x32(seed, INIT_STREAM, (uint64_t)i / 4, words);
        for (int64_t j = 0; j < 4 && i + j < n; j++) A[i + j] = (2.0f * lora_philox_to_uniform(words[j]) - 1.0f) * bound;
    }
}
