"""`callbacks=` of a trainer: what is called when, with what, and what happens to their errors."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_c import Callback, TrainConfig, Trainer, TrainerState, load_model
from lora_c._core import PassStopped
from lora_c.data import Dataset, Sample
from lora_c.errors import ConfigError, DivergenceError
from lora_c.notices import LoraCWarning

EVENTS = ("on_step", "on_evaluate", "on_save", "on_stop")


def samples(n: int = 8, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset([Sample(rng.integers(3, 60, 12).astype(np.int32), np.ones(12, np.float32)) for _ in range(n)])


@pytest.fixture
def make(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Trainer]:
    def trainer(*callbacks: Any, out: str = "out", eval_data: Dataset | None = None, **options: Any) -> Trainer:
        model = load_model(tiny_model_dir, progress=False)
        model.add_adapter(r=2)
        values = {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2} | options
        config = TrainConfig(output_dir=str(tmp_path / out), **values)
        return Trainer(model, samples(), config, eval_data, callbacks=callbacks)

    return trainer


class Log(Callback):
    """Every call: (event, step)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.states: list[TrainerState] = []

    def _note(self, event: str, state: TrainerState) -> None:
        self.calls.append((event, state.step))
        self.states.append(state)

    def on_step(self, state: TrainerState) -> None:
        self._note("on_step", state)

    def on_evaluate(self, state: TrainerState) -> None:
        self._note("on_evaluate", state)

    def on_save(self, state: TrainerState) -> None:
        self._note("on_save", state)

    def on_stop(self, state: TrainerState) -> None:
        self._note("on_stop", state)


def failing(event: str, step: int = 2, error: BaseException | None = None) -> Any:
    def fail(self: Any, state: TrainerState) -> None:
        if state.step == step:
            raise error or OSError("no room for my log")

    return type("Failing", (), {event: fail})()


def test_each_event_is_called_in_its_place(make) -> None:
    log = Log()
    make(log, eval_data=samples(2, 1), eval_steps=2).train()
    assert log.calls == [
        ("on_evaluate", 0), ("on_step", 1), ("on_step", 2), ("on_evaluate", 2), ("on_save", 2), ("on_step", 3), ("on_step", 4),
        ("on_evaluate", 4), ("on_save", 4), ("on_stop", 4),
    ]  # fmt: skip


def test_the_state_says_where_the_run_stands_and_cannot_be_changed(make) -> None:
    log = Log()
    trainer = make(log, eval_data=samples(2, 1), eval_steps=2)
    trainer.train()
    start, last = log.states[0], log.states[-1]
    assert start.loss is None and start.eval_loss is not None and start.epoch == 0 and start.checkpoint is None
    records = [r for r in trainer.history if "loss" in r]
    assert (last.step, last.total_steps, last.ending) == (4, 4, "finished")
    names = "loss", "learning_rate", "grad_norm"
    assert [getattr(last, name) for name in names] == [records[-1][name] for name in names]
    assert (last.epoch, last.tokens, last.output_dir) == (1.0, records[-1]["tokens"], trainer.output_dir)
    assert last.checkpoint == trainer.output_dir / "checkpoint-4" and last.checkpoint.is_dir()
    assert last.eval_loss == trainer.history[-1]["eval_loss"] and last.tokens_per_second > 0
    assert last.history == trainer.history and last.history is not trainer.history
    assert all(state.ending is None for state in log.states[:-1])
    with pytest.raises(FrozenInstanceError):
        last.step = 9  # type: ignore[misc]
    assert "history" not in repr(last) and len(repr(last)) < 600


def test_callbacks_change_no_bit(make) -> None:
    plain, called = make(out="plain"), make(Log(), out="called")
    plain.train(), called.train()
    pairs = zip(plain.parameters, called.parameters, strict=True)
    assert all(np.array_equal(a.data, b.data) for a, b in pairs)


