/* The micro-kernel for any vector width. The includer defines
 *     SUFFIX, TARGET      name ending, target attribute string
 *     VEC, VL             vector type and its floats
 *     LOAD, STORE, ZERO, BROADCAST, FMA
 *     MR                  rows of the register tile; the tile is two vectors wide
 * MR * 2 accumulators, two B vectors and one broadcast must fit the register file: 6 rows of 16 with 16 registers,
 * 14 rows of 32 with 32. Unrolling is complete so that the compiler keeps the accumulators in registers. */
#define LORA_CAT2(a, b) a##b
#define LORA_CAT(a, b) LORA_CAT2(a, b)
#define NAME(x) LORA_CAT(x, SUFFIX)
#define NR (2 * VL)
#define UNROLL _Pragma("GCC unroll 32")

static LORA_TARGET(TARGET) void NAME(micro)(int64_t kc, const float *a, const float *b, float *tile, bool accumulate) {
    VEC c[MR][2];
    UNROLL for (int i = 0; i < MR; i++) {
        c[i][0] = ZERO();
        c[i][1] = ZERO();
    }
    for (int64_t k = 0; k < kc; k++) {
        __builtin_prefetch(b + 8 * NR, 0, 3);
        VEC b0 = LOAD(b), b1 = LOAD(b + VL);
        UNROLL for (int i = 0; i < MR; i++) {
            VEC x = BROADCAST(a + i);
            c[i][0] = FMA(x, b0, c[i][0]);
            c[i][1] = FMA(x, b1, c[i][1]);
        }
        a += MR;
        b += NR;
    }
    if (accumulate) {
        UNROLL for (int i = 0; i < MR; i++) {
            STORE(tile + i * NR, ADD(c[i][0], LOAD(tile + i * NR)));
            STORE(tile + i * NR + VL, ADD(c[i][1], LOAD(tile + i * NR + VL)));
        }
    } else {
        UNROLL for (int i = 0; i < MR; i++) {
            STORE(tile + i * NR, c[i][0]);
            STORE(tile + i * NR + VL, c[i][1]);
        }
    }
}
