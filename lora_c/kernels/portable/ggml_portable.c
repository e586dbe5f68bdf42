/* Block formats in plain C: loops over 32 bytes that a compiler vectorises on any machine. */
#include <math.h>

#include "lora_c/format/ggml_blocks.h"
#include "lora_c/kernels/ggml_kernels.h"

enum { CODES = 32 };

typedef struct group {
    uint8_t q[CODES];
} group;

LORA_INLINE float half(const uint8_t *p) { return lora_ggml_half(p); }

#define EACH for (int i = 0; i < CODES; i++)

LORA_INLINE group load_codes(const uint8_t *p) {
    group g;
    memcpy(g.q, p, CODES);
    return g;
}

LORA_INLINE group low_high(const uint8_t *p) {
    group g;
    for (int i = 0; i < CODES / 2; i++) {
        g.q[i] = p[i] & 15;
        g.q[i + CODES / 2] = p[i] >> 4;
    }
    return g;
}

LORA_INLINE group low(group g) {
    EACH g.q[i] &= 15;
    return g;
}

LORA_INLINE group high(group g) {
    EACH g.q[i] >>= 4;
    return g;
}

LORA_INLINE group with_bits(group g, uint32_t bits) {
    EACH g.q[i] |= (uint8_t)((bits >> i & 1) << 4);
    return g;
}

LORA_INLINE group with_bit(group g, group h, int shift) {
    EACH g.q[i] |= (uint8_t)((h.q[i] >> shift & 1) << 4);
    return g;
}

LORA_INLINE group with_two_bits(group g, group h, int shift) {
    EACH g.q[i] |= (uint8_t)((h.q[i] >> shift & 3) << 4);
    return g;
}

LORA_INLINE group minus(group g, int n) {
    EACH g.q[i] = (uint8_t)(g.q[i] - n);
    return g;
}

LORA_INLINE void put(group g, float d0, float d1, float *dst) {
    for (int i = 0; i < CODES / 2; i++) dst[i] = d0 * (float)(int8_t)g.q[i];
    for (int i = CODES / 2; i < CODES; i++) dst[i] = d1 * (float)(int8_t)g.q[i];
}

LORA_INLINE void put_sum(group g, float d, float m, float *dst) { EACH dst[i] = d * (float)(int8_t)g.q[i] + m; }

#include "lora_c/kernels/tmpl/ggml_tmpl.h"

/* Rounded half away from zero: for a = |y| below 2^22, floor(2 a) + 1 is exact and its half, rounded down, is the result. */
LORA_INLINE int8_t rounded(float y) {
    int magnitude = ((int)(2 * fabsf(y)) + 1) / 2;
    return (int8_t)(y < 0 ? -magnitude : magnitude);
}

static int64_t quantize_q8_0(const float *x, int64_t n_blocks, uint8_t *blocks) {
    for (int64_t b = 0; b < n_blocks; b++, x += CODES, blocks += LORA_Q8_0_BYTES) {
        uint32_t top = 0; /* bit patterns of magnitudes order like the magnitudes, with NaN above infinity */
        EACH {
            uint32_t magnitude = lora_bits_f32(x[i]) & 0x7fffffffu;
            top = magnitude > top ? magnitude : top;
        }
        if (top >= 0x7f800000u) return b;
        float d = lora_f32_bits(top) / 127, inverse = 1 / d;
        uint16_t stored = lora_f32_to_f16(d);
        if (stored == 0x7c00) return b;
        memcpy(blocks, &stored, 2);
        if (!isfinite(inverse)) inverse = 0; /* a d that float16 stores as 0 */
        EACH blocks[LORA_Q8_0_CODES + i] = (uint8_t)rounded(x[i] * inverse);
    }
    return n_blocks;
}

void lora_ggml_fill_portable(lora_ggml_kernels *k) {
    lora_ggml_fill_decoders(k);
    k->quantize_q8_0 = quantize_q8_0;
}