def test_the_model_can_be_asked_between_two_steps(make) -> None:
    answers: list[str] = []

    class Ask(Callback):
        def on_step(self, state: TrainerState) -> None:
            answers.append(state.model.generate([5, 6, 7], max_new_tokens=3))

    plain, asked = make(out="plain"), make(Ask(), out="asked")
    plain.train(), asked.train()
    pairs = zip(plain.parameters, asked.parameters, strict=True)
    assert len(answers) == 4 and all(np.array_equal(a.data, b.data) for a, b in pairs)


@pytest.mark.parametrize("event", ["on_step", "on_evaluate", "on_save"])
def test_a_callback_can_ask_to_stop(make, event: str) -> None:
    log = Log()
    asking = type("Asking", (), {event: lambda self, state: state.stop() if state.step == 2 else None})()
    trainer = make(asking, log, eval_data=samples(2, 1), eval_steps=2)
    result = trainer.train()
    assert result.interrupted and result.steps == 2 and result.signal is None
    assert log.states[-1].ending == "asked" and (trainer.output_dir / "checkpoint-2").is_dir()
    assert make().train(resume=True).steps == 4


@pytest.mark.parametrize("event", ["on_step", "on_evaluate", "on_save"])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, SystemExit])
def test_an_error_of_a_callback_is_raised_after_a_checkpoint_was_saved(make, event: str, kind: type[BaseException]) -> None:
    log, error = Log(), kind("enough")
    save_steps = 2 if event == "on_save" else 0
    trainer = make(failing(event, 2, error), log, eval_data=samples(2, 1), eval_steps=2, save_steps=save_steps)
    with pytest.raises(type(error)) as caught:
        trainer.train()
    assert caught.value is error
    assert log.states[-1].ending == "failed" and (trainer.output_dir / "checkpoint-2/trainer_state.json").is_file()
    assert trainer.result is not None and trainer.result.steps == 2
    resumed, whole = make(), make(out="whole")
    assert resumed.train(resume=True).steps == 4
    whole.train()
    pairs = zip(resumed.parameters, whole.parameters, strict=True)
    assert all(np.array_equal(a.data, b.data) for a, b in pairs)


def test_an_error_in_on_stop_is_raised_at_the_end(make) -> None:
    trainer = make(failing("on_stop", 4))
    with pytest.raises(OSError, match="no room for my log"):
        trainer.train()
    assert trainer.result.steps == 4 and (trainer.output_dir / "checkpoint-4").is_dir()


