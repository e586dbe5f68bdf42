"""The maintainer's scripts run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lora_c as lc

TOOLS = Path(__file__).resolve().parents[2] / "tools"


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
