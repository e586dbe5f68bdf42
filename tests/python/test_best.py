"""The best evaluation of a run: early stopping, load_best_model_at_end, and both of them when it is resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c.data import Dataset, Sample
from lora_c.errors import ConfigError
from lora_c.notices import LoraCWarning
from lora_c.runs.record import describe_result
from lora_c.training.best import Best, best_of, greater_is_better, metric_name
from lora_c.training.train_result import TrainResult
from lora_c.training.trainer import Trainer

# Training data that says the opposite of the held-out data: its loss falls at first and then rises.
STEPS = 12


def samples(n: int, seed: int, low: int = 3, high: int = 60) -> Dataset:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(low, high, 12).astype(np.int32) for _ in range(n)]
    return Dataset([Sample(i, np.ones(len(i), np.float32)) for i in ids])


@pytest.fixture
def trainer(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Trainer]:
    def make(**options: Any) -> Trainer:
        model = lc.load_model(tiny_model_dir, progress=False)
        model.add_adapter(r=4)
        config = lc.TrainConfig(**{
            "output_dir": str(tmp_path / "out"), "method": "lora", "max_steps": STEPS, "learning_rate": 3e-2, "eval_steps": 1,
            "per_device_train_batch_size": 2, "save_steps": 0,
        } | options)  # fmt: skip
        return Trainer(model, samples(4, 0), config, samples(4, 1))

    return make


def arrays(trainer: Trainer) -> list[np.ndarray[Any, Any]]:
    return [np.array(p.data) for p in trainer.parameters]


def test_the_best_of_a_history() -> None:
    def history(*values: float) -> list[dict[str, Any]]:
        return [{"step": 0, "eval_loss": 0.5}, *({"step": i, "eval_loss": value} for i, value in enumerate(values, 1))]

    config = lc.TrainConfig(early_stopping_patience=2)
    assert best_of(config, [{"step": 1, "loss": 3.0}]) is None
    assert best_of(config, history(3.0, 2.0, 2.5)) == Best("eval_loss", 2, 2.0, 1)
    assert best_of(config, history(3.0, 2.0, 2.0, 2.1)) == Best("eval_loss", 2, 2.0, 2)
    threshold = lc.TrainConfig(early_stopping_patience=2, early_stopping_threshold=0.5)
    # As transformers does: a smaller gain is the best all the same, and does not end the count.
    assert best_of(threshold, history(3.0, 2.0, 1.8, 1.6)) == Best("eval_loss", 4, 1.6, 2)
    accuracy = lc.TrainConfig(load_best_model_at_end=True, metric_for_best_model="accuracy")
    assert greater_is_better(accuracy) and not greater_is_better(config) and metric_name(accuracy) == "eval_accuracy"
    found = best_of(
        accuracy, [{"step": 2, "eval_loss": 1.0, "eval_accuracy": 0.5}, {"step": 4, "eval_loss": 2.0, "eval_accuracy": 0.7}]
    )
    assert found == Best("eval_accuracy", 4, 0.7, 0)
    with pytest.raises(ConfigError, match=r"metric_for_best_model: expected a metric of the evaluation \(loss\), got 'f1'"):
        best_of(lc.TrainConfig(load_best_model_at_end=True, metric_for_best_model="f1"), history(1.0))


def test_a_run_ends_with_its_best_parameters(trainer: Callable[..., Trainer]) -> None:
    run = trainer(load_best_model_at_end=True)
    states: dict[int, list[np.ndarray[Any, Any]]] = {}

    class Keep(lc.Callback):
        def on_step(self, state: lc.TrainerState) -> None:
            states[state.step] = arrays(run)

    run.callbacks.given.append(Keep())
    states[0] = arrays(run)
    result = run.train()
    losses = {r["step"]: r["eval_loss"] for r in run.history if "eval_loss" in r}
    best = min(losses, key=lambda step: losses[step])
    assert 0 < best < STEPS, "the held-out loss neither falls nor rises: another learning rate"
    assert result.best == Best("eval_loss", best, losses[best], STEPS - best) and not result.interrupted
    assert all(np.array_equal(a, b) for a, b in zip(arrays(run), states[best], strict=True))
    assert run.evaluate() == losses[best]
    assert {p.name for p in run.output_dir.glob("checkpoint-*")} >= {f"checkpoint-{best}", f"checkpoint-{STEPS}"}
    assert len(run.checkpoints) <= 3  # the limit of two, and the best one


def test_early_stopping_ends_a_run_that_counts_as_finished(trainer: Callable[..., Trainer]) -> None:
    whole = trainer(load_best_model_at_end=True)
    whole.train()
    best = whole.result.best if whole.result else None
    assert best is not None
    run = trainer(early_stopping_patience=2, load_best_model_at_end=True, output_dir=str(whole.output_dir) + "-early")
    result = run.train()
    assert result.steps == best.step + 2 < STEPS and not result.interrupted and result.best is not None
    assert result.best.step == best.step and result.best.since == 2
    with pytest.raises(ConfigError, match="got one that has done all"):
        run.train()
    # Resumed, it judges by the same history and ends at once; with more patience it goes on.
    again = trainer(early_stopping_patience=2, load_best_model_at_end=True, output_dir=str(run.output_dir))
    assert again.train(resume=True).steps == result.steps
    assert all(np.array_equal(a, b) for a, b in zip(arrays(again), arrays(run), strict=True))
    longer = trainer(early_stopping_patience=50, load_best_model_at_end=True, output_dir=str(run.output_dir))
    assert longer.train(resume=True).steps == STEPS
    assert all(np.array_equal(a, b) for a, b in zip(arrays(longer), arrays(whole), strict=True))


def test_a_best_checkpoint_that_is_gone_is_told(trainer: Callable[..., Trainer]) -> None:
    import shutil

    run = trainer(load_best_model_at_end=True)

    class Remove(lc.Callback):
        def on_step(self, state: lc.TrainerState) -> None:
            if state.step == STEPS:
                for folder in run.output_dir.glob("checkpoint-*"):
                    shutil.rmtree(folder)

    run.callbacks.given.append(Remove())
    with pytest.warns(LoraCWarning, match="the model keeps its last state, the best one cannot be read"):
        result = run.train()
    assert not result.ends_with_best and result.eval_loss == run.evaluate()


def interrupted(run: Trainer, at: int) -> None:
    class Stop(lc.Callback):
        def on_step(self, state: lc.TrainerState) -> None:
            if state.step == at:
                state.stop()

    run.callbacks.given.append(Stop())
    assert run.train().interrupted


def test_the_best_is_taken_along_into_another_folder(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    whole = trainer(load_best_model_at_end=True)
    best = whole.train().best
    assert best is not None and best.step + 1 < STEPS
    first = trainer(load_best_model_at_end=True, output_dir=str(tmp_path / "first"))
    interrupted(first, best.step + 1)
    # There, another run has left a checkpoint of the same step.
    other = trainer(output_dir=str(tmp_path / "second"), seed=7, save_steps=1, save_total_limit=None)
    other.train()
    assert (other.output_dir / f"checkpoint-{best.step}").is_dir()
    second = trainer(load_best_model_at_end=True, output_dir=str(tmp_path / "second"))
    result = second.train(resume=first.output_dir / f"checkpoint-{best.step + 1}")
    assert result.ends_with_best and result.best is not None and result.best.step == best.step
    assert all(np.array_equal(a, b) for a, b in zip(arrays(second), arrays(whole), strict=True))
    assert result.eval_loss == second.evaluate() == best.value


def test_a_checkpoint_of_another_run_is_not_taken_for_the_best(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    import shutil

    run = trainer(load_best_model_at_end=True)
    best = run.train().best
    assert best is not None
    other = trainer(output_dir=str(tmp_path / "other"), seed=7, save_steps=1, save_total_limit=None)
    other.train()
    again = trainer(load_best_model_at_end=True)
    there = again.output_dir / f"checkpoint-{best.step}"
    shutil.rmtree(there)
    shutil.copytree(other.output_dir / f"checkpoint-{best.step}", there)
    with pytest.warns(LoraCWarning, match="expected a checkpoint of this run, got one of another"):
        result = again.train(resume=run.output_dir / f"checkpoint-{STEPS}")
    assert not result.ends_with_best and result.eval_loss == again.evaluate() != best.value


def test_measures_and_loss_are_of_one_evaluation() -> None:
    records = [{"step": 1, "eval_loss": 0.5, "eval_accuracy": 0.9}, {"step": 2, "eval_loss": 0.8, "eval_accuracy": 0.4}]
    measured: dict[str, Any] = {"steps": 2, "tokens_per_second": 1.0, "elapsed_seconds": 1.0, "peak_memory_bytes": 1}
    taken = TrainResult.of(records, best=Best("eval_loss", 1, 0.5, 1), ends_with_best=True, **measured)
    found = describe_result(taken)
    assert (found["eval_loss"], found["eval_accuracy"], found["ends_with_best"]) == (0.5, 0.9, True)
    last = describe_result(TrainResult.of(records, best=Best("eval_loss", 1, 0.5, 1), **measured))
    assert (last["eval_loss"], last["eval_accuracy"], last["ends_with_best"]) == (0.8, 0.4, False)


@pytest.mark.parametrize(("options", "message"), [
    ({"early_stopping_patience": 2, "eval_steps": 0}, "early_stopping_patience: expected eval_steps beside it"),
    ({"early_stopping_threshold": 0.1}, "early_stopping_threshold: expected early_stopping_patience beside it"),
    ({"metric_for_best_model": "loss"}, "metric_for_best_model: expected load_best_model_at_end or early_stopping_patience"),
    ({"greater_is_better": True}, "greater_is_better: expected load_best_model_at_end or early_stopping_patience"),
    ({"max_skipped_steps": 2}, "max_skipped_steps: expected nonfinite_steps skip or skip_grad_norm beside it"),
])  # fmt: skip
def test_options_that_would_do_nothing_are_refused(
    trainer: Callable[..., Trainer], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(**options)


def test_they_need_held_out_data(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=4)
    for options in ({"load_best_model_at_end": True}, {"early_stopping_patience": 1, "eval_steps": 1}):
        config = lc.TrainConfig(output_dir=str(tmp_path), method="lora", **options)
        with pytest.raises(ConfigError, match="held-out data beside it, got none"):
            Trainer(model, samples(4, 0), config)
