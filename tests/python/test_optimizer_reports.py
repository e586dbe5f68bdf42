"""What is said of a run's optimizer: its share of the memory forecast, a paged state that lies in memory, the model card."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c.data import Dataset, Sample
from lora_c.files import file_systems
from lora_c.runs.model_card import model_card, optimizer_row
from lora_c.runs.record import describe_run
from lora_c.training.memory import forecast

# Where the folder of temporary files is a tmpfs; the tests of the message see it themselves.
pytestmark = pytest.mark.filterwarnings("ignore:paged_dir. .* lies in memory:lora_c.notices.LoraCWarning")


@pytest.fixture
def trainer(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., lc.Trainer]:
    data = Dataset([Sample(np.arange(3, 15, dtype=np.int32), np.ones(12, np.float32))] * 4)

    def make(out: str = "out", lora: dict[str, Any] | None = None, **train: Any) -> lc.Trainer:
        model = lc.load_model(tiny_model_dir, progress=False, trainable="none" if lora else "full")
        if lora:
            model.add_adapter(lc.LoraConfig(**lora))
        config = {"output_dir": str(tmp_path / out), "method": "lora" if lora else "full", "max_steps": 2} | train
        return lc.Trainer(model, data, lc.TrainConfig(**config))

    return make


@pytest.mark.usefixtures("on_cpu")  # where a paged state lies in files of the host
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "ext4"])
def test_a_state_that_is_paged_into_memory_is_told_once(
    trainer: Callable[..., lc.Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    device = tmp_path.stat().st_dev
    table = tmp_path / "mountinfo"
    lines = [
        f"21 1 {device}:0 / /x rw - proc x rw",
        f"22 1 {os.major(device)}:{os.minor(device)} / /y rw shared:1 - {kind} y rw",
    ]
    table.write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(file_systems, "_MOUNTS", table)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(optim="paged_adamw_32bit", paged_dir=str(tmp_path)).train()
        trainer("other", optim="adamw_torch").train()
    said = [str(w.message) for w in caught]
    assert len(said) == (kind != "ext4")
    assert all(f"paged_dir: {tmp_path} lies in memory" in text and text.endswith("train with adamw_torch") for text in said)


def test_the_file_system_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path("/dev/shm")
    if os.path.ismount(shared) and f" {shared} tmpfs " in Path("/proc/mounts").read_text():
        assert file_systems.is_in_memory(shared)
    assert not file_systems.is_in_memory(Path("/proc"))
    assert not file_systems.is_in_memory(tmp_path / "none")
    monkeypatch.setattr(file_systems, "_MOUNTS", tmp_path / "none")
    assert not file_systems.is_in_memory(shared)


ONE_STEP = """
import sys
import numpy as np
import lora_c as lc
from lora_c.training.optimizers import work_bytes
lc.set_num_threads(1)
shape = tuple(map(int, sys.argv[1:]))
matrices = [lc.Parameter(np.ones(s, np.float32), name="w") for s in (shape, (8, 8))]
optimizer = lc.Muon(matrices, ns_steps=1)
before = lc.memory_report()["scratch"]["live"]
optimizer.step()
grown = lc.memory_report()["scratch"]["live"] - before
print(grown, work_bytes(lc.TrainConfig(optim="muon"), matrices), work_bytes(lc.TrainConfig(), matrices))
"""


@pytest.mark.parametrize("shape", [(1100, 1500), (1501, 901)])
def test_the_forecast_knows_the_work_matrices_of_muon(shape: tuple[int, int]) -> None:
    """In a process of its own: these buffers stay as large as they have been."""
    command = [sys.executable, "-c", ONE_STEP, *map(str, shape)]
    grown, told, of_adamw = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    total = 8  # bytes of the sum of squares, which an optimizer has from its beginning
    assert of_adamw == total
    assert told >= 8 * (shape[0] * shape[1] + min(shape) ** 2)
    assert 0 <= grown + total - told <= 1 << 20  # tiles of a thread, which the scratch of a pass holds, too


def test_the_forecast_of_a_run_adds_them(trainer: Callable[..., lc.Trainer]) -> None:
    plain, muon = (forecast(trainer(optim, optim=optim)) for optim in ("adamw_torch", "muon"))
    largest, square = 44 * 32, 32 * 32  # gate_proj: embedding and head are AdamW's
    assert muon.scratch - plain.scratch == 4 * (3 * largest + 2 * square)


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({}, ("AdamW", "betas 0.9 and 0.999, weight decay 0")),
        (
            {"optim": "paged_adamw_8bit", "optim_args": {"min_8bit_size": 64}, "weight_decay": 0.1, "adam_beta2": 0.95},
            ("optimizer", "paged_adamw_8bit: betas 0.9 and 0.95, min_8bit_size 64, weight decay 0.1"),
        ),
        (
            {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true", "weight_decay": 0.01},
            ("optimizer", "sgd: momentum 0.9, nesterov True, weight decay 0.01"),
        ),
        (
            {"optim": "lion_32bit", "optim_args": {"beta2": 0.98}},
            ("optimizer", "lion: betas 0.9 and 0.98, weight decay 0"),
        ),
        (
            {"optim": "muon", "optim_args": {"ns_steps": 4}},
            ("optimizer", "muon: betas 0.9 and 0.999, ns_steps 4, weight decay 0"),
        ),
        (
            {"loraplus_lr_ratio": 16, "neftune_noise_alpha": 5},
            ("AdamW", "betas 0.9 and 0.999, weight decay 0, LoRA+ ratio 16, NEFTune alpha 5"),
        ),
    ],
)
def test_the_card_names_the_optimizer(
    trainer: Callable[..., lc.Trainer], tmp_path: Path, options: dict[str, Any], row: tuple[str, str]
) -> None:
    made = trainer(lora={"r": 2}, **{"weight_decay": 0.0} | options)
    assert optimizer_row(made.config) == row
    card = model_card(tmp_path, made, describe_run(made, "base"))
    assert f"| {row[0]} | {row[1]} |" in card.splitlines()
