"""The maintainer's scripts run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lora_c as lc

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


def test_a_base_model_is_trained_from_scratch(tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = [sys.executable, str(TOOLS / "train_base_model.py"), "--out", str(out), "--stories", "64", "--steps", "3"]
    environment = os.environ | {"PYTHONPATH": str(Path(lc.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    model, shipped = lc.load_model(out), lc.load_model("demo")
    assert model.config == shipped.config and f"{model.num_parameters():,} parameters" in done.stdout
    text = "Mia put three red apples in the basket."
    assert model.tokenizer.encode(text) == shipped.tokenizer.encode(text)
    assert model.loss(text) < 7  # three steps from random: near log(512)


def said_in(folder: Path, program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("asked", "archs"),
    [
        ("0", "[]"),
        ("1", "['75', '80', '86', '89', '90a', '100', '120']"),
        ("89,75", "['75', '89']"),
        ("90a", "['90a']"),
        ("maybe", "LORA_C_CUDA: expected auto, 0, 1, or some of 75,80,86,89,90a,100,120, got 'maybe'"),
        ("89,", "LORA_C_CUDA: expected auto, 0, 1, or some of 75,80,86,89,90a,100,120, got '89,'"),
    ],
)
def test_what_the_plug_in_is_built_for(asked: str, archs: str) -> None:
    program = "import build_cuda as b\ntry: print(b.asked_archs(%r))\nexcept b.BuildError as e: print(e)"
    assert said_in(TOOLS, program % asked) == archs


def test_a_gpu_runs_the_checks_that_the_shim_runs() -> None:
    found = said_in(ROOT / "benchmarks" / "gpu", "import part_ops; print(*part_ops.families())").split()
    listed = subprocess.run(["make", "-s", "list-checks"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(found) == set(listed) - {"cuda_faults", "cuda_graphs", "device_offsets"} | {"decoder"}
    assert {"device_linear", "attention_devices"} < set(found)
