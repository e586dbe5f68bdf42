"""Standard streams that are closed, full or read by nobody: one line at most, and no run is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

START = "from lora_c.cli import main; main()"


@pytest.fixture
def train(tiny_model_dir: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "d.txt").write_text("w3 w4 w5 w6 w7 w8 " * 20)
    words = ["train", "--model", tiny_model_dir, "--data", tmp_path / "d.txt", "--output-dir", tmp_path / "out"]
    return [str(word) for word in [*words, "--max-steps", 3, "--method", "lora"]]


def run(words: list[str], closed: int | None = None, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    before: Callable[[], None] | None = None if closed is None else lambda: os.close(closed)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
    return subprocess.run([sys.executable, "-c", START, *words], preexec_fn=before, check=False, **streams)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream_leads_nowhere(train: list[str], tmp_path: Path, tiny_model_dir: Path, closed: int) -> None:
    assert run(train, closed).returncode == 0
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
    done = run(["generate", "--model", str(tiny_model_dir), "--raw", "--max-new-tokens", "2"], closed)
    assert done.returncode in (0, 1, 2) and b"Traceback" not in done.stderr  # 2: a closed input holds no prompt


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_is_full_is_named(tiny_model_dir: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run(["inspect", str(tiny_model_dir)], stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(b"lora-c: output: expected room for it, got No space left on device; ")


def test_a_log_that_nobody_reads_ends_no_run(train: list[str], tmp_path: Path) -> None:
    code = (
        "import os, sys, lora_c.training.trainer as t\n"
        "real = t.Trainer.train\n"
        "def train(self, *a, **k):\n"
        "    r, w = os.pipe(); os.close(r); os.dup2(w, 2)\n"
        "    return real(self, *a, **k)\n"
        "t.Trainer.train = train\n"
    )
    done = subprocess.run([sys.executable, "-c", code + START, *train], check=False, capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