@pytest.fixture
def usual_handlers() -> Iterator[None]:
    """A shell starts background jobs deaf to SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(times: int, step: int) -> Any:
    """A callback during which Ctrl-C is pressed so often, the first time that the step is reached."""
    left = [times]

    def on_step(self: Any, state: TrainerState) -> None:
        while state.step == step and left[0]:
            left[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)

    return type("Press", (), {"on_step": on_step})()


def same(a: Trainer, b: Trainer) -> bool:
    return all(np.array_equal(x.data, y.data) for x, y in zip(a.parameters, b.parameters, strict=True))


def test_a_signal_in_a_callback_saves_and_raises_and_train_goes_on(make, usual_handlers) -> None:
    log = Log()
    whole, trainer = make(out="whole"), make(press(1, 3), log)
    whole.train()
    with pytest.raises(KeyboardInterrupt, match=r"after step 3, which is saved in .*out; train\(\) goes on from there$"):
        trainer.train()
    assert log.states[-1].ending == "interrupted" and (trainer.output_dir / "checkpoint-3/trainer_state.json").is_file()
    assert trainer.train().steps == 4 and same(whole, trainer)


def test_a_second_signal_leaves_what_a_callback_asks_of_the_model(make, usual_handlers, monkeypatch) -> None:
    """The pass that it leaves is no error of the callback."""
    left: list[bool] = []

    class Ask(Callback):
        def on_step(self, state: TrainerState) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            limit = time.monotonic() + 60
            while time.monotonic() < limit:  # heard by another thread
                try:
                    state.model.generate([5, 6, 7], max_new_tokens=8)
                except PassStopped:
                    left.append(True)
                    raise

    trainer = make(Ask())
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1, which is saved in"):
        trainer.train()
    assert left and (trainer.output_dir / "checkpoint-1/trainer_state.json").is_file()


def test_a_signal_in_the_last_step_is_raised_and_says_that_nothing_is_left(make, usual_handlers) -> None:
    trainer = make(press(1, 4))
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 4, the last one, which is saved in [^;]*$"):
        trainer.train()
    assert trainer.result is not None and not trainer.result.interrupted
    assert (trainer.output_dir / "checkpoint-4").is_dir()


def test_a_stop_that_could_not_be_saved_does_not_say_that_it_was(make, usual_handlers, full_disk) -> None:
    fill = type("Fill", (), {"on_step": lambda self, state: full_disk()})()
    trainer = make(fill, press(1, 1))
    with pytest.warns(LoraCWarning, match="no checkpoint"), pytest.raises(KeyboardInterrupt, match="which could not be saved"):
        trainer.train()


def test_the_third_signal_ends_at_once_and_train_goes_on_with_the_same_bits(make, usual_handlers) -> None:
    whole, trainer = make(out="whole"), make(press(3, 2), save_steps=0)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.resumed_at == 2 and not (trainer.output_dir / "checkpoint-2").exists()
    assert trainer.train().steps == 4 and same(whole, trainer)


def test_a_callback_cannot_train_inside_the_run(make) -> None:
    trainer = make(type("Again", (), {"on_step": lambda self, state: trainer.train()})())
    with pytest.raises(ConfigError, match="train: expected one run of a Trainer at a time"):
        trainer.train()
    assert (trainer.output_dir / "checkpoint-1").is_dir()


def test_a_second_error_is_told(make) -> None:
    trainer = make(failing("on_step"), failing("on_step", error=ValueError("other")))
    with pytest.warns(LoraCWarning, match="on_step raised ValueError: other, after another error"), pytest.raises(OSError):
        trainer.train()


def test_on_stop_is_called_when_the_run_diverges(make) -> None:
    log = Log()
    with pytest.raises(DivergenceError):
        make(log, learning_rate=1e30, max_grad_norm=0.0, max_steps=20, save_steps=0).train()
    assert log.states[-1].ending == "diverged" and log.calls[-1][0] == "on_stop"


def test_on_stop_is_called_when_the_run_fails(make, monkeypatch) -> None:
    log = Log()
    monkeypatch.setattr(Trainer, "_one_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(log).train()
    assert log.calls == [("on_stop", 0)] and log.states[-1].ending == "failed"


def test_a_checkpoint_that_cannot_be_written_is_no_save(make, full_disk) -> None:
    log = Log()
    fill = type("Fill", (), {"on_step": lambda self, state: full_disk()})()
    with pytest.warns(LoraCWarning, match="no checkpoint of step"):
        assert make(log, fill).train().unsaved
    assert "on_save" not in {event for event, _ in log.calls}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([Log], "expected an object, got the class Log; write Log\\(\\)"),
        ([print], "expected objects with some of on_step, on_evaluate, on_save, on_stop"),
        ([type("Early", (Callback,), {"on_evaluation": print})()], "a Early with on_evaluation, did you mean 'on_evaluate'"),
        ([type("T", (Callback,), {"on_train_end": print})()], "on_train_end is called on_stop"),
        ([type("T", (), {"on_step_end": print})()], "on_step_end is called on_step"),
        ([type("T", (), {"on_step": print, "on_train_end": print})()], "on_train_end is called on_stop"),
        (Log(), "callbacks: expected a list of callbacks, got a Log"),
    ],
)
def test_what_is_no_callback_is_refused(make, tiny_model_dir, wrong: Any, message: str) -> None:
    model = load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=2)
    with pytest.raises(ConfigError, match=message):
        Trainer(model, samples(), TrainConfig(), callbacks=wrong)


def test_callbacks_are_called_in_order_and_any_object_will_do(make) -> None:
    seen: list[str] = []
    one = type("One", (), {"on_stop": lambda self, state: seen.append("one")})()
    two = type("Two", (), {"on_stop": lambda self, state: seen.append("two")})()
    make(one, two).train()
    assert seen == ["one", "two"] and {*EVENTS} <= {*dir(Callback)}
