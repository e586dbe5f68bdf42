"""A QLoRA step of lora-c beside transformers + PEFT + bitsandbytes: the same shape, the same threads, steps in turn.

    make bench-peers                      or
    python benchmarks/bench_peers.py --peers .venv-peers/bin/python --shape 135m --batch 1 --length 512

Each side runs in a process of its own and trains one step while the other waits, so a busy machine slows both. Memory is the
peak resident size of the process while it trains, libraries and Python included. The result is a Markdown table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from random_model import random_model
from shapes import SHAPES, peak_resident_bytes, reset_peak_resident

import lora_c as lc
from lora_c.bench import StepBench

HERE = Path(__file__).parent


class Peer:
    """The process of peer_worker.py."""

    def __init__(self, python: str, args: argparse.Namespace) -> None:
        command = [python, str(HERE / "peer_worker.py"), "--shape", args.shape, "--batch", str(args.batch)]
        command += ["--length", str(args.length), "--rank", str(args.rank), "--threads", str(lc.get_num_threads())]
        command += ["--checkpointing"] if args.checkpointing else []
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.greeting = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.communicate("end\n")

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):  # its libraries may write lines of their own
                return json.loads(line)
        command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
        raise SystemExit(f"the peer ended; see why with: {command} < /dev/null")


def our_bench(args: argparse.Namespace) -> StepBench:
    model = random_model(args.shape)
    model.add_adapter(lc.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"))
    model.decoder.recompute = "layer" if args.checkpointing else "none"
    return StepBench(model, args.batch, args.length)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=".venv-peers/bin/python", help="Python of the peers' virtual environment")
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true", help="both sides compute activations again in backward")
    args = parser.parse_args()
    peer = Peer(args.peers, args)
    ours = our_bench(args)
    trained = sum(p.size for p in ours.model.trainable_parameters())
    if trained != peer.greeting["trained"]:
        raise SystemExit(f"trained parameters: expected the same on both sides, got {trained} and {peer.greeting['trained']}")
    reset_peak_resident()
    peer.ask("step")
    ours.step()
    theirs, mine = [], []
    for _ in range(args.steps):
        theirs.append(peer.ask("step")["seconds"])
        mine.append(ours.measure_one())
    memory, their_memory = peak_resident_bytes(), peer.ask("memory")["bytes"]
    peer.end()
    tokens = args.batch * args.length
    rates = [tokens / statistics.median(times) for times in (mine, theirs)]
    print(f"{datetime.date.today()}, {processor()}, {lc.get_num_threads()} threads, {lc.get_isa()}; {peer.greeting['ready']}")
    print(
        f"`{' '.join(Path(word).name for word in [sys.executable, *sys.argv])}`: median of {args.steps} steps each, in turn\n"
    )
    print(
        f"| QLoRA {args.shape} {args.batch}x{args.length}, r={args.rank} | lora-c | peer | ratio |\n| --- | --- | --- | --- |"
    )
    print(f"| tokens/s | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[0] / rates[1]:.2f} |")
    print(f"| best tokens/s | {tokens / min(mine):,.0f} | {tokens / min(theirs):,.0f} | {min(theirs) / min(mine):.2f} |")
    print(f"| peak resident MiB | {memory / 2**20:,.0f} | {their_memory / 2**20:,.0f} | {memory / their_memory:.3f} |")


if __name__ == "__main__":
    main()
