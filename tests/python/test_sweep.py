"""`lora-c sweep`: which rates go on, that trials are the runs they would be alone, and that a search survives its end."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import called, interrupted, killed_and_called, kills, least_hits, make_workplace

from lora_c import TrainConfig, Trainer, load_model
from lora_c.cli.sweep import table_lines
from lora_c.data import Dataset, Sample
from lora_c.errors import CheckpointError, ConfigError, DivergenceError
from lora_c.runs.sweep_record import SweepRecord
from lora_c.training.halving import Rung, best_of, learning_rates, rungs
from lora_c.training.sweep import sweep

RATES = [1e-4, 1e-3, 1e-2, 1e-1]


def samples(n: int = 8, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset([Sample(rng.integers(3, 60, 12).astype(np.int32), np.ones(12, np.float32)) for _ in range(n)])


@pytest.fixture
def make(tiny_model_dir: Path) -> Callable[..., Trainer]:
    """Makes a trial; `made` are the rates that it was asked for, options change all of them."""

    def trainer(rate: float, folder: Path, *callbacks: Any, **options: Any) -> Trainer:
        trainer.made.append(rate)  # type: ignore[attr-defined]
        model = load_model(tiny_model_dir, progress=False)
        model.add_adapter(r=2)
        values = {"max_steps": 9, "per_device_train_batch_size": 2, "method": "lora"} | trainer.options | options
        config = TrainConfig(output_dir=str(folder), learning_rate=rate, **values)
        return Trainer(model, samples(), config, trainer.eval_data, callbacks=callbacks)

    trainer.made, trainer.options, trainer.eval_data = [], {}, samples(2, 1)  # type: ignore[attr-defined]
    return trainer


# --- which go on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "steps", "factor", "expected"), [
    (9, 90, 3, [(10, 9), (30, 3), (90, 1)]), (7, 100, 3, [(12, 7), (34, 3), (100, 1)]),
    (8, 8, 2, [(1, 8), (2, 4), (4, 2), (8, 1)]), (2, 5, 3, [(2, 2), (5, 1)]),
])  # fmt: skip
def test_rungs(n: int, steps: int, factor: int, expected: list[tuple[int, int]]) -> None:
    assert rungs(n, steps, factor) == [Rung(*pair) for pair in expected]


def test_rates_are_a_grid_of_equal_quotients() -> None:
    assert learning_rates(1e-5, 1e-1, 5) == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert learning_rates(1e-5, 1e-2, 7) == [1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2]


@pytest.mark.parametrize(("work", "name"), [
    (lambda: learning_rates(1e-3, 1e-3, 3), "lr_max"), (lambda: learning_rates(0.0, 1e-3, 3), "lr_min"),
    (lambda: learning_rates(math.nan, 1e-3, 3), "lr_min"), (lambda: learning_rates(1e-5, math.inf, 3), "lr_max"),
    (lambda: learning_rates(1e-5, math.nan, 3), "lr_max"),
    (lambda: learning_rates(1e-3, 1.001e-3, 9), "trials"), (lambda: learning_rates(1e-3, 1e-2, 1), "trials"),
    (lambda: rungs(9, 8, 3), "max_steps: expected 9 steps or more for 9 rates"), (lambda: rungs(9, 90, 1), "factor"),
])  # fmt: skip
def test_what_makes_no_search_is_refused(work: Callable[[], Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}"):
        work()


def test_the_best_are_the_least_and_the_lower_of_two_that_agree() -> None:
    losses = {1e-4: 2.0, 1e-3: 1.0, 1e-2: 1.0, 1e-1: None}
    assert best_of(losses, 1) == [1e-3] and best_of(losses, 2) == [1e-3, 1e-2] and best_of(losses, 3) == [1e-4, 1e-3, 1e-2]


# --- a search ------------------------------------------------------------------------------------------------------------


def test_a_trial_has_the_losses_of_a_run_that_was_never_stopped(make, tmp_path: Path) -> None:
    said: list[tuple[float, int, float | None]] = []
    record = sweep(make, RATES, tmp_path / "s", report=lambda *one: said.append(one))
    assert len(make.made) == 7  # a base for each measurement and no more
    assert record.rungs == [{"steps": 1, "trials": 4}, {"steps": 3, "trials": 2}, {"steps": 9, "trials": 1}]
    whole = make(record.chosen, tmp_path / "whole", eval_steps=1)
    whole.train()
    held_out = {r["step"]: r["eval_loss"] for r in whole.history if "eval_loss" in r}
    assert record.losses[record.chosen] == {step: held_out[step] for step in (1, 3, 9)}
    assert len(said) == 7 and [len(losses) for losses in record.losses.values()].count(1) == 2
    best = sorted(RATES, key=lambda rate: record.losses[rate][1])[:2]  # type: ignore[arg-type, return-value]
    assert sorted(best) == [rate for rate in RATES if 3 in record.losses[rate]]


def test_what_was_measured_is_not_measured_again(make, tmp_path: Path) -> None:
    record = sweep(make, RATES, tmp_path / "s")
    written = (tmp_path / "s/sweep.json").read_bytes()
    make.made.clear()
    again = sweep(make, RATES, tmp_path / "s")
    assert make.made == RATES[:1] and again == record  # one, to compare the options
    assert (tmp_path / "s/sweep.json").read_bytes() == written


def test_a_measurement_that_is_lost_is_made_again_of_the_checkpoint(make, tmp_path: Path) -> None:
    record = sweep(make, RATES, tmp_path / "s")
    file = tmp_path / "s/sweep.json"
    written = file.read_bytes()
    values = json.loads(written)
    trial = next(one for one in values["trials"] if one["learning_rate"] == record.chosen)
    trial["losses"].pop()  # of the last rung
    file.write_text(json.dumps(values))
    before = (tmp_path / "s" / trial["folder"] / "metrics.jsonl").read_bytes()
    sweep(make, RATES, tmp_path / "s")
    assert file.read_bytes() == written and (tmp_path / "s" / trial["folder"] / "metrics.jsonl").read_bytes() == before


def test_each_measurement_is_kept_at_once(make, tmp_path: Path) -> None:
    def broken(rate: float, folder: Path, *callbacks: Any) -> Trainer:
        if rate == RATES[2]:
            raise OSError("the power is gone")
        return make(rate, folder, *callbacks)

    with pytest.raises(OSError, match="power"):
        sweep(broken, RATES, tmp_path / "s")
    kept = SweepRecord.read(tmp_path / "s")
    assert kept is not None and [len(losses) for losses in kept.losses.values()] == [1, 1, 0, 0]


def test_another_search_in_the_folder_is_refused_by_name(make, tmp_path: Path) -> None:
    sweep(make, RATES, tmp_path / "s")
    make.options = {"seed": 3}
    with pytest.raises(ConfigError, match=r"output_dir: .*sweep.json' of another one \(seed\)"):
        sweep(make, RATES, tmp_path / "s")
    make.options = {}
    with pytest.raises(ConfigError, match=r"of another one \(rates\)"):
        sweep(make, [*RATES[:3], 2e-1], tmp_path / "s")
    make.eval_data = samples(2, 7)
    with pytest.raises(ConfigError, match=r"of another one \(held-out data \(digest\)\)"):
        sweep(make, RATES, tmp_path / "s")
    make.made.clear()
    assert set(sweep(make, RATES, tmp_path / "s", overwrite=True).losses) == set(RATES) and set(make.made) == set(RATES)


def test_rates_that_diverge_come_last(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Trainer.evaluate
    wild = {1e-3, 1e-2}

    def evaluate(self: Trainer, *data: Any) -> float:
        if self.config.learning_rate in wild:
            raise DivergenceError("expected a finite loss, got nan")
        return plain(self, *data)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    record = sweep(make, RATES, tmp_path / "s")
    assert record.losses[1e-3] == {1: None} and record.chosen in (1e-4, 1e-1)
    assert any(line.split() == ["0.001", "diverged"] for line in table_lines(record))
    wild |= set(RATES)
    with pytest.raises(DivergenceError, match="got 4 runs that diverged; give lower rates"):
        sweep(make, RATES, tmp_path / "t")


def test_without_held_out_data_nothing_is_compared(make, tmp_path: Path) -> None:
    make.eval_data = None
    with pytest.raises(ConfigError, match="eval_data: expected held-out data, by which rates are compared"):
        sweep(make, RATES, tmp_path / "s")


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"format": 2}', '{"format": 1, "trials": 3}'])
def test_a_damaged_record_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    (tmp_path / "sweep.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"sweep.json: expected .*; remove it to begin anew"):
        SweepRecord.read(tmp_path)


# --- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("w"))


WORDS = "sweep --model model --data chat.jsonl --val-fraction 0.2 --max-steps 9 --trials 4 --lora-dropout 0.1".split()


def parameters(folder: Path) -> dict[str, bytes]:
    """The state of every trial, without the name of the run."""
    from safetensors.numpy import load_file

    files = sorted(folder.glob("lr-*/checkpoint-*/training_state.safetensors"))
    latest = {file.parts[-3]: file for file in sorted(files, key=lambda file: int(file.parts[-2].rpartition("-")[2]))}
    return {name: b"".join(array.tobytes() for _, array in sorted(load_file(file).items())) for name, file in latest.items()}


def test_killed_at_any_moment_it_goes_on_with_the_same_bits(workplace: Path) -> None:
    count, moments = kills(4), random.Random(5)
    words = [*WORDS, "--max-steps", str(9 if count < 10 else 90 * count)]
    whole = called(workplace, [*words, "--output-dir", "whole"])
    assert whole.returncode == 0, whole.stderr
    times = [moments.uniform(0.6, 2.0 if count < 10 else 4.0) for _ in range(count)]
    done = killed_and_called(workplace, [*words, "--output-dir", "killed"], times)
    print(f"{done.hits} of {count} processes were killed at work")
    assert done.returncode == 0 and done.hits >= least_hits(count), done.stderr
    assert (workplace / "killed/sweep.json").read_bytes() == (workplace / "whole/sweep.json").read_bytes()
    assert parameters(workplace / "killed") == parameters(workplace / "whole") and len(parameters(workplace / "whole")) == 4
    assert (workplace / "whole/sweep.png").read_bytes()[:4] == b"\x89PNG"
    chosen = json.loads((workplace / "whole/sweep.json").read_text())["learning_rate"]
    lines = whole.stdout.splitlines()
    assert lines[-1] == f"chosen    {chosen:g}: the same options with lora-c train ... --learning-rate {chosen:g}"
    assert [line.endswith("chosen") for line in lines].count(True) == 1


def test_a_signal_says_how_to_go_on(workplace: Path) -> None:
    done = interrupted(workplace, [*WORDS, "--output-dir", "stopped", "--max-steps", "9000"], "step ")
    assert done.returncode == 130 and "go on     by the same command" in done.stderr


def test_settings_of_a_run_are_settings_of_a_sweep(workplace: Path) -> None:
    words = "sweep --config run/config.yaml --output-dir c1 --val-fraction 0.2 --max-steps 3 --trials".split()
    done = called(workplace, [*words, "2"])
    assert done.returncode == 0, done.stderr
    assert "is the last rate on its side" in done.stderr  # of two, one is always
    again = called(workplace, [*words, "3"])
    assert again.returncode == 2 and "--output-dir: expected a free folder or one of this sweep" in again.stderr


@pytest.mark.parametrize(("words", "code", "said"), [
    ("--data chat.jsonl", 2, "--eval-data: expected held-out data"), ("--data chat.jsonl --lr 1e-3", 2, "--lr"),
    ("--data chat.jsonl --val-fraction 0.2 --lr-min 1 --lr-max 0.1", 2, "--lr-max: expected a finite rate above"),
    ("--data chat.jsonl --val-fraction 0.2 --lr-min 1e-320 --lr-max 1e300", 2, "--lr-max: expected a finite rate above"),
    ("--data chat.jsonl --val-fraction 0.2 --trials 1", 2, "--trials"),
    ("--data chat.jsonl --val-fraction 0.2 --trials 90 --max-steps 3", 2, "--max-steps: expected 243 steps or more"),
    ("--data nowhere --val-fraction 0.2", 1, "nowhere"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(workplace: Path, words: str, code: int, said: str) -> None:
    done = called(workplace, ["sweep", "--model", "model", "--output-dir", "wrong", *words.split()])
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (workplace / "wrong/sweep.json").exists()
