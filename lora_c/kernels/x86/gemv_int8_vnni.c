/* int8 products of a few tokens with 4-bit rows (AVX512_VNNI): the bits of gemm_int8_vnni.c. 64 bytes hold 128 codes, two blocks of one
 * row; a byte table turns their high nibbles, then their low ones into integers. Lanes of 16 rows are added as a tree until a vector has
 * one block of all of them: from there on a row is a lane. Sums of a block are exact, so their order does not matter. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lora_c/base/half.h"
#include "lora_c/base/util.h"
#include "lora_c/kernels/gemv_kernels.h"
#include "lora_c/kernels/tmpl/gemm_int8_tmpl.h"

LORA_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

#include "lora_c/kernels/tmpl/gemm_nf4_avx512.h"

#define UNROLL LORA_UNROLL_BY(8)

enum {
    BLOCK = LORA_GEMM_SCALE_BLOCK,
    GROUP = 2 * BLOCK,
    ROWS = 16,
    PREFETCH_BYTES = 512, /* ahead in each of 16 rows */
    /* Of a product: beyond it packing costs less. bench_few, NF4 of 512 x 2048 on one core of an AMD EPYC (Zen 4): 1 to 4 tokens take 19,
     * 26, 34 and 44 us here, 44, 51, 57 and 58 packed (precision fast: 25, 41, 51, 62); 6 tokens 72 in two calls and 69 packed. */
    MOST_TOKENS = 4,
};

/* Two blocks of a token. */
typedef struct group {
    int8_t even[BLOCK], odd[BLOCK]; /* columns 2 i and 2 i + 1 of the group */
    float scales[2];
    int32_t corrections[2]; /* -128 times the sums of the blocks */
    int32_t fill[12];
} group;

_Static_assert(sizeof(group) == 192, "vectors of a token lie on lines");
_Static_assert((5 + MOST_TOKENS) * ROWS <= LORA_GEMV_INT8_SCRATCH, "scales and sums");

/* As an instruction: see gemm_int8_vnni.c. */
LORA_INLINE __m512i multiply_add(__m512i unsigned_w, const int8_t *x, __m512i c) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(unsigned_w), "m"(*(const __m512i *)(const void *)x));
    return c;
}

/* --- tokens --- */

/* One block, what is behind n is zero. Per eight columns the even ones, then the odd ones. */
LORA_INLINE __m512i quantize_block(const float *x, int64_t n, float *scale, int32_t *correction) {
    __m512 v[4], top = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_maskz_loadu_ps(lora_first_lanes(n - 16 * i), x + 16 * i);
        top = _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(top), _mm512_castps_si512(_mm512_abs_ps(v[i]))));
    }
    uint32_t bits = _mm512_reduce_max_epu32(_mm512_castps_si512(top)); /* as integers NaN is above Inf */
    lora_int8_scale q = lora_int8_scale_for(lora_f32_bits(bits));
    __m512i bytes = _mm512_setzero_si512();
    for (int i = 3; i >= 0; i--) {
        __m128i four = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[i], _mm512_set1_ps(q.inverse))));
        bytes = i == 3   ? _mm512_inserti32x4(bytes, four, 3)
                : i == 2 ? _mm512_inserti32x4(bytes, four, 2)
                : i == 1 ? _mm512_inserti32x4(bytes, four, 1)
                         : _mm512_inserti32x4(bytes, four, 0);
    }
    __m512i sum;
    __asm__("vpdpbusd %2, %1, %0" : "=v"(sum) : "v"(_mm512_set1_epi8(1)), "v"(bytes), "0"(_mm512_setzero_si512()));
    *scale = q.scale;
    *correction = -LORA_INT8_OFFSET * _mm512_reduce_add_epi32(sum);
    return _mm512_shuffle_epi8(bytes, _mm512_set4_epi32(0x0f0d0b09, 0x0e0c0a08, 0x07050301, 0x06040200));
}

static void arrange(int64_t k, const float *x, void *arranged) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for (group *out = arranged; k > 0; k -= GROUP, x += GROUP, out++) {
        __m512i first = quantize_block(x, k, out->scales, out->corrections);
        __m512i second = quantize_block(x + BLOCK, k - BLOCK, out->scales + 1, out->corrections + 1);
        _mm512_store_si512(out->even, _mm512_permutex2var_epi32(first, even, second));
        _mm512_store_si512(out->odd, _mm512_permutex2var_epi32(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second));
    }
}

/* --- scales --- */

/* Of 16 rows, per_row runs of 64 columns apart, or of one row 16 times. A run of the matrix is one block, or a part of one. */
typedef struct scale_source {
    const lora_nf4 *w;
    int64_t first, per_row, step; /* the run where the first row begins, runs of a row, runs from a row to the next: per_row or 0 */
    int shift, nested_shift;      /* from runs to blocks, to blocks of scales */
    float unit;
    int64_t until;  /* run of the rows up to which factors hold */
    float *factors; /* (ROWS): of nested scales */
} scale_source;

