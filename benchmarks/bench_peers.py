"""lora-c beside transformers + PEFT + bitsandbytes on this machine: the same weights, the same data, repetitions in turn.

    make bench-peers                      all rows, or
    python benchmarks/bench_peers.py --peers .venv-peers/bin/python --rows step-135m-1x512 decode-1.1b --out results.md

Each side runs in a process of its own and one waits while the other works. Times are medians of the repetitions after a first
one that warms up, in wall clock and in CPU seconds of the process (a busy machine disturbs the latter least). Memory is the
peak resident size of the process, libraries and Python included, after loading. Weights are random; the model folders are
kept in --work for the next run. The data of `gsm8k` is real, see `write_gsm8k`.
Rows that end in llama.cpp need llama-cpp-python in the peers' environment.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapes import SHAPES

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """A comparison. units: what one repetition makes, of which more per second is better."""

    title: str
    task: dict[str, Any]
    shape: str = ""
    units: float = 1
    unit: str = "runs"
    repetitions: int = 4
    peer: str = "worker_peers.py"


def training(shape: str, batch: int, length: int, repetitions: int = 4, **more: Any) -> Row:
    task = {"task": "train", "rank": 16, "batch": batch, "length": length} | more
    title = f"QLoRA step {shape}, {batch}x{length}" + "".join(f", {k}={v}" for k, v in more.items())
    return Row(title, task, shape, batch * length, "tokens/s", repetitions)


ROWS = {
    "step-tiny": training("tiny", 2, 32),
    "step-135m-1x512": training("135m", 1, 512),
    "step-135m-1x512-recompute": training("135m", 1, 512, recompute="layer"),
    "step-135m-4x512": training("135m", 4, 512, 3),
    "step-135m-4x512-recompute": training("135m", 4, 512, 3, recompute="layer"),
    "step-135m-4x512-bf16": training("135m", 4, 512, 3, activation_dtype="bfloat16"),
    "step-135m-1x512-int8": training("135m", 1, 512, precision="int8"),
    "step-135m-4x512-int8": training("135m", 4, 512, 3, precision="int8"),
    "step-135m-4x512-int8-activations": training("135m", 4, 512, 3, precision="int8", activation_dtype="int8"),
    "step-135m-4x512-int8-attention-again": training(
        "135m", 4, 512, 3, precision="int8", activation_dtype="int8", recompute="attention"
    ),
    "step-1.1b-1x256-int8": training("1.1b", 1, 256, 3, precision="int8"),
    "step-1.1b-1x256": training("1.1b", 1, 256, 3),
    "step-1.1b-1x256-recompute": training("1.1b", 1, 256, 3, recompute="layer"),
    "gsm8k-135m": Row("gsm8k, prompts masked, 135m", {"task": "train", "rank": 16, "batch": 8}, "135m", 8, "examples/s", 4),
    "gsm8k-135m-int8": Row(
        "gsm8k, prompts masked, 135m, precision=int8",
        {"task": "train", "rank": 16, "batch": 8, "precision": "int8"},
        "135m",
        8,
        "examples/s",
        4,
    ),
    "decode-135m": Row("NF4 decode 135m", {"task": "decode", "tokens": 32}, "135m", 32, "tokens/s"),
    "decode-1.1b": Row("NF4 decode 1.1b", {"task": "decode", "tokens": 24}, "1.1b", 24, "tokens/s", 3),
    "decode-135m-llama.cpp": Row(
        "decode 135m, NF4 beside llama.cpp's Q4_0",
        {"task": "decode", "tokens": 32},
        "135m",
        32,
        "tokens/s",
        peer="worker_llama.py",
    ),
    "decode-1.1b-llama.cpp": Row(
        "decode 1.1b, NF4 beside llama.cpp's Q4_0",
        {"task": "decode", "tokens": 24},
        "1.1b",
        24,
        "tokens/s",
        peer="worker_llama.py",
    ),
    **{
        f"prefill-1.1b{suffix}-llama.cpp": Row(
            f"prompt of 512 tokens 1.1b, NF4 {precision} beside llama.cpp's Q4_0",
            {"task": "prefill", "tokens": 512, "precision": precision},
            "1.1b",
            512,
            "tokens/s",
            5,
            peer="worker_llama.py",
        )
        for precision, suffix in (("int8", ""), ("fast", "-fast"))
    },
    "quantize": Row("quantize 4096x4096 to NF4 + DQ", {"task": "quantize", "rows": 4096}, "", 1, "matrices/s"),
}
# llama.cpp is built from source, so its rows are asked for by name.
DEFAULT_ROWS = [name for name in [*ROWS, "import"] if name != "step-tiny" and not name.endswith("llama.cpp")]


class Worker:
    """One side of a comparison, waiting for requests."""

    def __init__(self, python: str, script: str, task: dict[str, Any]) -> None:
        command = [python, str(HERE / script)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.facts = self.ask(task)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{' '.join(map(str, self.process.args))} ended; run it by hand with the request {json.dumps(request)}"
            )
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def end(self) -> None:
        self.process.communicate()


def write_random_tokens(path: Path, vocab: int, batch: int, length: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocab, batch * length)
    np.savez(path, ids=ids, lengths=np.full(batch, length), prompts=np.zeros(batch, np.int64))


def write_gsm8k(path: Path, source: Path, examples: int) -> None:
    """Write questions as prompts and answers as completions, at the lengths of a BPE tokenizer made from them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=8192, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((r["question"] + "\n" + r["answer"] for r in records), trainer)
    pairs = [[tokenizer.encode(r[key]).ids for key in ("question", "answer")] for r in records[:examples]]
    ids = [token for prompt, answer in pairs for token in prompt + answer]
    lengths, prompts = [len(p) + len(a) for p, a in pairs], [len(p) for p, _ in pairs]
    np.savez(path, ids=np.array(ids), lengths=np.array(lengths), prompts=np.array(prompts))


