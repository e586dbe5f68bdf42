/* Is the emulated instruction what the manual says, with every kind of operand: beside plain C. */
#include "tests/emulate/avx_vnni_forms.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "lora_c/base/cpuinfo.h"

enum { VECTOR = 32 };

typedef struct operands {
    int32_t sums[8];
    uint8_t u[VECTOR];
    int8_t s[VECTOR];
} operands;

static operands given;
static _Alignas(64) operands got __asm__("lora_vpdpbusd_operands"); /* a name for an operand relative to RIP */

static void plain(operands *o, int bytes) {
    for (int i = 0; i < 8; i++) {
        uint32_t sum = i < bytes / 4 ? (uint32_t)o->sums[i] : 0;
        for (int j = 4 * i; j < 4 * i + 4 && j < bytes; j++) sum += (uint32_t)(o->u[j] * o->s[j]);
        o->sums[i] = (int32_t)sum;
    }
}

/* All 32 bytes of D (the number of a register) after the instruction, whose vectors are R ("x" or "y"), with s in S. */
#define FORM(R, D, U, setup, S)                                                                                                            \
    __asm__ volatile(setup "\n\tvmovdqu %[sums], %%ymm" D "\n\tvmovdqu %[u], %%ymm" U "\n\t%{vex%} vpdpbusd " S ", %%" R "mm" U ", %%" R   \
                           "mm" D "\n\tvmovdqu %%ymm" D ", %[sums]"                                                                        \
                     : [sums] "+m"(got.sums)                                                                                               \
                     : [u] "m"(got.u), [s] "m"(got.s), [at] "r"(got.s), [two] "r"((int64_t)2), [s_at] "i"(offsetof(operands, s))           \
                     : "xmm1", "xmm2", "xmm3", "xmm9", "xmm12", "xmm15", "r12", "r13", "cc")

enum { FORMS = 13 };

/* The width in bytes. */
static int run_form(int form) {
    switch (form) {
    case 0: FORM("y", "1", "2", "vmovdqu %[s], %%ymm3", "%%ymm3"); return 32;
    case 1: FORM("y", "9", "12", "vmovdqu %[s], %%ymm15", "%%ymm15"); return 32;
    case 2: FORM("y", "15", "1", "vmovdqu %[s], %%ymm9", "%%ymm9"); return 32;
    case 3: FORM("x", "1", "9", "vmovdqu %[s], %%ymm2", "%%xmm2"); return 16;
    case 4: FORM("y", "1", "2", "", "lora_vpdpbusd_operands+%c[s_at](%%rip)"); return 32;
    case 5: FORM("y", "9", "2", "movq %[at], %%r13", "(%%r13)"); return 32;
    case 6: FORM("y", "1", "2", "leaq 64(%[at]), %%r12", "-64(%%r12)"); return 32;
    case 7: FORM("y", "1", "2", "leaq -4096(%[at]), %%r13", "4096(%%r13)"); return 32;
    case 8: FORM("y", "1", "12", "leaq -4(%[at]), %%r13", "(%%r13,%[two],2)"); return 32;
    case 9: FORM("y", "12", "2", "leaq -24(%[at]), %%r12", "8(%%r12,%[two],8)"); return 32;
    case 10: FORM("y", "1", "2", "movq $-1, %%r12", "4(%[at],%%r12,4)"); return 32;
    case 11: FORM("y", "1", "2", "movq %[at], %%r12\n\tsarq $2, %%r12", "(,%%r12,4)"); return 32;
    default: FORM("x", "15", "2", "", "%[s]"); return 16;
    }
}

static void fill(int turn) {
    static const uint8_t extremes[] = {0, 1, 127, 128, 129, 255};
    uint32_t state = (uint32_t)turn * 2654435761u + 1;
    uint8_t *bytes = (uint8_t *)&given;
    for (size_t i = 0; i < sizeof given; i++) {
        state = state * 1664525u + 1013904223u;
        bytes[i] = turn % 2 ? extremes[(state >> 16) % sizeof extremes] : (uint8_t)(state >> 24);
    }
}

/* Registers in their initial state, which the frame of a signal may leave out. */
static int initial_state(void) {
    int32_t sums[8];
    __asm__ volatile("vzeroall\n\t%{vex%} vpdpbusd %%ymm1, %%ymm2, %%ymm3\n\tvmovdqu %%ymm3, %[sums]"
                     : [sums] "=m"(sums)
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
                       "xmm14", "xmm15");
    int wrong = 0;
    for (int i = 0; i < 8; i++) wrong += sums[i] != 0;
    return wrong;
}

/* A write to the lower half of a register of AVX-512 makes the upper one 0. */
static int upper_halves(void) {
    if (lora_cpu_best_isa() < LORA_ISA_AVX512) return 0;
    int32_t upper[8], beside[8];
    __asm__ volatile("vpternlogd $255, %%zmm9, %%zmm9, %%zmm9\n\tvmovdqa64 %%zmm9, %%zmm8\n\t"
                     "%{vex%} vpdpbusd %%ymm1, %%ymm2, %%ymm9\n\t"
                     "vextracti64x4 $1, %%zmm9, %[upper]\n\tvextracti64x4 $1, %%zmm8, %[beside]\n\tvzeroupper"
                     : [upper] "=m"(upper), [beside] "=m"(beside)
                     :
                     : "xmm8", "xmm9");
    int wrong = 0;
    for (int i = 0; i < 8; i++) wrong += upper[i] != 0 || beside[i] != -1;
    return wrong;
}

int avx_vnni_wrong_forms(void) {
    int wrong = initial_state() + upper_halves();
    if (wrong) printf("vpdpbusd: %d wrong values beside its operands\n", wrong);
    for (int turn = 0; turn < 100; turn++)
        for (int form = 0; form < FORMS; form++) {
            fill(turn);
            got = given;
            operands want = given;
            plain(&want, run_form(form));
            if (memcmp(&want, &got, sizeof want) == 0) continue;
            if (wrong++ < 5) printf("vpdpbusd, form %d: sum 0 is %d, expected %d\n", form, got.sums[0], want.sums[0]);
        }
    return wrong;
}
