"""What `lora-c plan` says against what `lora-c train` takes: 16 runs of the model that ships, each in processes of its own.

    python benchmarks/bench_plan.py [--rounds 5] [--method head] [--json FILE]

Each method with and without recompute and with both types of activations; optimizers and lengths take turns. Memory is the
library's own account of the peak; the time of a step is the median over the run. Prints one line a run, and exits with 1 where
memory is more than 5 % off, or time more than 20 %.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lora_c.demo.world import task

METHODS, RECOMPUTE, ACTIVATIONS = ("qlora", "lora", "head", "full"), ("none", "layer"), ("float32", "bfloat16")
OPTIMIZERS, LENGTHS = ("adamw_torch", "adamw_8bit", "paged_adamw_32bit", "sgd"), (512, 256, 384)
MEMORY, TIME = 0.05, 0.20  # what a forecast may be off


def configurations() -> list[dict[str, str]]:
    """The flags of each run."""
    found = []
    for number, (method, recompute, dtype) in enumerate(itertools.product(METHODS, RECOMPUTE, ACTIVATIONS)):
        optim, length = OPTIMIZERS[number % len(OPTIMIZERS)], LENGTHS[number % len(LENGTHS)]
        flags = {"--method": method, "--recompute": recompute, "--activation-dtype": dtype, "--optim": optim}
        found.append(flags | {"--max-seq-length": str(length), "--batch-size": "4"})
    return found


def write_data(file: Path, count: int = 64) -> None:
    """Texts that are longer than every length, so that each sequence is as long as it may be."""
    texts = (" ".join(json.dumps(example) for example in task(seed, 60, 1)[0]) for seed in range(count))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def lora_c(*words: str) -> dict:
    """The object that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "lora_c", *words, "--json"], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def measured(flags: dict[str, str], folder: Path, number: int, steps: int) -> tuple[dict, dict]:
    """The plan of a run, and what it took."""
    words = [word for pair in flags.items() for word in pair]
    words += ["--model", "demo", "--data", str(folder / "data.jsonl"), "--max-steps", str(steps)]
    plan = lora_c("plan", *words)
    out = folder / f"run-{number}"
    ran = lora_c("train", *words, "--output-dir", str(out), "--samples", "0", "--save-steps", "0", "--overwrite")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [(line["elapsed_seconds"], line["tokens"]) for line in lines if "elapsed_seconds" in line and "loss" in line]
    steps_of = [(tokens - before) / max(end - begin, 1e-4) for (begin, before), (end, tokens) in itertools.pairwise(ends)]
    return plan, {"bytes": ran["peak_memory_bytes"], "tokens_per_second": statistics.median(steps_of)}


def compared(flags: dict[str, str], rounds: list[tuple[dict, dict]]) -> dict:
    """Both sides of a run, the median of some rounds for the times."""
    plan, ran = rounds[0]
    total = plan["memory"]["total"]
    if flags["--optim"].startswith("paged_"):  # lies in a mapped file, which the account of the run does not have
        total -= plan["memory"]["optimizer"]
    row = {"flags": flags, "plan_bytes": total, "bytes": ran["bytes"], "memory_off": total / ran["bytes"] - 1}
    said, took = ([of(pair) for pair in rounds] for of in (_said, _took))
    row |= {"plan_tokens_per_second": statistics.median(said), "tokens_per_second": statistics.median(took)}
    # Of each round: what else runs on the machine changes from one to the next.
    return row | {"time_off": statistics.median(t / s for s, t in zip(said, took, strict=True)) - 1}


def _said(pair: tuple[dict, dict]) -> float:
    return pair[0]["speed"]["tokens_per_second"]


def _took(pair: tuple[dict, dict]) -> float:
    return pair[1]["tokens_per_second"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--method", choices=METHODS, help="of one method alone")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data.jsonl")
        for flags in configurations():
            if given.method not in (None, flags["--method"]):
                continue
            row = compared(flags, [measured(flags, folder, i, given.steps) for i in range(given.rounds)])
            rows.append(row)
            memory = f"{row['plan_bytes'] / 2**20:7.1f} {row['bytes'] / 2**20:7.1f} MiB {100 * row['memory_off']:+5.1f} %"
            speed = f"{row['plan_tokens_per_second']:8,.0f} {row['tokens_per_second']:8,.0f} tokens/s"
            print(f"{' '.join(flags.values()):<55} {memory} {speed} {100 * row['time_off']:+5.1f} %", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    wrong = [r for r in rows if abs(r["memory_off"]) > MEMORY or abs(r["time_off"]) > TIME]
    most = {key: max(abs(row[key]) for row in rows) for key in ("memory_off", "time_off")}
    print(
        f"at most off: memory {100 * most['memory_off']:.1f} %, time {100 * most['time_off']:.1f} %; {len(wrong)} runs too far"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
