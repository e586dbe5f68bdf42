/* Quantized weights as float32, eight neighbours at a time: they share a scale in every format. The bits are the CPU's.
 * Fields of the blocks: lora_c/format/ggml_blocks.h. */
#ifndef LORA_CUDA_DECODE_CUH
#define LORA_CUDA_DECODE_CUH

#include <cuda_runtime.h>

#include "lora_c/format/ggml_blocks.h"
#include "lora_c/format/nf4_layout.h"

#define LORA_DECODE static __device__ __forceinline__ void

/* --- 4-bit types --- */

/* The eight codes of four bytes, read little-endian: the even element of a byte sits in its high nibble. */
LORA_DECODE lora_decode_nf4_word(uint32_t word, const float *lut, float absmax, float out[8]) {
    for (int e = 0; e < 8; e++) out[e] = lut[word >> (8 * (e / 2) + (e % 2 ? 0 : 4)) & 15] * absmax;
}

/* The bytes of elements i .. i + 7, i a multiple of eight, as far as there are elements: end is behind the last one. */
static __device__ __forceinline__ uint32_t lora_nf4_word(const uint8_t *codes, int64_t i, int64_t end) {
    if (i + 8 <= end) return lora_ggml_u32(codes + i / 2);
    uint32_t word = 0;
    for (int k = 0; i + 2 * k < end; k++) word |= (uint32_t)codes[i / 2 + k] << (8 * k);
    return word;
}

/* --- blocks of GGUF files --- */

/* VALUES weights in BYTES; eight() decodes weights i .. i + 7 of block b, i a multiple of 8. */
template <int TYPE> struct lora_ggml_block;

/* One weight per block: i counts on. */
template <> struct lora_ggml_block<LORA_GGML_F16> {
    enum { VALUES = 1, BYTES = 2 };
    LORA_DECODE eight(const uint8_t *b, int, float out[8]) {
        for (int e = 0; e < 8; e++) out[e] = lora_ggml_half(b + 2 * e);
    }
};
template <> struct lora_ggml_block<LORA_GGML_BF16> {
    enum { VALUES = 1, BYTES = 2 };
    LORA_DECODE eight(const uint8_t *b, int, float out[8]) {
        for (int e = 0; e < 8; e++) out[e] = lora_bf16_to_f32(lora_ggml_u16(b + 2 * e));
    }
};

template <> struct lora_ggml_block<LORA_GGML_Q8_0> {
    enum { VALUES = LORA_GGML_SMALL, BYTES = LORA_Q8_0_BYTES };
    LORA_DECODE eight(const uint8_t *b, int i, float out[8]) {
        float d = lora_ggml_half(b);
        for (int e = 0; e < 8; e++) out[e] = d * (float)(int8_t)b[LORA_Q8_0_CODES + i + e];
    }
};

/* The types of 32 weights in nibbles: x = d (q - MIDDLE), or d q + m where MIDDLE is 0. HIGH: where the fifth bits are, or 0. */
template <int NIBBLES, int HIGH, int MIDDLE, int SIZE> struct lora_ggml_nibbles {
    enum { VALUES = LORA_GGML_SMALL, BYTES = SIZE };
    LORA_DECODE eight(const uint8_t *b, int i, float out[8]) {
        float d = lora_ggml_half(b), m = MIDDLE ? 0.0f : lora_ggml_half(b + 2);
        int high = HIGH ? b[HIGH + i / 8] : 0;
        for (int e = 0; e < 8; e++) {
            int q = (b[NIBBLES + i % 16 + e] >> i / 16 * 4 & 15) | (high >> e & 1) << 4;
            out[e] = d * (float)(q - MIDDLE);
            if (!MIDDLE) out[e] = out[e] + m;
        }
    }
};
template <> struct lora_ggml_block<LORA_GGML_Q4_0> : lora_ggml_nibbles<LORA_Q4_0_NIBBLES, 0, 8, LORA_Q4_0_BYTES> {};
template <> struct lora_ggml_block<LORA_GGML_Q4_1> : lora_ggml_nibbles<LORA_Q4_1_NIBBLES, 0, 0, LORA_Q4_1_BYTES> {};
template <> struct lora_ggml_block<LORA_GGML_Q5_0> : lora_ggml_nibbles<LORA_Q5_0_NIBBLES, LORA_Q5_0_HIGH, 16, LORA_Q5_0_BYTES> {};
template <> struct lora_ggml_block<LORA_GGML_Q5_1> : lora_ggml_nibbles<LORA_Q5_1_NIBBLES, LORA_Q5_1_HIGH, 0, LORA_Q5_1_BYTES> {};

