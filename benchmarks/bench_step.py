"""Tokens per second and memory of a QLoRA step, and tokens per second of decoding, on random weights.

    python benchmarks/bench_step.py --shape 135m --batch 1 --length 512

Memory: `peak` is that of weights, adapters, optimizer, activations and scratch by the library's accounts, `process` the
peak resident size of the whole process, Python and NumPy included.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from random_model import random_model
from shapes import SHAPES

import lora_c as lc
from lora_c import _core
from lora_c.bench import StepBench, profile_table


def bench_step(model: lc.Model, batch: int, length: int, steps: int, profile: bool) -> str:
    bench = StepBench(model, batch, length)
    measured = bench.measure(steps, profile=profile)
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = f"QLoRA step {batch}x{length}: {measured.describe()}, process {process / 2**20:,.0f} MiB"
    return line + ("\n" + profile_table(measured, _core.fma_peak()) if profile else "")


def bench_decode(model: lc.Model, prompt: int, tokens: int) -> str:
    cache = model.decoder.new_cache(prompt + tokens)
    begin = time.perf_counter()
    logits = model.decoder.decode(cache, np.arange(prompt, dtype=np.int32))
    prefill = time.perf_counter() - begin
    times = []
    for _ in range(tokens):
        begin = time.perf_counter()
        logits = model.decoder.decode(cache, [int(logits[0].argmax())])
        times.append(time.perf_counter() - begin)
    return f"decode: {1 / np.median(times):,.1f} tokens/s, prefill of {prompt}: {prompt / prefill:,.0f} tokens/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=["exact", "fast", "int8"], default="fast")
    parser.add_argument("--recompute", choices=["none", "attention", "layer"], default="none")
    parser.add_argument("--activation-dtype", choices=["float32", "bfloat16", "int8"], default="float32")
    parser.add_argument("--profile", action="store_true", help="list where the time of a step goes")
    args = parser.parse_args()
    model = random_model(args.shape)
    model.add_adapter(lc.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"))
    model.decoder.precision = args.precision
    model.decoder.recompute = args.recompute
    model.decoder.activation_dtype = args.activation_dtype
    machine = f"{lc.get_isa()}, {lc.get_num_threads()} threads"
    print(f"{args.shape}: {model.num_parameters():,} parameters, rank {args.rank}, {machine}")
    print(bench_step(model, args.batch, args.length, args.steps, args.profile))
    print(bench_decode(model, prompt=64, tokens=64))


if __name__ == "__main__":
    main()
