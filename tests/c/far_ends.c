#include "tests/c/far_ends.h"

#include <stdlib.h>
#include <string.h>

#include "lora_c/base/half.h"
#include "tests/c/devices.h"
#include "tests/c/shim_symbols.h"

enum { END_BLOCKS = 64 }; /* more than the ends of any case take */
#define SPARSE ((size_t)4 << 30)

static const size_t ITEM[] = {sizeof(float), 1, sizeof(uint16_t)};

static void *content(end_kind kind, int64_t n) {
    unsigned char *to = malloc((size_t)n * ITEM[kind] + 1);
    for (int64_t i = 0; i < n; i++) {
        float x = uniform(0, 1);
        uint16_t half = lora_f32_to_bf16(x);
        uint8_t byte = (uint8_t)(x * 256);
        memcpy(to + (size_t)i * ITEM[kind],
               kind == END_FLOATS   ? (const void *)&x
               : kind == END_HALVES ? (const void *)&half
                                    : &byte,
               ITEM[kind]);
    }
    return to;
}

static unsigned char *tail_of(const end_array *a) { return (unsigned char *)a->data + (size_t)(a->n - a->tail) * ITEM[a->kind]; }

end_array *end_array_of(end_run *r, end_kind kind, int64_t n, int64_t head, int64_t tail, bool far) {
    end_array *a = &r->arrays[r->n_arrays++];
    size_t bytes = (size_t)n * ITEM[kind];
    *a = (end_array){.kind = kind, .n = n, .head = head, .tail = tail};
    a->data = lora_ctx_alloc_uncleared(r->ctx, LORA_MEM_SCRATCH, far && bytes < SPARSE ? SPARSE : bytes);
    CHECK(r->n_arrays <= END_ARRAYS && a->data, "no memory for %zu bytes", bytes);
    void *first = content(kind, head), *last = content(kind, tail);
    if (a->data) {
        OK(lora_upload(r->ctx, a->data, first, (size_t)head * ITEM[kind], ERR));
        OK(lora_upload(r->ctx, tail_of(a), last, (size_t)tail * ITEM[kind], ERR));
        OK(lora_sync(r->ctx, ERR));
    }
    free(first);
    free(last);
    return a;
}

void end_keep(end_run *r, const end_array *a) {
    size_t head = (size_t)a->head * ITEM[a->kind], tail = (size_t)a->tail * ITEM[a->kind];
    CHECK(r->bytes + head + tail <= END_RESULTS, "more results than there is room for");
    OK(lora_download(r->ctx, r->results + r->bytes, a->data, head, ERR));
    OK(lora_download(r->ctx, r->results + r->bytes + head, tail_of(a), tail, ERR));
    OK(lora_sync(r->ctx, ERR));
    r->bytes += head + tail;
}

static end_run run(const end_case *c, bool far, int64_t (*run_ends)(int64_t)) {
    end_run r = {.ctx = device_ctx(LORA_ISA_AUTO, 1), .results = calloc(END_RESULTS, 1)};
    OK(lora_ctx_set_precision(r.ctx, c->precision, ERR));
    restart_random();
    run_ends(END_BLOCKS);
    OK(c->run(&r, far, ERR));
    OK(lora_sync(r.ctx, ERR));
    run_ends(0);
    for (int i = 0; i < r.n_arrays; i++) lora_ctx_free(r.ctx, r.arrays[i].data);
    device_ctx_free(r.ctx);
    return r;
}

void end_check(const end_case *cases, int n) {
    shim_symbols shim;
    CHECK(find_shim_symbols(&shim), "the shim does not tell what it can");
    for (int i = 0; i < n; i++) {
        end_run near = run(&cases[i], false, shim.run_ends), apart = run(&cases[i], true, shim.run_ends);
        size_t same = 0;
        while (same < near.bytes && near.results[same] == apart.results[same]) same++;
        CHECK(near.bytes > 0 && near.bytes == apart.bytes && same == near.bytes,
              "%s: byte %zu of %zu results is another in arrays of more than 2^31 elements", cases[i].name, same, near.bytes);
        free(near.results);
        free(apart.results);
    }
}
