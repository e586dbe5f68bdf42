"""Part decode: one sequence, token by token, without and with an adapter."""

from __future__ import annotations

from common import options, row_of
from machine import memory_used

import lora_c
from lora_c.bench import DecodeBench
from lora_c.bench_shapes import synthetic_model
from lora_c.weights.quantization import NF4


def main() -> None:
    """One row for each length of the prompt and each adapter."""
    args = options(__doc__, "shape")
    shape, prompts, tokens = ("tiny", (4,), 3) if args.tiny else (args.shape, (1, 2048), 128)
    model = synthetic_model(shape, NF4, args.device)
    model.decoder.precision = "fast"
    for rank in (0, 16):
        if rank:
            model.add_adapter(lora_c.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
        for prompt in prompts:
            with row_of(what="decode", shape=shape, rank=rank) as row:
                bench = DecodeBench(model, tokens, prompt)
                bench.measure()  # warms up
                row |= bench.measure().as_dict()
                row["device_memory_used"] = memory_used()


if __name__ == "__main__":
    main()
