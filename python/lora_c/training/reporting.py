"""What a run measures goes to programs that draw it, each by its own package (`report_to`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..files.os_errors import reason
from ..notices import tell
from .callbacks import Callback, TrainerState

_UNSENT = ("step", "elapsed_seconds")


class Reporter(Callback):
    """Base of callbacks that hand on the records of steps and evaluations under transformers' names: train/loss, eval/loss.

    What goes wrong there is told once, and the run goes on without it.

    Parameters
    ----------
    every : int
        Steps between two records of steps; evaluations are all handed on.
    """

    name = ""

    def __init__(self, every: int = 1) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError(f"every: expected a number of steps, 1 or more, got {every!r}")
        self._every, self._is_open, self._has_failed = every, False, False

    def on_step(self, state: TrainerState) -> None:
        """Hand on the record of the step, where one is due."""
        if state.step % self._every == 0 or state.step == state.total_steps:
            self._hand_on(state)

    def on_evaluate(self, state: TrainerState) -> None:
        """Hand on what was measured."""
        self._hand_on(state)

    def on_save(self, state: TrainerState) -> None:
        """See to it that what was handed on so far outlives the program."""
        if self._is_open:
            self._guarded(self._flush)

    def on_stop(self, state: TrainerState) -> None:
        """End it; another `train` opens it again."""
        if self._is_open:
            self._guarded(lambda: self._end(state))
        self._is_open = self._has_failed = False

    def _begin(self, state: TrainerState) -> None:
        """Begin, at the first record of a call of `train`."""
        raise NotImplementedError

    def _write(self, values: Mapping[str, float], step: int) -> None:
        """Hand on some numbers of a step."""
        raise NotImplementedError

    def _flush(self) -> None:
        """Write what waits."""

    def _end(self, state: TrainerState) -> None:
        """End, after the last record; `state.ending` says how the run ended."""
        raise NotImplementedError

    def _hand_on(self, state: TrainerState) -> None:
        self._guarded(lambda: self._hand_on_now(state))

    def _hand_on_now(self, state: TrainerState) -> None:
        if not self._is_open:
            self._begin(state)
            self._is_open = True
        self._write(values_of(state._history[-1]), state.step)

    def _guarded(self, work: Any) -> None:
        if self._has_failed:
            return
        try:
            work()
        except Exception as error:  # of any library, a network or a disk: no reason to lose the run
            self._has_failed = True
            tell(f"{self.name}: no more of this run is reported ({type(error).__name__}: {reason(error)})")


def values_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of a run, under the names that transformers reports."""
    numbers = {name: value for name, value in record.items() if isinstance(value, (int, float)) and name not in _UNSENT}
    return {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": float(value)
        for name, value in numbers.items()
    }
