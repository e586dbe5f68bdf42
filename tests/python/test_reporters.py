"""`report_to`: TensorBoard's event files and runs of Weights & Biases, and what happens when they fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_lines import called, environment, make_workplace

from lora_c import TrainConfig, Trainer, load_model
from lora_c.data import Dataset, Sample
from lora_c.errors import ConfigError
from lora_c.notices import LoraCWarning
from lora_c.training.reporting import values_of


def samples(n: int = 8, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset([Sample(rng.integers(3, 60, 12).astype(np.int32), np.ones(12, np.float32)) for _ in range(n)])


@pytest.fixture
def make(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Trainer]:
    def trainer(*callbacks: Any, out: str = "out", **options: Any) -> Trainer:
        model = load_model(tiny_model_dir, progress=False)
        model.add_adapter(r=2)
        values = {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "eval_steps": 2} | options
        config = TrainConfig(output_dir=str(tmp_path / out), **values)
        return Trainer(model, samples(), config, samples(2, 1), callbacks=callbacks)

    return trainer


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    found = accumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


# --- TensorBoard ---------------------------------------------------------------------------------------------------------


def test_tensorboard_reads_every_step_and_evaluation(make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer = make(report_to="tensorboard")
    trainer.train()
    found = scalars(tmp_path / "out/tensorboard")
    losses = [(r["step"], r["loss"]) for r in trainer.history if "loss" in r]
    held_out = [(r["step"], r["eval_loss"]) for r in trainer.history if "eval_loss" in r]
    for tag, expected in (("train/loss", losses), ("eval/loss", held_out)):
        assert [step for step, _ in found[tag]] == [step for step, _ in expected]
        assert [value for _, value in found[tag]] == [np.float32(value) for _, value in expected]
    assert len(losses) == 4
    assert {"train/learning_rate", "train/grad_norm", "train/epoch", "train/tokens_per_second"} <= found.keys()
    assert "train/step" not in found


def test_steps_that_a_resumed_run_takes_again_are_drawn_once(make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    make(report_to="tensorboard").train()
    make(report_to="tensorboard").train(resume=tmp_path / "out/checkpoint-2")
    assert len(list((tmp_path / "out/tensorboard").iterdir())) == 2
    assert [step for step, _ in scalars(tmp_path / "out/tensorboard")["train/loss"]] == [1, 2, 3, 4]


def test_a_run_that_was_stopped_and_goes_on_is_drawn_whole(make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    class Stop:
        def on_step(self, state: Any) -> None:
            if state.step == 2:
                state.stop()

    trainer = make(Stop(), report_to="tensorboard")
    trainer.train()
    trainer.train()
    assert [step for step, _ in scalars(tmp_path / "out/tensorboard")["train/loss"]] == [1, 2, 3, 4]


def test_logging_steps_thin_out_steps_and_no_evaluation(make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    make(report_to=["tensorboard"], logging_steps=3).train()
    found = scalars(tmp_path / "out/tensorboard")
    assert [step for step, _ in found["train/loss"]] == [3, 4] and [step for step, _ in found["eval/loss"]] == [0, 2, 4]


def test_a_folder_of_ones_own(make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lora_c import TensorBoardCallback

    make(TensorBoardCallback(tmp_path / "elsewhere", every=2)).train()
    assert [step for step, _ in scalars(tmp_path / "elsewhere")["train/loss"]] == [2, 4]
    with pytest.raises(ConfigError, match="every: expected a number of steps, 1 or more, got 0"):
        TensorBoardCallback(every=0)


def test_a_disk_that_refuses_is_told_once_and_the_run_goes_on(make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tensorboard").write_text("a file, where the folder should be")
    with pytest.warns(LoraCWarning, match="tensorboard: no more of this run is reported") as told:
        result = make(report_to="tensorboard").train()
    assert result.steps == 4 and len([one for one in told if "no more of this run" in str(one.message)]) == 1


# --- Weights & Biases ----------------------------------------------------------------------------------------------------


class FakeWandb:
    """The parts of wandb that are used, and what they were given."""

    def __init__(self) -> None:
        self.began: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.ended: list[int] = []
        self.metrics: list[tuple[str, str]] = []

    def init(self, **options: Any) -> FakeWandb:
        self.began.append(options)
        return self

    def Settings(self, **options: Any) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(**options)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return fake


def test_wandb_is_given_what_was_measured_and_the_options(make, tmp_path: Path, wandb: FakeWandb) -> None:
    trainer = make(report_to=["wandb"], learning_rate=1e-3)
    trainer.train()
    (began,) = wandb.began
    assert (began["project"], began["name"], began["dir"]) == ("lora-c", "out", str(tmp_path / "out"))
    assert began["id"] == trainer.run_id and began["resume"] == "allow" and began["config"]["learning_rate"] == 1e-3
    losses = [(line["step"], line["train/loss"]) for line in wandb.logged if "train/loss" in line]
    assert losses == [(r["step"], r["loss"]) for r in trainer.history if "loss" in r]
    assert [line["step"] for line in wandb.logged if "eval/loss" in line] == [0, 2, 4]
    assert wandb.ended == [0] and wandb.metrics == [("*", "step")]


def test_a_resumed_run_is_the_same_one(make, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "tales")
    first = make(report_to="wandb")
    first.train()
    make(report_to="wandb").train(resume=tmp_path / "out/checkpoint-2")
    assert [began["id"] for began in wandb.began] == [first.run_id] * 2 and wandb.began[0]["project"] == "tales"
    assert [line["step"] for line in wandb.logged if "train/loss" in line] == [1, 2, 3, 4, 3, 4]


def test_a_run_that_fails_ends_as_failed(make, wandb: FakeWandb) -> None:
    class Fails:
        def on_step(self, state: Any) -> None:
            raise OSError("no room for my log")

    with pytest.raises(OSError, match="no room"):
        make(Fails(), report_to="wandb").train()
    assert wandb.ended == [1]


def test_an_error_of_wandb_ends_nothing(make, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: FakeWandb, **options: Any) -> FakeWandb:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(FakeWandb, "init", fail)
    with pytest.warns(LoraCWarning, match=r"wandb: no more of this run is reported \(ConnectionError: nobody answers\)"):
        assert make(report_to="wandb").train().steps == 4


def test_wandb_itself_writes_a_run_offline(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    make(report_to="wandb").train()
    (written,) = (tmp_path / "out/wandb").glob("offline-run-*/*.wandb")
    assert b"train/loss" in written.read_bytes() and b"eval/loss" in written.read_bytes()


# --- both ----------------------------------------------------------------------------------------------------------------


def test_reporting_changes_no_bit(make, wandb: FakeWandb) -> None:
    plain, reported = make(out="plain"), make(out="reported", report_to="wandb")
    plain.train(), reported.train()
    pairs = zip(plain.parameters, reported.parameters, strict=True)
    assert all(np.array_equal(a.data, b.data) for a, b in pairs)


@pytest.mark.parametrize(("name", "module"), [
    ("tensorboard", "tensorboard.summary.writer.event_file_writer"), ("wandb", "wandb"),
])  # fmt: skip
def test_a_package_that_is_absent_is_named_with_the_extra(
    make, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"report_to: expected the package {name}, .*lora-c\[{name}\]"):
        make(report_to=name)


def test_a_folder_called_wandb_is_no_package(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    with pytest.raises(ConfigError, match="got a folder of that name"):
        make(report_to="wandb")


def test_names_of_programs() -> None:
    assert TrainConfig(report_to="none").report_to == [] == TrainConfig().report_to
    assert TrainConfig(report_to=["wandb", "tensorboard", "wandb"]).report_to == ["wandb", "tensorboard"]
    with pytest.raises(ConfigError, match="report_to.*'tensorboard' or 'wandb', got 'mlflow'"):
        TrainConfig(report_to=["mlflow"])


def test_records_under_transformers_names() -> None:
    step = {"step": 3, "loss": 1.5, "tokens": 7, "elapsed_seconds": 2.0}
    assert values_of(step) == {"train/loss": 1.5, "train/tokens": 7.0}
    assert values_of({"step": 3, "eval_loss": 1.5, "eval_accuracy": 0.5}) == {"eval/loss": 1.5, "eval/accuracy": 0.5}
    assert values_of({"step": 1, "skipped": 1}) == {"train/skipped": 1.0}


def test_the_command_line_reports_and_imports_nothing_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = make_workplace(tmp_path)
    words = "train --model model --data chat.jsonl --output-dir t --max-steps 2 --report-to tensorboard".split()
    done = called(folder, words)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in scalars(folder / "t/tensorboard")["train/loss"]] == [1, 2]
    done = called(folder, [*words[:-1], "tensorbord", "--overwrite"])
    assert done.returncode == 2 and "--report-to" in done.stderr
    code = "import sys; sys.argv[1:] = {!r}\nfrom lora_c.cli.commands import cli\ncli(standalone_mode=False)\n"
    code += "print([m for m in sys.modules if m.split('.')[0] in ('tensorboard', 'wandb')])"
    plain = "train --model model --data chat.jsonl --output-dir p --max-steps 1 --samples 0".split()
    (folder / "plain.py").write_text(code.format(plain))
    done = subprocess.run(
        [sys.executable, "plain.py"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done.stderr
