/* The product of a few tokens with 4-bit rows by instructions that multiply pairs of 16-bit numbers (AVX-512). The includer
 * defines
 *     GEMV_NF4                    name of the product, gemv_ in front: what tests/lint/lint_spills.py looks for
 *     levels                      what decoding needs, in registers
 *     load_levels(lut)
 *     table_of(levels)            the 16 values of the table as 16-bit numbers, twice
 *     unit_of(levels)             what a scale is multiplied with
 *     GROUP_VECTORS               of an arranged token: four of values, and what the includer wants behind them
 *     DOT_GROUP(w, x)             w[0] . x[0] + w[1] . x[1] + w[2] . x[2] + w[3] . x[3] in each of 16 lanes, in this order
 *     ADD_SCALED(acc, s, scale, x)   acc + scale * s as float32; x: the arranged group
 *
 * 64 bytes hold 128 codes. A 16-bit word holds four: elements 4w + 1, 4w, 4w + 3, 4w + 2 from its low end on, so three
 * shifts bring each to the end, and the permute reads five bits of a word: with the table there twice the fifth does not
 * matter. Lane i sums elements 8i .. 8i + 7, so a lane never crosses a block.
 * Bits: per token one accumulator of 16 lanes; in a group the four products in order, then the scale; the lanes of a row as
 * a tree (lora_reduce_16_rows). */
#include <immintrin.h>
#include <string.h>

#include "lora_c/base/util.h"
#include "lora_c/kernels/gemv_kernels.h"
#include "lora_c/kernels/tmpl/reduce_avx512.h"

#define UNROLL LORA_UNROLL_BY(8)

enum {
    GROUP = 128,
    GROUP_BYTES = GROUP_VECTORS * 64,
    CHUNK = 1024, /* elements of several tokens that stay in the L1 cache while the rows pass by */
    ROWS_AT_ONCE = 16,
    PREFETCH_BYTES = 2048, /* ahead of a single stream of codes */
};

