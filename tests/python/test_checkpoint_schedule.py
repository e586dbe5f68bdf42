"""When checkpoints are written: as they are asked for, or as often as the time of the run allows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lora_c as lc
from lora_c.data import Dataset, Sample
from lora_c.errors import ConfigError
from lora_c.notices import LoraCWarning
from lora_c.training.checkpoint_schedule import RETRY_SECONDS, CheckpointSchedule
from lora_c.training.trainer import Trainer


def written_after(save_steps: float, steps: int, seconds: float, cost: float) -> tuple[list[int], float]:
    """The steps of a run of so many seconds a step after which one is written, and the share of time that they took."""
    now = [0.0]
    schedule = CheckpointSchedule(save_steps, steps, cost, clock=lambda: now[0])
    found = []
    for done in range(1, steps):
        now[0] += seconds
        if schedule.is_due(done):
            now[0] += cost
            schedule.written(cost)
            found.append(done)
    return found, len(found) * cost / now[0]


def test_by_default_every_tenth_of_the_run() -> None:
    assert lc.TrainConfig().save_steps == 0.1 and lc.TrainConfig().save_total_limit == 2
    assert written_after(0.1, 200, 1.0, 0.1)[0] == list(range(20, 200, 20))
    assert written_after(0.1, 7, 100.0, 0.1)[0] == [1, 2, 3, 4, 5, 6]  # a tenth of it is less than a step
    assert written_after(0.25, 10, 100.0, 0.1)[0] == [3, 6, 9]  # rounded up, as transformers does


@pytest.mark.parametrize(("seconds", "cost"), [(0.01, 0.05), (1.0, 5.0), (1.0, 60.0), (30.0, 20.0)])
def test_a_share_gives_way_to_the_time_of_the_run(seconds: float, cost: float) -> None:
    found, share = written_after(0.1, 1000, seconds, cost)
    assert share <= 0.02 and len(found) >= min(9, int(0.02 * 1000 * seconds / cost))


def test_a_number_of_steps_is_obeyed() -> None:
    assert written_after(3, 10, 0.001, 100.0)[0] == [3, 6, 9]
    assert written_after(0, 10, 1.0, 0.0)[0] == []


def test_what_failed_is_tried_again_sooner_than_the_next_one_is_due() -> None:
    now = [0.0]
    schedule = CheckpointSchedule(100, 1000, 0.1, clock=lambda: now[0])
    assert schedule.is_due(100)
    schedule.failed()
    now[0] += RETRY_SECONDS - 1
    assert not schedule.is_due(101)
    now[0] += 2
    assert schedule.is_due(102)
    schedule.failed()
    assert not schedule.is_due(103) and schedule.is_due(200)
    schedule.written(0.1)
    assert not schedule.is_due(201)


@pytest.mark.parametrize("value", [1.5, -1, float("nan")])
def test_other_numbers_of_steps_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="save_steps: "):
        lc.TrainConfig(save_steps=value)


@pytest.fixture
def trainer(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Trainer]:
    def make(**options: object) -> Trainer:
        model = lc.load_model(tiny_model_dir, progress=False)
        model.add_adapter(r=2)
        rng = np.random.default_rng(0)
        data = Dataset([Sample(rng.integers(3, 60, 12).astype(np.int32), np.ones(12, np.float32)) for _ in range(8)])
        values = {"output_dir": str(tmp_path / "out"), "method": "lora", "max_steps": 6} | options
        return Trainer(model, data, lc.TrainConfig(**values), None)

    return make


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("limit", [1, 2, None])
def test_the_last_state_counts_among_those_that_are_kept(
    trainer: Callable[..., Trainer], tmp_path: Path, limit: int | None
) -> None:
    trainer(save_steps=1, save_total_limit=limit).train()
    assert checkpoints(tmp_path / "out") == [f"checkpoint-{i}" for i in range(7 - max(limit or 6, 2), 7)]


def test_a_run_that_asks_for_none_keeps_its_last_state(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer(save_steps=0).train()
    assert checkpoints(tmp_path / "out") == ["checkpoint-6"]


def test_a_disk_that_is_full_for_a_while_costs_one_line(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real, failed = trainer(save_steps=2), os.fsync, []

    def full(handle: int) -> None:
        if not failed:
            failed.append(handle)
            raise OSError(28, "No space left on device")
        real(handle)

    run.metrics.start([])
    monkeypatch.setattr(run.metrics, "start", lambda history: None)
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("lora_c.training.checkpoint_schedule.RETRY_SECONDS", 0.0)
    with pytest.warns(LoraCWarning, match="no checkpoint of step 2") as told:
        result = run.train()
    assert len(told) == 1 and result.unsaved == []
    assert run.checkpoints == [4, 6] and checkpoints(tmp_path / "out") == ["checkpoint-4", "checkpoint-6"]