/* Moves to the run of the rows. */
static void move_to(scale_source *s, int64_t run) {
    s->until = s->per_row;
    for (int64_t i = 0; i < ROWS; i++) {
        int64_t at = s->first + i * s->step + run, nested = at >> s->nested_shift;
        s->factors[i] = s->w->nested_absmax[nested];
        s->until = lora_min_i64(s->until, run + (((nested + 1) << s->nested_shift) - at));
    }
}

/* As lora_nf4_absmax rounds them, times unit. */
LORA_INLINE __m512 scales_of(scale_source *s, int64_t run, const float *raw) {
    __m512 v = _mm512_load_ps(raw);
    if (!s->w->absmax) {
        if (run >= s->until) move_to(s, run);
        v = _mm512_add_ps(_mm512_mul_ps(v, _mm512_load_ps(s->factors)), _mm512_set1_ps(s->w->nested_offset));
    }
    return _mm512_mul_ps(v, _mm512_set1_ps(s->unit));
}

/* What is looked up in memory of a scale. bytes: of double quantization whose blocks are runs. */
LORA_INLINE float raw_scale(const scale_source *s, int64_t run_of_matrix, const bool bytes) {
    if (bytes) return s->w->nested_map[s->w->absmax_codes[run_of_matrix]];
    const int64_t block = run_of_matrix >> s->shift;
    return s->w->absmax ? s->w->absmax[block] : s->w->nested_map[s->w->absmax_codes[block]];
}

/* --- products --- */

/* 4 rows: each 128-bit lane has what that lane of v[j] sums up to in word j. */
LORA_INLINE __m512i add_lanes_of_4(const __m512i v[4]) {
    __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* From two of these: of 8 rows, sums of the first block in lanes 0 and 2, of the second in 1 and 3. */
LORA_INLINE __m512i add_lanes_of_8(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

/* Two runs of 16 rows. */
typedef float raw_scales[2][ROWS];

/* Two runs, from run on, of the rows of source with m tokens; beside that the scales of the next two are looked up, so that they have
 * left for memory when they are read as a vector. */
LORA_INLINE void multiply_group(__m512i table, const uint8_t *codes, scale_source *source, int64_t run, const raw_scales *raw,
                                raw_scales *next, const bool bytes, const int m, const char *x, int64_t stride, float *acc) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const int64_t row_bytes = source->per_row * (BLOCK / 2), last = source->per_row - 1;
    /* as far in the rows of this group, or of the next one */
    const int64_t ahead = run * (BLOCK / 2) + PREFETCH_BYTES < row_bytes ? PREFETCH_BYTES : PREFETCH_BYTES + (ROWS - 1) * row_bytes;
    const __mmask16 mask = run == last ? 0x00ff : 0xffff;
    const int64_t step = source->step, and_next = run + 3 <= last;
    int64_t of_next = source->first + lora_min_i64(run + 2, last);
    __m512i fours[MOST_TOKENS], eights[MOST_TOKENS][2];
    UNROLL for (int f = 0; f < 4; f++) {
        __m512i even[4], odd[4];
        UNROLL for (int j = 0; j < 4; j++) {
            const int i = 4 * f + j;
            _mm_prefetch((const char *)codes + ahead, _MM_HINT_T1);
            __m512i v = _mm512_maskz_loadu_epi32(mask, codes);
            even[j] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble));
            odd[j] = _mm512_shuffle_epi8(table, _mm512_and_si512(v, nibble));
            (*next)[0][i] = raw_scale(source, of_next, bytes);
            (*next)[1][i] = raw_scale(source, of_next + and_next, bytes);
            codes += step * (BLOCK / 2);
            of_next += step;
        }
        UNROLL for (int i = 0; i < m; i++) {
            const group *token = (const group *)(const void *)(x + i * stride);
            __m512i c[4];
            UNROLL for (int j = 0; j < 4; j++) c[j] =
                multiply_add(odd[j], token->odd, multiply_add(even[j], token->even, _mm512_setzero_si512()));
            __m512i four = add_lanes_of_4(c);
            if (m > 1) __asm__("" : "+v"(four), "+v"(even[0]), "+v"(odd[0])); /* one token behind the other, or registers would not do */
            if (f % 2) eights[i][f / 2] = add_lanes_of_8(fours[i], four);
            fours[i] = four;
        }
    }
    const __mmask16 second = run == last ? 0 : 0xffff; /* a run that is missing: not Inf times 0 */
    const __m512 scales[2] = {scales_of(source, run, (*raw)[0]),
                              _mm512_maskz_mov_ps(second, scales_of(source, lora_min_i64(run + 1, last), (*raw)[1]))};
    UNROLL for (int i = 0; i < m; i++) {
        const group *token = (const group *)(const void *)(x + i * stride);
        const __m512i sums[2] = {_mm512_shuffle_i32x4(eights[i][0], eights[i][1], 0x88),
                                 _mm512_shuffle_i32x4(eights[i][0], eights[i][1], 0xdd)};
        __m512 sum = _mm512_load_ps(acc + i * ROWS);
        UNROLL for (int b = 0; b < 2; b++) {
            __m512i c = _mm512_add_epi32(sums[b], _mm512_set1_epi32(token->corrections[b]));
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c), _mm512_mul_ps(_mm512_set1_ps(token->scales[b]), scales[b]), sum);
        }
        _mm512_store_ps(acc + i * ROWS, sum);
    }
}

