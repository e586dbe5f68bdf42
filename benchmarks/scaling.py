"""What data parallel training brings on 1 to 1,024 nodes, from assumed costs of a node and a model of the network.

    python benchmarks/scaling.py [--measure] [--json FILE]

A step of N nodes takes the largest share of micro-batches, the update, and what of the exchange of gradients is not hidden by
the backward pass of the last micro-batch: each rank sends the nodes of the tree that it has summed to the ranks that add them
up, and gets the sums of all others, layer by layer as they are complete. --measure runs lora-c with
1 and 2 ranks on this machine, and exits with 1 where the model is more than 20 % off the second run; it needs mpi4py and
mpirun, and a machine that is otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_c import _core
from lora_c.training.distributed import division
from lora_c.training.exchange import piece_size

NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
NETWORKS = {"1 Gbit/s": (30e-6, 1e9 / 8), "10 Gbit/s": (15e-6, 10e9 / 8), "100 Gbit/s": (3e-6, 100e9 / 8)}  # latency, bytes/s
OFF = 0.20
BACKWARD = 0.5  # of a micro-batch, about: the base has no gradients


@dataclass(frozen=True)
class Costs:
    """Seconds of a micro-batch and of an update, elements that are trained, bytes/s at which the tree adds up."""

    micro_batch: float
    update: float
    elements: int
    add_bytes: float


def exchange_seconds(costs: Costs, micro_batches: int, size: int, latency: float, bandwidth: float) -> float:
    """Of the all-to-all and the all-gather of a step, and the additions between them, beyond the backward pass.

    The first piece is complete when its part of the backward pass is done, and the last one goes out when all of it is.
    """
    if size == 1:
        return 0.0
    covers = [len(_core.tree_cover(micro_batches, *part)) for part in division(micro_batches, size)]
    pieces = -(-costs.elements // piece_size(costs.elements))
    bytes_of_all = 4 * costs.elements
    sent = max(covers) * bytes_of_all * (size - 1) / size + bytes_of_all * (size - 1) / size
    messages = 2 * (size - 1) * pieces
    added = sum(covers) * bytes_of_all / size
    small = 3 * latency * max(1, (size - 1).bit_length())  # stop, tokens, losses
    exchange = sent / bandwidth + messages * latency + added / costs.add_bytes
    return max(exchange / pieces, exchange - BACKWARD * costs.micro_batch * (1 - 1 / pieces)) + small


def step_seconds(costs: Costs, micro_batches: int, size: int, latency: float, bandwidth: float) -> float:
    """Of a step of so many micro-batches on so many nodes."""
    largest = max(last - first for first, last in division(micro_batches, size))
    return largest * costs.micro_batch + costs.update + exchange_seconds(costs, micro_batches, size, latency, bandwidth)


def efficiency(costs: Costs, micro_batches: int, size: int, network: tuple[float, float]) -> float:
    """The speed of so many nodes by that of one, over their number."""
    return step_seconds(costs, micro_batches, 1, *network) / step_seconds(costs, micro_batches, size, *network) / size


def table(costs: Costs, micro_batches: int) -> str:
    """Efficiency by number of nodes and network, in Markdown."""
    lines = ["| nodes | " + " | ".join(NETWORKS) + " |", "| --- |" + " --- |" * len(NETWORKS)]
    for size in NODES:
        cells = [f"{efficiency(costs, micro_batches, size, network):.0%}" for network in NETWORKS.values()]
        lines.append(f"| {size:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# Models at r = 16 on every projection: weights, trained elements. A node has 16 cores at 2.0 TFLOP/s together, and a
# micro-batch takes 4.2 flop for each weight and token: 2 forward, 2 backward (the base has no gradients), and LoRA's.
MODELS = {"1.1B": (1.1e9, 12_615_680), "8B": (8.0e9, 41_943_040)}
FLOPS, TOKENS = 2.0e12, 2048


def assumed(model: str) -> Costs:
    """Costs of a model on a node as it is assumed above."""
    weights, elements = MODELS[model]
    return Costs(4.2 * weights * TOKENS / FLOPS, 28 * elements / 20e9, elements, 5e9)


def run(folder: Path, size: int, threads: int, steps: int, micro_batches: int) -> dict[str, Any]:
    """What run.json says of a run on this machine."""
    data = folder / "data.jsonl"
    if not data.exists():
        rows = [{"prompt": f"Count to {i}: ", "completion": " ".join(map(str, range(80)))} for i in range(256)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = folder / f"ranks-{size}"
    command = [
        sys.executable, "-m", "lora_c", "train", "--model", "demo", "--data", data, "--output", out, "--max-steps", steps,
        "--gradient-accumulation-steps", micro_batches, "--per-device-train-batch-size", 4, "--save-steps", 0, "--samples", 0,
        "--launch", f"mpi:{size}",
    ]  # fmt: skip
    env = os.environ | {"LORA_C_NUM_THREADS": str(threads)}
    subprocess.run(list(map(str, command)), check=True, env=env, capture_output=True)
    return dict(json.loads((out / "run.json").read_text(encoding="utf-8"))["result"])


def measured() -> tuple[float, float]:
    """Seconds of a run of 2 ranks: forecast from a run of 1, and taken."""
    steps, micro_batches = 20, 8
    with tempfile.TemporaryDirectory() as name:
        one = run(Path(name), 1, 1, steps, micro_batches)
        two = run(Path(name), 2, 1, steps, micro_batches)
    alone = one["ranks"][0]["seconds"] / steps / micro_batches
    costs = Costs(alone, one["seconds"] / steps - alone * micro_batches, 100_000, 5e9)
    return steps * step_seconds(costs, micro_batches, 2, 5e-6, 5e9), two["seconds"]


def main() -> int:
    """Print the tables; with --measure also the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="check the model against 2 ranks on this machine")
    parser.add_argument("--json", type=Path, help="write the efficiencies to a file")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for model in MODELS:
        for micro_batches in (64, 1024):
            print(f"\n{model}, {micro_batches:,} micro-batches of {TOKENS:,} tokens a step\n")
            print(table(assumed(model), micro_batches))
            found[f"{model}, {micro_batches}"] = {
                name: {size: round(efficiency(assumed(model), micro_batches, size, network), 3) for size in NODES}
                for name, network in NETWORKS.items()
            }
    status = 0
    if options.measure:
        expected, taken = measured()
        off = taken / expected - 1
        print(f"\n2 ranks on this machine: forecast {expected:.2f} s, taken {taken:.2f} s, {off:+.0%}")
        found["2 ranks"], status = {"forecast": expected, "taken": taken}, int(abs(off) > OFF)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
