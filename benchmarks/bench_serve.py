"""Tokens a second of a full batch: another adapter for each sequence against one adapter for all, as `lora-c serve` decodes.

    python benchmarks/bench_serve.py --shape 135m --rounds 5 --json serve.json

Random models in NF4 with double quantization, LoRA on all linear layers; 16 prompts of the same length, answers of the same
length without an end, greedy, by the loop that the server runs (`lora_c.Batch` with blocks of 128 tokens). The kinds take
turns step by step; of a round the median step of each counts, of the rounds the median ratio. Beside them the bare base, for
the cost of adapters. Prints one JSON object; exits with 1 where the mixed batch is slower than BAR times that of one adapter.
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


class Asked:
    """A full batch whose prompts are read."""

    def __init__(self, model: lc.Model, adapters: list[str | None], prompts: list[list[int]], n_tokens: int) -> None:
        self._batch = lc.Batch(model, BATCH, len(prompts[0]) + n_tokens, prompt_block=128)
        self.answers = [
            self._batch.add(prompt, adapter=adapter, max_new_tokens=n_tokens, ignore_eos=True)
            for prompt, adapter in zip(prompts, adapters, strict=True)
        ]
        while not all(answer.ids for answer in self.answers):
            self._batch.step()

    def step(self) -> float:
        """Seconds of a step, which writes a token of every answer."""
        before = sum(len(answer.ids) for answer in self.answers)
        began = time.perf_counter()
        self._batch.step()
        seconds = time.perf_counter() - began
        assert sum(len(answer.ids) for answer in self.answers) == before + BATCH
        return seconds


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
    medians: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        asked = {kind: Asked(model, adapters, prompts, options.tokens + BATCH) for kind, adapters in kinds.items()}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(options.tokens):
            for kind in list(kinds)[:: 1 if number % 2 else -1]:
                times[kind].append(asked[kind].step())
        for kind, found in times.items():
            medians[kind].append(statistics.median(found))
        print(options.shape, *(f"{kind} {BATCH / found[-1]:.1f} tokens/s" for kind, found in medians.items()), file=sys.stderr)
    ratios = [one / mixed for one, mixed in zip(medians["one"], medians["mixed"], strict=True)]
    return {
        "shape": options.shape, "batch": BATCH, "rank": options.rank, "prompt": options.prompt, "tokens": options.tokens,
        "rounds": options.rounds, "threads": lc.get_num_threads(),
        "tokens_per_second": {kind: round(BATCH / statistics.median(found), 1) for kind, found in medians.items()},
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios], "bar": BAR,
        "peak_mib": peak_resident_bytes() >> 20,
    }  # fmt: skip


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    for name, default in (("rounds", 5), ("rank", 8), ("prompt", 32), ("tokens", 48)):
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