LORA_INLINE void rows_of(const lora_nf4 *w, int64_t row, int64_t rows, const bool bytes, const int m, const char *x, int64_t stride,
                         float *scratch, float *sums) {
    const __m512 lut = _mm512_loadu_ps(w->lut);
    const float top = _mm512_reduce_max_ps(_mm512_abs_ps(lut)), levels = lora_int8_table_levels(w->lut);
    const __m128i entries = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(lut, _mm512_set1_ps(levels / top))));
    const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(entries, _mm_set1_epi8(-LORA_INT8_OFFSET)));
    scale_source source = {.w = w, .per_row = w->cols / BLOCK, .unit = top / levels};
    source.shift = __builtin_ctzll((uint64_t)w->block_size) - __builtin_ctzll(BLOCK);
    if (!w->absmax) source.nested_shift = source.shift + __builtin_ctzll((uint64_t)w->nested_block_size);
    raw_scales *raw = (raw_scales *)scratch; /* [2], of this step and the next; not on the stack, where spills would hide among them */
    source.factors = scratch + 4 * ROWS;
    float *acc = scratch + 5 * ROWS; /* (m, ROWS): a register less for each token */
    for (int64_t r0 = 0, here; r0 < rows; r0 += here) {
        /* at the end the last 16, some of them again; a matrix that has fewer, row by row */
        const bool few = row + rows < ROWS;
        here = few ? 1 : lora_min_i64(ROWS, rows - r0);
        const int64_t again = few ? 0 : ROWS - here, begin = row + r0 - again;
        const uint8_t *codes = w->codes + begin * w->cols / 2;
        const char *tokens = x;
        UNROLL for (int i = 0; i < m; i++) _mm512_store_ps(acc + i * ROWS, _mm512_setzero_ps());
        source.first = begin * source.per_row;
        source.step = few ? 0 : source.per_row;
        source.until = 0;
        for (int64_t i = 0; i < ROWS; i++)
            for (int64_t b = 0; b < 2; b++)
                raw[0][b][i] = raw_scale(&source, source.first + i * source.step + lora_min_i64(b, source.per_row - 1), bytes);
        for (int64_t run = 0; run < source.per_row; run += 2, codes += GROUP / 2, tokens += sizeof(group))
            multiply_group(table, codes, &source, run, &raw[run / 2 % 2], &raw[(run / 2 + 1) % 2], bytes, m, tokens, stride, acc);
        for (int64_t r = 0; r < here; r++)
            for (int i = 0; i < m; i++) sums[(r0 + r) * m + i] = acc[i * ROWS + again + r];
    }
}

LORA_INLINE void tokens_of(const lora_nf4 *w, int64_t row, int64_t rows, const int m, const void *x, int64_t stride, float *scratch,
                           float *sums) {
    if (!w->absmax && w->block_size == BLOCK)
        rows_of(w, row, rows, true, m, x, stride, scratch, sums);
    else
        rows_of(w, row, rows, false, m, x, stride, scratch, sums);
}

static void gemv_nf4_int8(const lora_nf4 *w, int64_t row, int64_t rows, int64_t m, const void *x, int64_t stride, float *scales,
                          float *sums) {
    switch (m) {
    case 1: tokens_of(w, row, rows, 1, x, stride, scales, sums); break;
    case 2: tokens_of(w, row, rows, 2, x, stride, scales, sums); break;
    case 3: tokens_of(w, row, rows, 3, x, stride, scales, sums); break;
    default: tokens_of(w, row, rows, 4, x, stride, scales, sums); break;
    }
}

void lora_gemv_fill_int8_vnni(lora_gemv_path *p) {
    p->tokens = p->most_tokens = MOST_TOKENS;
    p->group = GROUP;
    p->group_bytes = sizeof(group);
    p->arrange = arrange;
    p->nf4 = gemv_nf4_int8;
}

LORA_TARGET_END
#endif