LORA_INLINE __mmask16 lora_first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* 128 elements of a token, 32 in each of in, in the order of the codes: word w of out[s] is element 4w + {1, 0, 3, 2}[s]. */
LORA_INLINE void lora_arrange_group(const __m512i *in, __m512i *out) {
    static const int first_of[4] = {1, 0, 3, 2};
    __m512i word = _mm512_setr_epi32(0x00040000, 0x000c0008, 0x00140010, 0x001c0018, 0x00240020, 0x002c0028, 0x00340030, 0x003c0038,
                                     0x00040000, 0x000c0008, 0x00140010, 0x001c0018, 0x00240020, 0x002c0028, 0x00340030, 0x003c0038);
    for (int s = 0; s < 4; s++) {
        __m512i index = _mm512_add_epi16(word, _mm512_set1_epi16((short)first_of[s])); /* of 64 elements */
        __m512i low = _mm512_permutex2var_epi16(in[0], index, in[1]), high = _mm512_permutex2var_epi16(in[2], index, in[3]);
        _mm512_store_si512(out + s, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
    }
}

/* The scales of the blocks first <= block < end, which lie in one nested block: raw * factor + offset. */
typedef struct scale_source {
    const lora_nf4 *w;
    float unit, offset, factor;
    int64_t first, end;
} scale_source;

LORA_INLINE float raw_scale(const lora_nf4 *w, int64_t block, const bool nested) {
    return nested ? w->nested_map[w->absmax_codes[block]] : w->absmax[block];
}

LORA_INLINE float factor_of(const scale_source *s, int64_t block) { return s->w->nested_absmax[block / s->w->nested_block_size] * s->unit; }

/* Moves the source to the nested block of block, if it is not there. */
LORA_INLINE void move_to(scale_source *s, int64_t block, const bool nested) {
    if (!nested || (s->first <= block && block < s->end)) return;
    s->first = block / s->w->nested_block_size * s->w->nested_block_size;
    s->end = s->first + s->w->nested_block_size;
    s->factor = factor_of(s, block);
}

LORA_INLINE scale_source source_of(const lora_nf4 *w, float unit) {
    if (w->absmax) return (scale_source){.w = w, .unit = unit, .factor = unit};
    return (scale_source){.w = w, .unit = unit, .offset = w->nested_offset * unit};
}

/* The raw scales of the n <= blocks blocks from block on, each in the lanes of its elements; a group has 1, 2 or 4 blocks.
 * Look-ups one by one run beside the vector work; a gather would compete with it. */
LORA_INLINE __m512 raw_scales(const lora_nf4 *w, int64_t block, const int blocks, int64_t n, const bool nested) {
    __m512 v = _mm512_set1_ps(raw_scale(w, block, nested));
    if (blocks == 2 && n > 1) v = _mm512_mask_broadcastss_ps(v, 0xff00, _mm_set_ss(raw_scale(w, block + 1, nested)));
    if (blocks == 4 && n > 1) v = _mm512_mask_broadcastss_ps(v, 0x00f0, _mm_set_ss(raw_scale(w, block + 1, nested)));
    if (blocks == 4 && n > 2) v = _mm512_mask_broadcastss_ps(v, 0x0f00, _mm_set_ss(raw_scale(w, block + 2, nested)));
    if (blocks == 4 && n > 3) v = _mm512_mask_broadcastss_ps(v, 0xf000, _mm_set_ss(raw_scale(w, block + 3, nested)));
    return v;
}

/* Of a group that lies in two nested blocks: factors block by block. */
static __m512 factors_of(const scale_source *s, int64_t block, int blocks, int64_t n) {
    float lanes[16];
    for (int64_t i = 0; i < 16; i++) lanes[i] = factor_of(s, block + lora_min_i64(i * blocks / 16, n - 1));
    return _mm512_loadu_ps(lanes);
}

LORA_INLINE void add_group(__m512i table, __m512i codes, __m512 scale, const int m, const char *x, int64_t stride, __m512 *acc) {
    __m512i w[4] = {_mm512_permutexvar_epi16(codes, table), _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4), table),
                    _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 8), table),
                    _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 12), table)};
    UNROLL for (int i = 0; i < m; i++) {
        const __m512i *from = (const __m512i *)(const void *)(x + i * stride);
        acc[i] = ADD_SCALED(acc[i], DOT_GROUP(w, from), scale, from);
        __asm__("" : "+v"(acc[i])); /* in a register */
    }
}

/* Elements k0 .. k1 of a row that begins with row_block; codes and x are those of k0. Runs of groups in one nested block do
 * not look at it. */
LORA_INLINE void run(scale_source *s, int64_t row_block, int log_block, __m512i table, const uint8_t *codes, int64_t k0, int64_t k1,
                     int64_t ahead, const int blocks, const bool nested, const int m, const char *x, int64_t stride, __m512 *acc) {
    const lora_nf4 *w = s->w;
    const __m512 offset = _mm512_set1_ps(s->offset);
    int64_t block = row_block + (k0 >> log_block);
    for (int64_t k = k0; k < k1;) {
        move_to(s, block, nested);
        int64_t same = k1; /* up to there the factor stays */
        if (nested && s->end - row_block < k1 >> log_block) same = (s->end - row_block) << log_block;
        __m512 factor = _mm512_set1_ps(s->factor);
        for (; k + GROUP <= same; k += GROUP, codes += GROUP / 2, x += GROUP_BYTES) {
            _mm_prefetch((const char *)codes + ahead, _MM_HINT_T0);
            __m512 raw = raw_scales(w, block, blocks, blocks, nested);
            add_group(table, _mm512_loadu_si512(codes), _mm512_fmadd_ps(raw, factor, offset), m, x, stride, acc);
            block = blocks > 1 ? block + blocks : row_block + ((k + GROUP) >> log_block);
        }
        if (k == same) continue;
        int64_t here = lora_min_i64(GROUP, k1 - k), n = lora_max_i64(1, here >> log_block);
        if (same < k1) factor = factors_of(s, block, blocks, n);
        __m512 scale = _mm512_fmadd_ps(raw_scales(w, block, blocks, n, nested), factor, offset);
        add_group(table, _mm512_maskz_loadu_epi32(lora_first_lanes(here / 8), codes), scale, m, x, stride, acc);
        block += blocks;
        k += GROUP, codes += GROUP / 2, x += GROUP_BYTES;
    }
}

