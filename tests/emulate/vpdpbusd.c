/* VEX.128/256.66.0F38.W0 50 /r: vpdpbusd, the one instruction of AVX-VNNI that the kernels have. To each int32 of the destination it
 * adds four products of a byte of the first source (VEX.vvvv), unsigned, and one of the second (ModRM.rm), signed; the sum wraps.
 * Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, 2.1.5 (ModRM, SIB), 2.3.5 (VEX) and VPDPBUSD;
 * volume 1, 13.4 (XSAVE area); Linux, arch/x86/include/uapi/asm/sigcontext.h (the frame of a signal). */
#define _GNU_SOURCE /* REG_RIP */
#include "tests/emulate/vpdpbusd.h"

#include <cpuid.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

/* --- registers in the frame of a signal --- */

enum { XMM_AT = 160, SOFTWARE_AT = 464, STATE_BV_AT = 512, HALF = 16, VECTOR = 32 };
enum { SSE = 1, AVX = 2, ZMM_HIGH = 6 };               /* components of the state, by their bit of XSTATE_BV */
static const uint32_t has_extended_state = 0x46505853; /* FP_XSTATE_MAGIC1 */

static size_t ymm_high_at, zmm_high_at; /* as CPUID tells, which is slow where a hypervisor answers: asked once */
static atomic_long n_emulated;

static const int general[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static bool in_use(const uint8_t *area, int component) { return area[STATE_BV_AT] >> component & 1; }

/* A component in its initial state is 0, whatever its memory holds. */
static void read_half(const uint8_t *area, int component, size_t at, uint8_t *half) {
    memset(half, 0, HALF);
    if (in_use(area, component)) memcpy(half, area + at, HALF);
}

static void read_vector(const uint8_t *area, int number, uint8_t *v) {
    read_half(area, SSE, XMM_AT + (size_t)number * HALF, v);
    read_half(area, AVX, ymm_high_at + (size_t)number * HALF, v + HALF);
}

/* Of a sum. A component in its initial state stays in it: with 0 as sum and as u the sum is 0. */
static void write_vector(uint8_t *area, int number, const uint8_t *v) {
    memcpy(area + XMM_AT + number * HALF, v, HALF);
    memcpy(area + ymm_high_at + number * HALF, v + HALF, HALF);
    if (in_use(area, ZMM_HIGH)) memset(area + zmm_high_at + number * VECTOR, 0, VECTOR);
}

/* --- the instruction --- */

typedef struct instruction {
    int length, bytes; /* of itself; of a vector */
    int destination, first, second;
    const uint8_t *memory; /* of the second source, or NULL: a register */
} instruction;

static int32_t displacement(const uint8_t *code, int bytes) {
    int32_t wide = 0;
    if (bytes == 1) return (int8_t)*code;
    memcpy(&wide, code, (size_t)bytes);
    return wide;
}

/* The operand in memory of ModRM (mod < 3) at code + 4; sets the length. */
static const uint8_t *memory_operand(const uint8_t *code, const greg_t *regs, instruction *op) {
    const int mod = code[4] >> 6, rm = code[4] & 7;
    const int index_8 = code[1] & 0x40 ? 0 : 8, base_8 = code[1] & 0x20 ? 0 : 8; /* VEX.X and VEX.B are inverted */
    const bool sib = rm == 4;
    const int base = sib ? code[5] & 7 : rm, index = (code[5] >> 3 & 7) + index_8;
    const bool no_base = mod == 0 && base == 5;
    const int at = sib ? 6 : 5, bytes = mod == 1 ? 1 : mod == 2 || no_base ? 4 : 0;
    op->length = at + bytes;
    uint64_t address = (uint64_t)(int64_t)displacement(code + at, bytes);
    if (!no_base) address += (uint64_t)regs[general[base + base_8]];
    if (no_base && !sib) address += (uint64_t)(uintptr_t)(code + op->length); /* from the next instruction */
    if (sib && index != 4) address += (uint64_t)regs[general[index]] << (code[5] >> 6);
    return (const uint8_t *)(uintptr_t)address;
}

static bool decode(const uint8_t *code, const greg_t *regs, instruction *op) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x83) != 1 || code[3] != 0x50) return false;
    *op = (instruction){.length = 5, .bytes = code[2] & 4 ? VECTOR : HALF};
    op->destination = (code[4] >> 3 & 7) + (code[1] & 0x80 ? 0 : 8);
    op->first = ~code[2] >> 3 & 15;
    op->second = (code[4] & 7) + (code[1] & 0x20 ? 0 : 8);
    if (code[4] < 0xc0) op->memory = memory_operand(code, regs, op);
    return true;
}

static void execute(const instruction *op, uint8_t *area) {
    uint8_t sums[VECTOR], u[VECTOR], s[VECTOR];
    read_vector(area, op->destination, sums);
    read_vector(area, op->first, u);
    if (op->memory)
        memcpy(s, op->memory, (size_t)op->bytes);
    else
        read_vector(area, op->second, s);
    for (int i = 0; i < op->bytes; i += 4) {
        uint32_t sum;
        memcpy(&sum, sums + i, 4);
        for (int j = i; j < i + 4; j++) sum += (uint32_t)(u[j] * (int8_t)s[j]);
        memcpy(sums + i, &sum, 4);
    }
    memset(sums + op->bytes, 0, (size_t)(VECTOR - op->bytes));
    write_vector(area, op->destination, sums);
}

/* --- the signal --- */

static void on_illegal(int signal_number, siginfo_t *info, void *context) {
    (void)info;
    mcontext_t *machine = &((ucontext_t *)context)->uc_mcontext;
    uint8_t *area = (uint8_t *)machine->fpregs;
    uint32_t magic;
    memcpy(&magic, area + SOFTWARE_AT, sizeof magic);
    long n = 0;
    instruction op;
    /* Loops have several in a row, and a signal takes thousands of times as long as one of them. */
    while (magic == has_extended_state && decode((const uint8_t *)machine->gregs[REG_RIP], machine->gregs, &op)) {
        execute(&op, area);
        machine->gregs[REG_RIP] += op.length;
        n++;
    }
    if (n == 0) signal(signal_number, SIG_DFL); /* the instruction is met again, and ends the program */
    atomic_fetch_add_explicit(&n_emulated, n, memory_order_relaxed);
}

static size_t offset_of(int component) {
    unsigned size, offset = 0, flags, unused;
    return __get_cpuid_count(0xd, (unsigned)component, &size, &offset, &flags, &unused) ? offset : 0;
}

void vpdpbusd_emulate(void) {
    ymm_high_at = offset_of(AVX);
    zmm_high_at = offset_of(ZMM_HIGH);
    struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
}

long vpdpbusd_emulated(void) { return atomic_load_explicit(&n_emulated, memory_order_relaxed); }