def prepare(row: Row, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The task with its files, which are made where they are missing."""
    task = dict(row.task)
    if row.shape:
        folder = args.work / row.shape
        if not (folder / "config.json").is_file():
            Worker(args.peers, "worker_peers.py", {"task": "make", "shape": row.shape, "folder": str(folder)}).end()
        task["folder"] = str(folder)
    if task["task"] == "train":
        task["examples"] = str(args.work / f"{name}.npz")
        if "length" in task:
            write_random_tokens(Path(task["examples"]), SHAPES[row.shape]["vocab_size"], task["batch"], task["length"])
        else:
            write_gsm8k(Path(task["examples"]), args.gsm8k, task["batch"] * row.repetitions)
    return task


def compare(row: Row, name: str, args: argparse.Namespace) -> list[str]:
    """Table lines of one comparison."""
    task = prepare(row, name, args)
    workers = [Worker(sys.executable, "worker_ours.py", task), Worker(args.peers, row.peer, task)]
    ours, theirs = (worker.facts for worker in workers)
    if ours.get("trained") != theirs.get("trained"):
        raise SystemExit(f"trained parameters: expected the same on both sides, got {ours['trained']} and {theirs['trained']}")
    first = [worker.ask({"run": 0})["value"] for worker in workers]
    results: list[list[dict[str, Any]]] = [[], []]
    for repetition in range(row.repetitions):
        for side, worker in enumerate(workers):
            results[side].append(worker.ask({"run": repetition}))
    peaks = [worker.ask({"memory": True})["bytes"] for worker in workers]
    for worker in workers:
        worker.end()
    lines = []
    for clock, label in (("seconds", row.unit), ("cpu", f"{row.unit} of CPU time")):
        rates = [row.units / statistics.median(r[clock] for r in side) for side in results]
        lines.append(f"| {row.title} | {label} | {rates[0]:,.4g} | {rates[1]:,.4g} | {rates[0] / rates[1]:.2f} |")
    mib = [peak / 2**20 for peak in peaks]
    lines.append(f"| {row.title} | peak resident MiB | {mib[0]:,.0f} | {mib[1]:,.0f} | 1/{mib[1] / mib[0]:.1f} |")
    if task["task"] == "train":
        lines.append(f"| {row.title} | loss of the first step | {first[0]:.4f} | {first[1]:.4f} | |")
    if row.shape and row.peer == "worker_peers.py":
        times = [facts["seconds"] for facts in (ours, theirs)]
        lines.append(f"| load {row.shape} and quantize | s | {times[0]:.2f} | {times[1]:.2f} | {times[1] / times[0]:.1f} |")
    return lines


def compare_import(args: argparse.Namespace) -> list[str]:
    """Seconds that a fresh process takes to import what training needs."""
    commands = (
        [sys.executable, "-c", "import lora_c"],
        [args.peers, "-c", "import peft, bitsandbytes; from transformers import AutoModelForCausalLM, Trainer"],
    )
    used: list[list[float]] = [[], []]
    for _ in range(3):
        for side, command in enumerate(commands):
            before = os.times()
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            after = os.times()
            used[side].append(after.children_user + after.children_system - before.children_user - before.children_system)
    ours, theirs = (min(times) for times in used)
    return [f"| import | s of CPU time | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} |"]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="Python of the peers' virtual environment")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "import"], default=DEFAULT_ROWS)
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="folder for models and data")
    parser.add_argument("--gsm8k", type=Path, default=Path("../shared/data/gsm8k/train.jsonl"), help="gsm8k's train.jsonl")
    parser.add_argument("--out", type=Path, help="append the table to this file too")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    text = f"{datetime.date.today()}, {processor()}, {os.cpu_count()} CPUs, load {load:.1f} at the start\n\n"
    text += f"`python {' '.join(['benchmarks/bench_peers.py', *sys.argv[1:]])}`\n\n"
    text += "| what | | lora-c | peers | ratio |\n| --- | --- | ---: | ---: | ---: |\n"
    print(text, end="", flush=True)
    for name in args.rows:
        for line in compare_import(args) if name == "import" else compare(ROWS[name], name, args):
            print(line, flush=True)
            text += line + "\n"
    if args.out:
        with open(args.out, "a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
