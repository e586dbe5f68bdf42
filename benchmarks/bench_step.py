"""Tokens per second and memory of a QLoRA step, and tokens per second of decoding, on random weights.

    python benchmarks/bench_step.py --shape 135m --batch 1 --length 512

Memory: `ours` is the peak of the library's own accounts (weights, adapters, optimizer, activations, scratch), `process` the
peak resident size of the whole process, Python and NumPy included.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from random_model import SHAPES, random_model

import lora_c as lc


def train_step(model: lc.Model, optimizer: lc.AdamW, ids: np.ndarray, cu_seqlens: np.ndarray) -> float:
    optimizer.zero_grad()
    targets = np.roll(ids, -1)
    weight = np.ones(len(ids), np.float32)
    weight[cu_seqlens[1:] - 1] = 0
    loss = model.decoder.forward_backward(ids, cu_seqlens, targets, weight, grad_scale=1 / weight.sum())
    optimizer.step(max_grad_norm=1.0)
    return loss / float(weight.sum())


def bench_step(model: lc.Model, batch: int, length: int, steps: int) -> str:
    rng = np.random.default_rng(0)
    vocab = model.architecture.decoder_kwargs["vocab_size"]
    ids = rng.integers(0, vocab, batch * length).astype(np.int32)
    cu_seqlens = np.arange(0, batch * length + 1, length, dtype=np.int32)
    optimizer = lc.AdamW(model.trainable_parameters(), lr=1e-4)
    lc.reset_peak_memory()
    train_step(model, optimizer, ids, cu_seqlens)
    times = []
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        begin = time.perf_counter()
        train_step(model, optimizer, ids, cu_seqlens)
        times.append(time.perf_counter() - begin)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    ours = lc.memory_report()["total"]["peak"]
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate, best = batch * length / np.median(times), batch * length / min(times)
    return (
        f"QLoRA step {batch}x{length}: {rate:,.0f} tokens/s (best {best:,.0f}), {np.median(times):.3f} s, "
        f"ours {ours / 2**20:,.0f} MiB, process {process / 2**20:,.0f} MiB, {faults / steps:.0f} page faults a step"
    )


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
    parser.add_argument("--recompute", choices=["none", "layer"], default="none")
    args = parser.parse_args()
    model = random_model(args.shape)
    model.add_adapter(lc.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"))
    model.decoder.recompute = args.recompute
    machine = f"{lc.get_isa()}, {lc.get_num_threads()} threads"
    print(f"{args.shape}: {model.num_parameters():,} parameters, rank {args.rank}, {machine}")
    print(bench_step(model, args.batch, args.length, args.steps))
    print(bench_decode(model, prompt=64, tokens=64))


if __name__ == "__main__":
    main()