/* One token: a single stream of codes, each row from begin to end. Several: the rows pass by a chunk of the tokens. */
LORA_INLINE void rows_of(const lora_nf4 *w, int64_t row, int64_t rows, const int blocks, const bool nested, const int m, const char *x,
                         int64_t stride, float *sums) {
    const levels l = load_levels(w->lut);
    scale_source source = source_of(w, unit_of(l));
    int log_block = __builtin_ctzll((uint64_t)w->block_size);
    int64_t chunk = m == 1 ? w->cols : CHUNK, code_bytes = w->cols / 2, ahead = m == 1 ? PREFETCH_BYTES : ROWS_AT_ONCE * code_bytes;
    for (int64_t r0 = 0; r0 < rows; r0 += ROWS_AT_ONCE) {
        int64_t here = lora_min_i64(ROWS_AT_ONCE, rows - r0);
        __m512 acc[LORA_GEMV_TOKENS][ROWS_AT_ONCE];
        for (int64_t k = 0; k < w->cols; k += chunk)
            for (int64_t r = 0; r < here; r++) {
                __m512 part[LORA_GEMV_TOKENS];
                int64_t at = row + r0 + r;
                UNROLL for (int i = 0; i < m; i++) part[i] = k ? acc[i][r] : _mm512_setzero_ps();
                run(&source, at * (w->cols >> log_block), log_block, table_of(l), w->codes + at * code_bytes + k / 2, k,
                    lora_min_i64(k + chunk, w->cols), ahead, blocks, nested, m, x + k / GROUP * GROUP_BYTES, stride, part);
                UNROLL for (int i = 0; i < m; i++) acc[i][r] = part[i];
            }
        for (int i = 0; i < m; i++) {
            for (int64_t r = here; r < ROWS_AT_ONCE; r++) acc[i][r] = _mm512_setzero_ps();
            __m512 of_rows = lora_reduce_16_rows(acc[i]);
            for (int64_t r = 0; r < here && m > 1; r++) sums[(r0 + r) * m + i] = ((const float *)&of_rows)[r];
            if (m == 1) _mm512_mask_storeu_ps(sums + r0, lora_first_lanes(here), of_rows);
        }
    }
}

/* Decoding one token has what the scales look like as constants, several tokens have their number. */
LORA_INLINE void one_token(const lora_nf4 *w, int64_t row, int64_t rows, int blocks, bool nested, const char *x, float *sums) {
    switch (2 * blocks + nested) {
    case 2: rows_of(w, row, rows, 1, false, 1, x, 0, sums); break;
    case 3: rows_of(w, row, rows, 1, true, 1, x, 0, sums); break;
    case 4: rows_of(w, row, rows, 2, false, 1, x, 0, sums); break;
    case 5: rows_of(w, row, rows, 2, true, 1, x, 0, sums); break;
    default: rows_of(w, row, rows, 4, nested, 1, x, 0, sums); break;
    }
}

static void GEMV_NF4(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride, float *scales, float *sums) {
    int blocks = w->block_size < GROUP ? (int)(GROUP / w->block_size) : 1;
    bool nested = !w->absmax;
    (void)scales; /* decoded where they are used */
    switch (m) {
    case 1: one_token(w, row, rows, blocks, nested, x, sums); break;
    case 2: rows_of(w, row, rows, blocks, nested, 2, x, stride, sums); break;
    case 3: rows_of(w, row, rows, blocks, nested, 3, x, stride, sums); break;
    case 4: rows_of(w, row, rows, blocks, nested, 4, x, stride, sums); break;
    case 5: rows_of(w, row, rows, blocks, nested, 5, x, stride, sums); break;
    case 6: rows_of(w, row, rows, blocks, nested, 6, x, stride, sums); break;
    case 7: rows_of(w, row, rows, blocks, nested, 7, x, stride, sums); break;
    default: rows_of(w, row, rows, blocks, nested, 8, x, stride, sums); break;
    }
}
