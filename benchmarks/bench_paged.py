"""Memory and time of full fine-tuning with the optimizer's state in a file, beside the one in memory.

    python benchmarks/bench_paged.py --rounds 3

A random model of SmolLM2-135M's shape is written once and trained by one process for each run, in turns: loading, steps
and the checkpoint at the end. Memory is the peak resident size of the process (VmHWM): Python, mapped files and the pages
of the state that are in memory count. The digest is that of all parameters after the last step; two optimizers with the
same mathematics must give the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from shapes import SHAPES, peak_resident_bytes, reset_peak_resident

import lora_c as lc
from lora_c.checkpoints.safetensors_writer import TensorEntry, write_safetensors
from lora_c.data import Dataset, Sample
from lora_c.families.architectures import architecture_of

NAMES = ("adamw_torch", "paged_adamw_32bit", "adamw_8bit", "paged_adamw_8bit")


def write_model(folder: Path, shape: str) -> None:
    """A model folder of SHAPES with random weights in bfloat16."""
    rng = np.random.Generator(np.random.SFC64(0))
    entries = []
    for spec in architecture_of(SHAPES[shape]).weights():
        is_vector = spec.kind == "vector"
        array = np.ones(spec.shape) if is_vector else rng.standard_normal(spec.shape, np.float32) * spec.shape[1] ** -0.5
        entries.append(TensorEntry.of(spec.file_name, array.astype(ml_dtypes.bfloat16)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]), encoding="utf-8")
    with open(folder / "model.safetensors", "wb") as file:
        write_safetensors(file.write, entries, {"format": "pt"})


def random_data(vocab_size: int, sequences: int, length: int) -> Dataset:
    rng = np.random.default_rng(0)
    ids = (rng.integers(3, vocab_size, length).astype(np.int32) for _ in range(sequences))
    return Dataset([Sample(i, np.ones(len(i), np.float32)) for i in ids])


class Clock(lc.Callback):
    """Seconds from step to step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, state: lc.TrainerState) -> None:
        self.times.append(time.perf_counter())


def work(model: str, out: str, optim: str, steps: int, length: int) -> dict[str, Any]:
    """One run in this process."""
    reset_peak_resident()
    loaded = lc.load_model(model, trainable="full", progress=False)
    data = random_data(loaded.config["vocab_size"], steps, length)
    config = lc.TrainConfig(
        output_dir=out, method="full", optim=optim, max_steps=steps, per_device_train_batch_size=1, learning_rate=1e-4,
        save_steps=0,
    )  # fmt: skip
    clock = Clock()
    trainer = lc.Trainer(loaded, data, config, callbacks=[clock])
    trainer.train()
    peak = peak_resident_bytes()
    sha = hashlib.sha256()
    for parameter in loaded.trainable_parameters():
        sha.update(np.ascontiguousarray(parameter.data))
    seconds = statistics.median(np.diff(clock.times)) if len(clock.times) > 1 else float("nan")
    return {"optim": optim, "peak": peak, "seconds": float(seconds), "digest": sha.hexdigest()[:16]}


def run_alone(folder: Path, optim: str, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, __file__, "--model", str(folder / "model"), "--out", out, "--optim", optim]
        command += ["--steps", str(args.steps), "--length", str(args.length)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_model(folder / "model", args.shape)
        runs = [run_alone(folder, optim, args) for _ in range(args.rounds) for optim in args.optims]
    print("| optim | peak resident MiB | seconds a step, median | digest of the parameters |\n| --- | --- | --- | --- |")
    for optim in args.optims:
        own = [run for run in runs if run["optim"] == optim]
        digests = ", ".join(sorted({run["digest"] for run in own}))
        peak = max(run["peak"] for run in own) / 2**20
        print(f"| {optim} | {peak:,.0f} | {statistics.median(run['seconds'] for run in own):.2f} | {digests} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135m", choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--length", type=int, default=128, help="tokens of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optims", nargs="+", default=list(NAMES))
    parser.add_argument("--folder", help="where model, outputs and states lie")
    for hidden in ("--model", "--out", "--optim"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        print(json.dumps(work(args.model, args.out, args.optim, args.steps, args.length)))
    else:
        compare(args)


if __name__ == "__main__":
    main()
