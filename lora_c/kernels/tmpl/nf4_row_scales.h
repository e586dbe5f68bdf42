/* Scales of 4-bit rows, for products of a few tokens. The includer has GEMV_INLINE (gemv_tmpl.h). */
/* The scales of n blocks. Scalar look-ups run beside the vector work of the row before; a gather would compete with it. */
GEMV_INLINE void row_scales(const lora_nf4 *w, int64_t first, int64_t n, float *out) {
    if (w->absmax) {
        memcpy(out, w->absmax + first, (size_t)n * sizeof *out);
        return;
    }
    const float *map = w->nested_map;
    const uint8_t *codes = w->absmax_codes + first;
    for (int64_t b = 0; b < n; b++) {
        out[b] = map[codes[b]];
        __asm__ volatile("" : "+r"(codes)); /* no gather from an optimiser either */
    }
    for (int64_t b = 0; b < n;) {
        int64_t nested = (first + b) / w->nested_block_size, end = lora_min_i64(n, (nested + 1) * w->nested_block_size - first);
        float factor = w->nested_absmax[nested];
        for (; b < end; b++) out[b] = out[b] * factor + w->nested_offset; /* two roundings: no contraction in this project */
    }
}