/* The types of 256 weights in eight groups of 32: x = (d s) q - (m t). Groups 2 j and 2 j + 1 are the nibbles of 32 bytes. */
template <int NIBBLES, int HIGH, int SIZE> struct lora_ggml_k {
    enum { VALUES = LORA_GGML_SUPER, BYTES = SIZE };
    LORA_DECODE eight(const uint8_t *b, int i, float out[8]) {
        float s, t;
        lora_k_scale_min(b + LORA_K_SCALES, i / 32, &s, &t);
        float scale = lora_ggml_half(b) * s, offset = lora_ggml_half(b + 2) * t;
        const uint8_t *low = b + NIBBLES + i / 64 * 32 + i % 32, *high = b + HIGH + i % 32;
        for (int e = 0; e < 8; e++) {
            int q = low[e] >> i / 32 % 2 * 4 & 15;
            if (HIGH) q |= (high[e] >> i / 32 & 1) << 4;
            float product = scale * (float)q;
            out[e] = product - offset;
        }
    }
};
template <> struct lora_ggml_block<LORA_GGML_Q4_K> : lora_ggml_k<LORA_Q4_K_NIBBLES, 0, LORA_Q4_K_BYTES> {};
template <> struct lora_ggml_block<LORA_GGML_Q5_K> : lora_ggml_k<LORA_Q5_K_NIBBLES, LORA_Q5_K_HIGH, LORA_Q5_K_BYTES> {};

template <> struct lora_ggml_block<LORA_GGML_Q6_K> {
    enum { VALUES = LORA_GGML_SUPER, BYTES = LORA_Q6_K_BYTES };
    LORA_DECODE eight(const uint8_t *b, int i, float out[8]) {
        int half = i / 128, group = i / 32 % 4;
        float scale = lora_ggml_half(b + LORA_Q6_K_D) * (float)(int8_t)b[LORA_Q6_K_SCALES + i / 16];
        const uint8_t *low = b + 64 * half + group % 2 * 32 + i % 32, *high = b + LORA_Q6_K_HIGH + 32 * half + i % 32;
        for (int e = 0; e < 8; e++) {
            int q = (low[e] >> group / 2 * 4 & 15) | (high[e] >> 2 * group & 3) << 4;
            out[e] = scale * (float)(q - 32);
        }
    }
};

/* Elements (row, k) .. (row, k + 7) of w; k a multiple of 8. Of the types with one weight per block cols need not be one: the caller
 * looks that all eight are there. */
template <int TYPE> LORA_DECODE lora_decode_ggml(const lora_ggml &w, int64_t row, int64_t k, float out[8]) {
    using block = lora_ggml_block<TYPE>;
    const int64_t VALUES = block::VALUES;
    block::eight(w.blocks + (row * w.cols + k) / VALUES * (int64_t)block::BYTES, (int)(k % VALUES), out);
}

/* X(type) of every type whose blocks have more than one weight. */
#define LORA_GGML_BLOCK_TYPES(X)                                                                                                           \
    X(LORA_GGML_Q4_0)                                                                                                                      \
    X(LORA_GGML_Q4_1)                                                                                                                      \
    X(LORA_GGML_Q5_0)                                                                                                                      \
    X(LORA_GGML_Q5_1)                                                                                                                      \
    X(LORA_GGML_Q8_0)                                                                                                                      \
    X(LORA_GGML_Q4_K)                                                                                                                      \
    X(LORA_GGML_Q5_K)                                                                                                                      \
    X(LORA_GGML_Q6_K)

#endif
