"""Part bench: steps of QLoRA training of a well-known shape, with and without recomputation, at several sizes."""

from __future__ import annotations

import gc

from common import emit, options, row_of
from machine import memory_used

import lora_c
from lora_c import _core
from lora_c.bench import StepBench
from lora_c.bench_shapes import synthetic_model
from lora_c.weights.quantization import NF4

RANK, STEPS = 16, 7
# Sequences and tokens of each, by shape: those that a GPU of 80 or 141 GB may hold. What does not fit says so.
SIZES = {
    "llama-3.2-1b": [(1, 2048), (2, 2048), (4, 2048), (8, 2048)],
    "llama-3.1-8b": [(1, 2048), (2, 2048), (4, 2048), (1, 8192)],
    "llama-3.1-70b": [(1, 2048), (2, 2048)],
    "gpt3-175b": [(1, 2048), (2, 2048)],
}


def main() -> None:
    """One row for loading, one for each size and each way, and one profile."""
    args = options(__doc__, "shape")
    shape, sizes = ("tiny", [(1, 16)]) if args.tiny else (args.shape, SIZES[args.shape])
    steps = 1 if args.tiny else STEPS
    with row_of(what="load", shape=shape) as row:
        model = synthetic_model(shape, NF4, args.device)
        model.add_adapter(lora_c.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
        model.decoder.precision = "fast"
        row |= {"parameters": model.num_parameters(), "trainable": model.num_parameters(only_trainable=True)}
        row["weights_bytes"] = _core.memory_report(model.device)["base weights"]["live"]
    for batch, length in sizes:
        for recompute in ("layer", "none"):
            model.decoder.recompute = recompute
            model.free_activations()
            gc.collect()
            with row_of(what="step", shape=shape, batch=batch, length=length, rank=RANK, recompute=recompute) as row:
                bench = StepBench(model, batch, length)
                row |= bench.measure(steps).as_dict()
                row["device_memory_used"] = memory_used()
            del bench
    batch, length = sizes[0]
    model.decoder.recompute = "layer"
    with row_of(what="profile", shape=shape, batch=batch, length=length, recompute="layer") as row:
        # Each operation is waited for, so that the times are larger than those of a step.
        row["profile"] = StepBench(model, batch, length).measure(1 if args.tiny else 3, profile=True).profile
    emit(what="memory", report=_core.memory_report(model.device))


if __name__ == "__main__":
    main()
