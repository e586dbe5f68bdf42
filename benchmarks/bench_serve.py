"""Tokens a second of a full batch: another adapter for each sequence against one adapter for all, as `lora-c serve` decodes.

    python benchmarks/bench_serve.py --shape 135m --rounds 5 --json serve.json

Random models in NF4 with double quantization, LoRA on all linear layers; 16 prompts of the same length, answers of the same
length without an end, greedy, by the loop that the server runs (`lora_c.Batch` with blocks of 128 tokens). The kinds take
turns within a round; a ratio is that of one round, and their median is reported. Beside them the bare base, for the cost of
adapters. Prints one JSON object and exits with 1 where the mixed batch is slower than BAR times the batch of one adapter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from random_model import random_model
from shapes import SHAPES, peak_resident_bytes

import lora_c as lc

BATCH, BAR = 16, 0.75


def seconds_of(model: lc.Model, adapters: list[str | None], prompts: list[list[int]], n_tokens: int) -> tuple[float, float]:
    """Seconds until all prompts are read, and from there to the end."""
    batch = lc.Batch(model, BATCH, len(prompts[0]) + n_tokens, prompt_block=128)
    answers = [
        batch.add(prompt, adapter=adapter, max_new_tokens=n_tokens, ignore_eos=True)
        for prompt, adapter in zip(prompts, adapters, strict=True)
    ]
    began = time.perf_counter()
    while not all(answer.ids for answer in answers):
        batch.step()
    read, before = time.perf_counter(), sum(len(answer.ids) for answer in answers)
    batch.run()
    ended = time.perf_counter()
    written = sum(len(answer.ids) for answer in answers)
    assert written == BATCH * n_tokens
    return read - began, (ended - read) / (written - before) * BATCH


def measured(options: argparse.Namespace) -> dict[str, object]:
    """All rounds of a shape."""
    model = random_model(options.shape)
    names = [f"a{i}" for i in range(BATCH)]
    for seed, name in enumerate(names):
        config = lc.LoraConfig(r=options.rank, target_modules="all-linear", init_lora_weights=False, seed=seed)
        model.add_adapter(config, name)
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, SHAPES[options.shape]["vocab_size"], (BATCH, options.prompt)).tolist()
    kinds: dict[str, list[str | None]] = {"one": [names[0]] * BATCH, "mixed": list(names), "base": [None] * BATCH}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(options.rounds + 1):  # the first one warms up
        for kind in list(kinds)[:: 1 if number % 2 else -1]:
            prompt, step = seconds_of(model, kinds[kind], prompts, options.tokens)
            print(f"{options.shape} {kind}: prompts {prompt:.2f} s, {BATCH / step:.1f} tokens/s", file=sys.stderr)
            if number:
                times[kind].append(step)
    ratios = [one / mixed for one, mixed in zip(times["one"], times["mixed"], strict=True)]
    return {
        "shape": options.shape, "batch": BATCH, "rank": options.rank, "prompt": options.prompt, "tokens": options.tokens,
        "rounds": options.rounds, "threads": lc.get_num_threads(),
        "tokens_per_second": {kind: round(BATCH / statistics.median(found), 1) for kind, found in times.items()},
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios], "bar": BAR,
        "peak_mib": peak_resident_bytes() >> 20,
    }  # fmt: skip


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    for name, default in (("rounds", 5), ("rank", 16), ("prompt", 32), ("tokens", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="Write the figures to this file, too.")
    options = parser.parse_args()
    found = measured(options)
    text = json.dumps(found)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if found["ratio"] >= BAR else 1  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
