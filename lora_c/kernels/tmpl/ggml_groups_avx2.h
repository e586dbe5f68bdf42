/* Groups of 32 codes in a 256-bit register, for tmpl/ggml_tmpl.h; the rung brings put and put_sum. Include it where the
 * target has AVX2 and F16C. */
typedef __m256i group;

LORA_INLINE float half(const uint8_t *p) { return _cvtsh_ss(lora_ggml_u16(p)); }

LORA_INLINE group load_codes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

LORA_INLINE group low(group g) { return _mm256_and_si256(g, _mm256_set1_epi8(15)); }

LORA_INLINE group high(group g) { return low(_mm256_srli_epi16(g, 4)); }

LORA_INLINE group low_high(const uint8_t *p) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return low(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes));
}

/* Byte i gets the byte of bits that holds bit i; then the one bit is compared. */
LORA_INLINE group with_bits(group g, uint32_t bits) {
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i one = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    __m256i all = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), spread);
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(all, one), one);
    return _mm256_or_si256(g, _mm256_and_si256(set, _mm256_set1_epi8(16)));
}

/* Shifts of 16-bit lanes carry bits between bytes; the mask afterwards removes them. */
LORA_INLINE group with_bit(group g, group h, int shift) {
    __m256i moved = _mm256_slli_epi16(_mm256_srl_epi16(h, _mm_cvtsi32_si128(shift)), 4);
    return _mm256_or_si256(g, _mm256_and_si256(moved, _mm256_set1_epi8(16)));
}

LORA_INLINE group with_two_bits(group g, group h, int shift) {
    __m256i moved = _mm256_slli_epi16(_mm256_srl_epi16(h, _mm_cvtsi32_si128(shift)), 4);
    return _mm256_or_si256(g, _mm256_and_si256(moved, _mm256_set1_epi8(48)));
}

LORA_INLINE group minus(group g, int n) { return _mm256_sub_epi8(g, _mm256_set1_epi8((char)n)); }
