"""`lora-c train` killed at any moment: the same command goes on, with the bits of a run that nothing met."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_lines import called, killed_and_called, kills, least_hits, make_workplace

WORDS = (
    "train --model model --data chat.jsonl --val-fraction 0.2 --batch-size 2 --lora-dropout 0.1 --lr 1e-3 --save-steps 2 "
    "--eval-steps 5 --samples 0 --resume auto"
).split()
_OF_THE_MACHINE = ("seconds", "per_second", "memory", "time", "eta")


@pytest.fixture(scope="module")
def workplace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="lora-c-killed-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:  # in memory: every save is synced
        yield make_workplace(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def outcome(folder: Path) -> dict[str, Any]:
    """The adapter, the state of the last checkpoint, and what was measured at each step."""
    from safetensors.numpy import load_file

    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = load_file(last / "training_state.safetensors")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [{k: v for k, v in one.items() if not any(word in k for word in _OF_THE_MACHINE)} for one in records]
    return {
        "adapter": (folder / "adapter_model.safetensors").read_bytes(), "checkpoint": last.name, "measured": measured,
        "state": {name: array.tobytes() for name, array in state.items()},
    }  # fmt: skip


def test_killed_at_any_moment_it_goes_on_with_the_same_bits(workplace: Path) -> None:
    count, moments = kills(4), random.Random(3)
    n_steps = (30 if count < 10 else 150) * count  # more than fast machines do until the last one is killed
    words = [*WORDS, "--max-steps", str(n_steps)]
    assert called(workplace, [*words, "--output-dir", "whole"]).returncode == 0
    times = [moments.uniform(0.8, 3.0) for _ in range(count)]
    done = killed_and_called(workplace, [*words, "--output-dir", "killed"], times)
    print(f"{done.hits} of {count} processes were killed at work")
    assert done.returncode == 0 and done.hits >= least_hits(count), done.stderr
    whole, killed = outcome(workplace / "whole"), outcome(workplace / "killed")
    assert len([one for one in whole["measured"] if "loss" in one]) == n_steps
    assert killed["measured"] == whole["measured"]
    assert killed == whole
