/* Decoding on the shim of the CUDA plug-in: from the third token of a kind on, its launches are one graph, and the bits are those that
 * single launches have. */
#include <stdlib.h>
#include <string.h>

#include "tests/c/check_ops.h"
#include "tests/c/children.h"
#include "tests/c/device_mirror.h"
#include "tests/c/devices.h"
#include "tests/c/shim_symbols.h"
#include "tests/c/tiny_decoder.h"

enum { STEPS = 9, SEQUENCES = 3, ROOM = 64 };

static float logits[STEPS][SEQUENCES * TINY_VOCAB], alone[STEPS][SEQUENCES * TINY_VOCAB];

/* One sequence for some tokens, then three at a time, then the first alone again; the memory of the cache stays. */
static void decode_steps(lora_ctx *ctx, int64_t (*launches)(void), int64_t *graphs, float out[STEPS][SEQUENCES * TINY_VOCAB]) {
    tiny_decoder t;
    lora_kv_cache *cache = NULL;
    OK(tiny_decoder_make(ctx, 0, -1, &t, ERR));
    OK(MIRRORED(lora_kv_cache_create(t.decoder, SEQUENCES, ROOM, &cache, ERR)));
    static const int32_t cu[] = {0, 1, 2, 3}, sequences[] = {0, 1, 2};
    for (int step = 0; step < STEPS; step++) {
        int n = step < 4 || step == STEPS - 1 ? 1 : SEQUENCES;
        const int32_t ids[] = {(7 * step + 3) % TINY_VOCAB, (5 * step + 1) % TINY_VOCAB, (3 * step + 2) % TINY_VOCAB};
        int64_t before = launches ? launches() : 0;
        OK(MIRRORED(lora_decoder_decode(t.decoder, cache, n, cu, sequences, ids, NULL, out[step], ERR)));
        graphs[step] = launches ? launches() - before : 0;
    }
    lora_kv_cache_destroy(cache);
    tiny_decoder_free(&t);
}

static void run(lora_ctx *engine, lora_precision precision, int64_t (*launches)(void), int64_t *graphs,
                float out[STEPS][SEQUENCES * TINY_VOCAB]) {
    lora_ctx *ctx;
    OK(lora_ctx_create_on(engine, "shim", backend_paths(), &ctx, ERR));
    OK(lora_ctx_set_precision(ctx, precision, ERR));
    decode_steps(ctx, launches, graphs, out);
    mirror_forget(ctx);
    lora_ctx_destroy(ctx);
}

void check_cuda_graphs(void) {
    shim_symbols shim;
    if (!find_shim_symbols(&shim)) return;
    lora_ctx *engine = check_ctx(LORA_ISA_AUTO, 1);
    int64_t graphs[STEPS], none[STEPS], before = shim.live();
    for (int precision = LORA_PRECISION_EXACT; precision <= LORA_PRECISION_FAST; precision++) {
        run(engine, (lora_precision)precision, shim.graph_launches, graphs, logits);
        set_variable("LORA_C_CUDA_GRAPHS", "0");
        run(engine, (lora_precision)precision, shim.graph_launches, none, alone);
        set_variable("LORA_C_CUDA_GRAPHS", NULL);
        /* The first token of a kind goes out as it is, and so does one whose scratch has just grown. Logits are somewhere else each time.
         */
        for (int step = 0; step < STEPS; step++) {
            bool repeated = step == 2 || step == 3 || step == 6 || step == 7 || step == STEPS - 1;
            CHECK(none[step] == 0, "step %d: a graph was started though there are to be none", step);
            CHECK(!repeated || graphs[step] == 1, "step %d: expected 1 graph, got %d", step, (int)graphs[step]);
            CHECK(memcmp(logits[step], alone[step], sizeof logits[step]) == 0, "step %d: a graph has other bits", step);
        }
    }
    CHECK(shim.live() == before, "%d things left over", (int)(shim.live() - before));
    lora_ctx_destroy(engine);
}
