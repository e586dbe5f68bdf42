/* Conversion to and from 16 bits: every rung of this CPU against the oracle bit for bit, for all 16-bit values and for floats
 * around ties. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lora_c/base/cpuinfo.h"
#include "lora_c/kernels/convert_kernels.h"
#include "tests/c/bytes.h"
#include "tests/c/check_ops.h"

static void check_rung(const lora_convert_kernels *k, const lora_convert_kernels *ref, lora_isa isa) {
    enum { ALL = 65536 };
    static uint16_t h[ALL], back[ALL], want_back[ALL];
    static float wide[ALL], want[ALL];
    for (int i = 0; i < ALL; i++) h[i] = (uint16_t)i;
    k->bf16_to_f32(ALL, h, wide), ref->bf16_to_f32(ALL, h, want);
    CHECK(!memcmp(wide, want, sizeof wide), "%s bf16_to_f32", lora_isa_name(isa));
    k->f16_to_f32(ALL, h, wide), ref->f16_to_f32(ALL, h, want);
    CHECK(!memcmp(wide, want, sizeof wide), "%s f16_to_f32", lora_isa_name(isa));
    for (int round = 0; round < 8; round++) {
        for (int i = 0; i < ALL; i++) { /* any bits, and ties between two 16-bit values */
            uint32_t u = random_word();
            if (round % 2) u = (u & 0xffff0000u) | (i & 1 ? 0x8000u : 0x1000u);
            if (round > 3) u = (u & 0x87ffffffu) | 0x38000000u;
            memcpy(wide + i, &u, 4);
        }
        k->f32_to_bf16(ALL, wide, back), ref->f32_to_bf16(ALL, wide, want_back);
        CHECK(!memcmp(back, want_back, sizeof back), "%s f32_to_bf16", lora_isa_name(isa));
        k->f32_to_f16(ALL, wide, back), ref->f32_to_f16(ALL, wide, want_back);
        CHECK(!memcmp(back, want_back, sizeof back), "%s f32_to_f16", lora_isa_name(isa));
    }
    for (int s = 0; s < N_LENGTHS; s++) {
        bytes narrow = bytes_make(2 * LENGTHS[s], 2), row = bytes_make(4 * LENGTHS[s], 4);
        k->f32_to_bf16(LENGTHS[s], want, (uint16_t *)(void *)narrow.p);
        k->bf16_to_f32(LENGTHS[s], h, (float *)(void *)row.p);
        CHECK(bytes_guarded(narrow) && bytes_guarded(row), "%s bf16 n=%lld", lora_isa_name(isa), (long long)LENGTHS[s]);
        k->f32_to_f16(LENGTHS[s], want, (uint16_t *)(void *)narrow.p);
        k->f16_to_f32(LENGTHS[s], h, (float *)(void *)row.p);
        CHECK(bytes_guarded(narrow) && bytes_guarded(row), "%s f16 n=%lld", lora_isa_name(isa), (long long)LENGTHS[s]);
        free(narrow.all), free(row.all);
    }
}

void check_convert(void) {
    lora_convert_kernels ref, k;
    lora_convert_kernels_init(&ref, LORA_ISA_REF);
    for (lora_isa isa = LORA_ISA_REF; isa <= lora_cpu_best_isa(); isa++) {
        lora_convert_kernels_init(&k, isa);
        check_rung(&k, &ref, isa);
    }
}
