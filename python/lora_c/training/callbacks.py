"""Code of the caller's own that a run calls: after a step, an evaluation, a checkpoint, and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._core import PassStopped
from ..errors import ConfigError, nearest
from ..notices import tell
from ..runs.checkpoints import checkpoint_folder
from .interrupt import Stopped
from .run_settings import check_same_parameters

if TYPE_CHECKING:
    from ..model.model import Model
    from .trainer import Trainer

Ending = Literal["finished", "asked", "interrupted", "diverged", "failed"]
EVENTS = ("on_step", "on_evaluate", "on_save", "on_stop")
# What transformers calls them.
_OTHER_NAMES = {
    "on_step_end": "on_step", "on_log": "on_step", "on_substep_end": "on_step", "on_optimizer_step": "on_step",
    "on_epoch_end": "on_step", "on_train_end": "on_stop", "on_predict": "on_evaluate",
}  # fmt: skip


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands. Nothing of it can be set; `stop()` asks the run to end.

    Attributes
    ----------
    step, total_steps : int
        Optimizer steps done, and of the whole run.
    epoch : float
        Passes over the data so far.
    loss, learning_rate, grad_norm : float or None
        Of the latest step; None before the first one.
    eval_loss : float or None
        The latest held-out loss.
    tokens : int
        Trained so far.
    tokens_per_second, elapsed_seconds : float
        Of this call of `train`.
    output_dir : Path
        The folder of the run.
    run_id : str
        What tells this run from others; one that is resumed keeps it.
    checkpoint : Path or None
        The latest checkpoint that this run has written.
    ending : str or None
        In `on_stop`: "finished", "asked" (a callback called `stop`), "interrupted" (by a signal or the stop button),
        "diverged" or "failed" (a callback or the run raised an error).
    model : Model
        The model that is trained; between two steps it can be evaluated and asked.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    eval_loss: float | None
    tokens: int
    tokens_per_second: float
    elapsed_seconds: float
    output_dir: Path
    run_id: str
    checkpoint: Path | None
    ending: Ending | None
    model: Model = field(repr=False)
    _history: Sequence[dict[str, Any]] = field(repr=False)
    _ask: Callable[[], None] = field(repr=False)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A copy of the records of all steps and evaluations so far."""
        return [dict(record) for record in self._history]

    def stop(self) -> None:
        """Ask the run to save a checkpoint and to return after this step; another `train()` goes on from there."""
        self._ask()


def state_of(trainer: Trainer, done: int, ending: Ending | None) -> TrainerState:
    """Where a trainer stands after so many steps."""
    elapsed = time.perf_counter() - trainer.started
    step: dict[str, Any] = next((r for r in reversed(trainer.history) if "loss" in r), {})
    written = trainer.checkpoints[-1:]
    return TrainerState(
        step=done,
        total_steps=trainer.total_steps,
        epoch=step.get("epoch", 0.0),
        loss=step.get("loss"),
        learning_rate=step.get("learning_rate"),
        grad_norm=step.get("grad_norm"),
        eval_loss=next((r["eval_loss"] for r in reversed(trainer.history) if "eval_loss" in r), None),
        tokens=trainer.tokens_before + trainer.tokens_seen,
        tokens_per_second=trainer.tokens_seen / max(elapsed, 1e-9),
        elapsed_seconds=elapsed,
        output_dir=trainer.output_dir,
        run_id=trainer.run_id,
        checkpoint=checkpoint_folder(trainer.output_dir, written[0]) if written else None,
        ending=ending,
        model=trainer.model,
        _history=trainer.history,
        _ask=trainer.callbacks.ask,
    )


class Callback:
    """Base of callbacks, whose methods do nothing. An object with some of these methods will do as well.

    Whatever a method raises ends the run: a checkpoint is saved first, then `train` raises it.
    """

    def on_step(self, state: TrainerState) -> None:
        """After each optimizer step."""

    def on_evaluate(self, state: TrainerState) -> None:
        """After each evaluation of the held-out data."""

    def on_save(self, state: TrainerState) -> None:
        """After each checkpoint; `state.checkpoint` is its folder."""

    def on_stop(self, state: TrainerState) -> None:
        """Once, when everything is saved, however the run ends; `state.ending` says how."""


class Callbacks:
    """The callbacks of a trainer, and what they have asked for.

    Parameters
    ----------
    given : iterable
        Objects with some of the methods of `Callback`.
    own : sequence
        Of the run itself, which are called after them.

    Raises
    ------
    ConfigError
        One of them has none of the methods, or others than these.
    """

    def __init__(self, given: Iterable[Any] = (), own: Sequence[Callback] = ()) -> None:
        if not isinstance(given, Iterable):
            raise ConfigError(f"callbacks: expected a list of callbacks, got {_shown(given)}; put it into a list")
        self.given = [*(_checked(callback) for callback in given), *own]
        self.asked = False
        self.error: BaseException | None = None

    def start(self) -> None:
        """Forget what an earlier call of `train` was asked."""
        self.asked, self.error = False, None

    def raise_error(self) -> None:
        """Raise the first error, if there was one, and keep nothing of it."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    @property
    def stopping(self) -> bool:
        """Whether the run has to end."""
        return self.asked or self.error is not None

    def ending(self, interrupted: bool, stopped: bool) -> Ending:
        """How a run ends that no error has ended: with steps left or without, stopped by a signal or not."""
        if self.error is not None:
            return "failed"
        return "interrupted" if stopped else "asked" if interrupted else "finished"

    def ask(self) -> None:
        """Take note that the run should end."""
        self.asked = True

    def report(self, trainer: Trainer, event: str, done: int, ending: Ending | None = None) -> None:
        """Call all of them with the state of a run; they may do anything with the model but exchange what is trained."""
        if not self.given:
            return
        self.call(event, state_of(trainer, done, ending))
        if ending is None:
            check_same_parameters(trainer.model, trainer.parameters)

    def call(self, event: str, state: TrainerState) -> None:
        """Call all of them; the first error is kept for `train`, which saves before it raises it."""
        for callback in self.given:
            method = getattr(callback, event, None)
            if method is None:
                continue
            try:
                method(state)
            except PassStopped:  # a second signal left a pass that the callback had begun; the run ends of itself
                continue
            except Stopped:  # a signal that ends the program where it is
                raise
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                if self.error is None:
                    self.error = error
                else:
                    tell(f"callbacks: {event} raised {type(error).__name__}: {error}, after another error")


def _checked(callback: Any) -> Any:
    if isinstance(callback, type):
        raise ConfigError(f"callbacks: expected an object, got the class {callback.__name__}; write {callback.__name__}()")
    names = [name for name in dir(callback) if name.startswith("on_")]
    unknown = [name for name in names if name not in EVENTS]
    if unknown or not names:
        known = next((f"; {name} is called {_OTHER_NAMES[name]}" for name in unknown if name in _OTHER_NAMES), "")
        known = known or (nearest(unknown[0], EVENTS) if unknown else "")
        raise ConfigError(
            f"callbacks: expected objects with some of {', '.join(EVENTS)}, each taking one TrainerState, got "
            f"{_shown(callback)}{' with ' + unknown[0] if unknown else ''}{known}; see lora_c.Callback"
        )
    return callback


def _shown(value: Any) -> str:
    return repr(value)[:60] if callable(value) or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
