"""`lora-c devices`, and `--device` of the commands that compute, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_lines import environment

Run = Callable[..., "subprocess.CompletedProcess[str]"]
TRAIN = "--model demo --data chat.jsonl --max-steps 6 --save-steps 3 --batch-size 2 --lr 1e-2 --samples 1 --val-fraction 0.25"


@pytest.fixture
def run(fake: str, tmp_path: Path) -> Run:
    """Run a command in a folder with data, and check its exit code."""
    records = [[("user", f"What is {i}?"), ("assistant", f"It is {i + 1}.")] for i in range(8)]
    lines = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in records]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def command(line: str, code: int = 0, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "lora_c", *line.split()]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment(), input=typed, capture_output=True, text=True, encoding="utf-8", timeout=300
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return command


def test_devices_are_listed(run: Run) -> None:
    said = run("devices").stdout
    assert [line.split()[0] for line in said.splitlines() if line[0] != " "] == ["cpu", "fake", "fake:broken"]
    assert "cannot be used: fake:broken: expected a device that works, got none; use fake" in " ".join(said.split())
    found = json.loads(run("devices --json").stdout)["devices"]
    assert [(device["name"], device["usable"]) for device in found] == [("cpu", True), ("fake", True), ("fake:broken", False)]


@pytest.mark.parametrize("command", ["generate --model demo Hello", "chat --model demo", "eval --model demo --data chat.jsonl",
                                     "bench", f"train {TRAIN} --output-dir out"])  # fmt: skip
def test_devices_that_cannot_be_used(run: Run, tmp_path: Path, command: str) -> None:
    for name, code, line in (
        ("abacus", 2, "device: expected one of cpu, fake, fake:broken, got abacus; `lora-c devices` lists them"),
        ("fake:broken", 1, "fake:broken: expected a device that works, got none; use fake"),
    ):
        assert run(f"{command} --device {name}", code, typed="").stderr.splitlines()[-1].endswith(line)
    assert not (tmp_path / "out").exists()
    assert "--device NAME" in run(f"{command.split()[0]} --help").stdout


def test_a_run_is_the_same_and_goes_on_elsewhere(run: Run, tmp_path: Path) -> None:
    for device in ("cpu", "fake"):
        said = run(f"train {TRAIN} --output-dir {device} --device {device}").stderr
        assert ("device    fake" in said) == (device == "fake") and "forecast" in said
        record = json.loads((tmp_path / device / "run.json").read_text(encoding="utf-8"))
        assert record["machine"]["device"] == device
        assert yaml.safe_load((tmp_path / device / "config.yaml").read_text(encoding="utf-8"))["device"] == device
    adapter = (tmp_path / "cpu/adapter_model.safetensors").read_bytes()
    assert (tmp_path / "fake/adapter_model.safetensors").read_bytes() == adapter
    (tmp_path / "fake/adapter_model.safetensors").unlink()
    run("train --config fake/config.yaml --resume fake/checkpoint-3 --device cpu")
    assert (tmp_path / "fake/adapter_model.safetensors").read_bytes() == adapter
    losses = [json.loads(run(f"eval --run cpu --data chat.jsonl --device {d} --json").stdout)["loss"] for d in ("cpu", "fake")]
    answers = [run(f"generate --run cpu --device {device} --max-new-tokens 8 Hello").stdout for device in ("cpu", "fake")]
    chats = [run(f"chat --run cpu --device {d} --max-new-tokens 8", typed="Hello\nAgain\n").stdout for d in ("cpu", "fake")]
    assert losses[0] == losses[1] and answers[0] == answers[1] and chats[0] == chats[1] != ""


def test_a_key_of_a_file_and_a_step_that_is_timed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("device: fake\nsteps: 1\nbatch: 1\nlength: 16\n", encoding="utf-8")
    found = json.loads(run("bench --config run.yaml --json").stdout)
    assert found["device"] == "fake" and found["peak_memory_bytes"] > 0
    assert "device fake" in run("bench --config run.yaml --profile").stdout


def test_a_run_that_cannot_fit_on_a_device_is_refused_before_loading(run: Run, shim: str, tmp_path: Path) -> None:
    said = run(f"train {TRAIN} --lora-r 100000 --output-dir out --device {shim}", 1).stderr
    assert "memory: expected a run within the 8,192.0 MiB that are free, got" in said and "a smaller adapter (--lora-r" in said
    assert "loading" not in said and not (tmp_path / "out").exists()
