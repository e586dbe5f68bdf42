/* The frame of quantizing to a 4-bit type. The including file defines
 *   code_tables, load_tables(book) what finds codes
 *   top_magnitude(x, dtype, n)     the largest magnitude as float32 bits
 *   packed_codes(x, dtype, inverse, fits, tables)   GROUP elements as 16 bytes; fits: whether cells may be used (codebook.h)
 *   PUT_CODES(p, v)                those 16 bytes to p */

/* Below this absmax the scaled reciprocal would leave float32; such blocks take the comparisons. */
#define LORA_CELL_MIN_ABSMAX 1e-30f

LORA_INLINE int64_t quantize_of(const lora_codebook *book, const void *x, lora_dtype dtype, int64_t n_blocks, int64_t block_size,
                                uint8_t *codes, float *absmax) {
    const code_tables tables = load_tables(book);
    /* The scales of a batch come first: their latency (reduction, division) then overlaps instead of adding up. */
    int64_t batch = block_size < BATCH ? BATCH / block_size : 1;
    for (int64_t first = 0; first < n_blocks; first += batch, absmax += batch) {
        int64_t n = lora_min_i64(batch, n_blocks - first);
        float inverse[BATCH / GROUP];
        for (int64_t b = 0; b < n; b++) {
            uint32_t top = top_magnitude(at(x, dtype, b * block_size), dtype, block_size);
            if (top >= 0x7f800000) return first + b;
            absmax[b] = lora_f32_bits(top);
            inverse[b] = 1.0f / (absmax[b] > LORA_NF4_MIN_ABSMAX ? absmax[b] : LORA_NF4_MIN_ABSMAX);
        }
        for (int64_t b = 0; b < n; b++) {
            bool fits = book->has_cells && absmax[b] >= LORA_CELL_MIN_ABSMAX;
            for (int64_t i = 0; i < block_size; i += GROUP, x = at(x, dtype, GROUP), codes += GROUP / 2) {
                __builtin_prefetch((const char *)x + PREFETCH, 0, 3);
                if (dtype == LORA_F32) __builtin_prefetch((const char *)x + PREFETCH + 64, 0, 3);
                PUT_CODES(codes, packed_codes(x, dtype, inverse[b], fits, &tables));
            }
        }
    }
    return n_blocks;
}

static int64_t quantize(const lora_codebook *book, const void *src, lora_dtype dtype, int64_t n_blocks, int64_t block_size, uint8_t *codes,
                        float *absmax) {
    switch (dtype) {
    case LORA_F32: return quantize_of(book, src, LORA_F32, n_blocks, block_size, codes, absmax);
    case LORA_BF16: return quantize_of(book, src, LORA_BF16, n_blocks, block_size, codes, absmax);
    default: return quantize_of(book, src, LORA_F16, n_blocks, block_size, codes, absmax);
    }
}
