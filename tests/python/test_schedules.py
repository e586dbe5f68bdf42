"""Learning-rate schedules against those of transformers, step by step."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import lora_c as lc
from lora_c.cli.commands import cli
from lora_c.configs import TrainConfig
from lora_c.configs.schedules import SCHEDULE_OPTIONS
from lora_c.data import Dataset, Sample
from lora_c.errors import ConfigError
from lora_c.training.schedule import SCHEDULES, learning_rate

RECORD = json.loads((Path(__file__).parents[1] / "golden" / "schedules.json").read_text(encoding="utf-8"))


def rates(kind: str, warmup: int, total: int, options: dict[str, Any]) -> list[float]:
    shape = {"peak": RECORD["peak"], "total_steps": total, "warmup_steps": warmup, "kind": kind, "options": options}
    return [learning_rate(step, **shape) for step in range(total)]


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: f"{case['kind']}-{case['options']}")
def test_rates_are_those_of_transformers(case: dict[str, Any]) -> None:
    got = rates(case["kind"], case["warmup"], case["total"], case["options"])
    np.testing.assert_allclose(got, case["rates"], rtol=1e-12, atol=1e-20)


def test_every_schedule_is_compared() -> None:
    assert {case["kind"] for case in RECORD["cases"]} == set(SCHEDULES) - {"constant"}
    assert rates("constant", 20, 200, {}) == rates("constant_with_warmup", 20, 200, {})


def test_the_options_that_are_checked_are_those_of_the_schedules() -> None:
    for kind, schedule in SCHEDULES.items():
        assert set(inspect.signature(schedule).parameters) == {"course", *SCHEDULE_OPTIONS[kind]}


def test_wsd_without_a_number_decays_in_the_last_tenth() -> None:
    got = rates("warmup_stable_decay", 20, 220, {})
    assert got[20:200] == [RECORD["peak"]] * 180 and got[201] < got[200] and got[-1] > 0
    assert got == rates("warmup_stable_decay", 20, 220, {"num_decay_steps": 20})


@pytest.mark.parametrize("kind", sorted(SCHEDULES))
def test_a_run_has_the_rates_of_its_schedule(tiny_model_dir: Path, tmp_path: Path, kind: str) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    data = Dataset([Sample(np.arange(3, 15, dtype=np.int32), np.ones(12, np.float32))] * 8)
    options = {"min_lr_rate": 0.1} if kind == "cosine_with_min_lr" else {}
    config = TrainConfig(
        output_dir=str(tmp_path), method="lora", max_steps=6, warmup_steps=2, learning_rate=1e-3, lr_scheduler_type=kind,
        lr_scheduler_kwargs=options,
    )  # fmt: skip
    result = lc.Trainer(model, data, config).train()
    shape: dict[str, Any] = {"peak": 1e-3, "total_steps": 6, "warmup_steps": 2, "kind": kind, "options": options}
    history = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["learning_rate"] for r in history if "learning_rate" in r] == [learning_rate(i, **shape) for i in range(6)]
    assert result.steps == 6


@pytest.mark.parametrize(("kind", "options", "message"), [
    ("linear", {"num_cycles": 2.0}, "lr_scheduler_kwargs: expected none with linear, got num_cycles"),
    ("cosine_with_min_lr", {}, "lr_scheduler_kwargs: expected min_lr or min_lr_rate with cosine_with_min_lr, got neither"),
    ("cosine", {"power": 2.0}, "lr_scheduler_kwargs: expected .*num_cycles.* with cosine, got power"),
    ("polynomial", {"power": "two"}, "power: expected a number, got 'two'"),
    ("polynomial", {"power": -1.0}, "power: expected more than 0, got -1"),
    ("polynomial", {"lr_end": 1.0}, "lr_end: expected at most learning_rate"),
    ("inverse_sqrt", {"timescale": 0.0}, "timescale: expected more than 0, got 0"),
    ("warmup_stable_decay", {"decay_type": "sharp"}, "decay_type: expected linear, cosine or 1-sqrt, got 'sharp'"),
    ("warmup_stable_decay", {"min_lr_ratio": 2.0}, "min_lr_ratio: expected at most 1, got 2"),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1, "min_lr": 1e-5}, "min_lr: expected one of min_lr and min_lr_rate, got both"),
])  # fmt: skip
def test_options_that_no_schedule_has_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(lr_scheduler_type=kind, lr_scheduler_kwargs=options)


def test_options_stand_on_the_command_line() -> None:
    words = ["--lr-scheduler-type", "warmup_stable_decay", "--lr-scheduler-kwargs", "decay_type=1-sqrt,num_decay_steps=5"]
    done = CliRunner().invoke(cli, ["train", "--model", "demo", "--data", "x.jsonl", *words, "--print-config"])
    assert done.exit_code == 0, done.output
    assert "lr_scheduler_kwargs: {decay_type: 1-sqrt, num_decay_steps: 5}" in done.output
    done = CliRunner().invoke(cli, ["train", "--model", "demo", "--data", "x.jsonl", "--lr-scheduler-kwargs", "power"])
    assert done.exit_code != 0 and "expected NAME=VALUE pairs, got 'power'" in done.output
