/* Decoding of the block formats, once for every rung. A rung defines before it includes this file:
 *
 *   half(p)           the float16 at p as float
 *   group             a group of 32 codes as bytes
 *   load_codes(p)     32 bytes as they lie
 *   low_high(p)       16 bytes: low nibbles, then high ones
 *   low(g), high(g)   nibbles of 32 bytes
 *   with_bits(g, w)   g | 16 where bit i of the 32-bit w is set for code i
 *   with_bit(g, h, s)        g | bit s of each byte of h, shifted to bit 4
 *   with_two_bits(g, h, s)   g | bits s and s + 1 of each byte of h, shifted to bits 4 and 5
 *   minus(g, n)              g - n as signed bytes
 *   put(g, d0, d1, dst)      dst[i] = d * (float)g[i], g signed bytes; d0 for the first 16, d1 for the others
 *   put_sum(g, d, m, dst)    dst[i] = d * (float)g[i] + m, product rounded before the sum
 *
 * and gets the functions and lora_ggml_fill_decoders(). */

static void decode_q8_0(const uint8_t *b, int64_t n_blocks, float *dst) {
    for (int64_t n = 0; n < n_blocks; n++, b += LORA_Q8_0_BYTES, dst += LORA_GGML_SMALL) {
        float d = half(b);
        put(load_codes(b + LORA_Q8_0_CODES), d, d, dst);
    }
}

static void decode_q4_0(const uint8_t *b, int64_t n_blocks, float *dst) {
    for (int64_t n = 0; n < n_blocks; n++, b += LORA_Q4_0_BYTES, dst += LORA_GGML_SMALL) {
        float d = half(b);
        put(minus(low_high(b + LORA_Q4_0_NIBBLES), 8), d, d, dst);
    }
}

static void decode_q4_1(const uint8_t *b, int64_t n_blocks, float *dst) {
    for (int64_t n = 0; n < n_blocks; n++, b += LORA_Q4_1_BYTES, dst += LORA_GGML_SMALL)
        put_sum(low_high(b + LORA_Q4_1_NIBBLES), half(b), half(b + 2), dst);
}

static void decode_q5_0(const uint8_t *b, int64_t n_blocks, float *dst) {
    for (int64_t n = 0; n < n_blocks; n++, b += LORA_Q5_0_BYTES, dst += LORA_GGML_SMALL) {
        float d = half(b);
        group q = with_bits(low_high(b + LORA_Q5_0_NIBBLES), lora_ggml_u32(b + LORA_Q5_0_HIGH));
        put(minus(q, 16), d, d, dst);
    }
}

static void decode_q5_1(const uint8_t *b, int64_t n_blocks, float *dst) {
    for (int64_t n = 0; n < n_blocks; n++, b += LORA_Q5_1_BYTES, dst += LORA_GGML_SMALL) {
        group q = with_bits(low_high(b + LORA_Q5_1_NIBBLES), lora_ggml_u32(b + LORA_Q5_1_HIGH));
        put_sum(q, half(b), half(b + 2), dst);
    }
}

static void decode_q4_k(const uint8_t *b, int64_t n_blocks, float *dst) {
    for (int64_t n = 0; n < n_blocks; n++, b += LORA_Q4_K_BYTES) {
        float d = half(b), m = half(b + 2);
        for (int g = 0; g < 8; g++, dst += LORA_GGML_SMALL) {
            float scale, minimum;
            lora_k_scale_min(b + LORA_K_SCALES, g, &scale, &minimum);
            group bytes = load_codes(b + LORA_Q4_K_NIBBLES + g / 2 * 32);
            put_sum(g % 2 ? high(bytes) : low(bytes), d * scale, -(m * minimum), dst);
        }
    }
}

static void decode_q5_k(const uint8_t *b, int64_t n_blocks, float *dst) {
    for (int64_t n = 0; n < n_blocks; n++, b += LORA_Q5_K_BYTES) {
        float d = half(b), m = half(b + 2);
        group fifth = load_codes(b + LORA_Q5_K_HIGH);
        for (int g = 0; g < 8; g++, dst += LORA_GGML_SMALL) {
            float scale, minimum;
            lora_k_scale_min(b + LORA_K_SCALES, g, &scale, &minimum);
            group bytes = load_codes(b + LORA_Q5_K_NIBBLES + g / 2 * 32);
            put_sum(with_bit(g % 2 ? high(bytes) : low(bytes), fifth, g), d * scale, -(m * minimum), dst);
        }
    }
}

static void decode_q6_k(const uint8_t *b, int64_t n_blocks, float *dst) {
    for (int64_t n = 0; n < n_blocks; n++, b += LORA_Q6_K_BYTES) {
        const int8_t *scales = (const int8_t *)b + LORA_Q6_K_SCALES;
        float d = half(b + LORA_Q6_K_D);
        for (int g = 0; g < 8; g++, dst += LORA_GGML_SMALL) {
            group bytes = load_codes(b + g / 4 * 64 + g % 2 * 32), top = load_codes(b + LORA_Q6_K_HIGH + g / 4 * 32);
            group q = with_two_bits(g % 4 < 2 ? low(bytes) : high(bytes), top, 2 * (g % 4));
            put(minus(q, 32), d * (float)scales[2 * g], d * (float)scales[2 * g + 1], dst);
        }
    }
}

static void lora_ggml_fill_decoders(lora_ggml_kernels *k) {
    k->decode[LORA_GGML_Q8_0] = decode_q8_0;
    k->decode[LORA_GGML_Q4_0] = decode_q4_0;
    k->decode[LORA_GGML_Q4_1] = decode_q4_1;
    k->decode[LORA_GGML_Q5_0] = decode_q5_0;
    k->decode[LORA_GGML_Q5_1] = decode_q5_1;
    k->decode[LORA_GGML_Q4_K] = decode_q4_k;
    k->decode[LORA_GGML_Q5_K] = decode_q5_k;
    k->decode[LORA_GGML_Q6_K] = decode_q6_k;
}
