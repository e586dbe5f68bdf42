"""How a run is left: the answer to each signal, at once, and what need not be finished before the state is saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .._core import Decoder
    from .interrupt import StopRequest

Phase = Literal["between", "step", "evaluation", "saving"]


class Leaving:
    """Answers the signals of a run.

    The first one lets the step end (an evaluation is left at once); the second one leaves the step between two layers, and
    what is saved is the state before it; the third one ends the program.

    Parameters
    ----------
    stop : StopRequest
    decoder : Decoder
        Its `stopping` is set; `end` clears it.
    say : callable
        Shows a line; called by another thread.
    saves : bool
        Whether the state is saved, and the lines say so.
    """

    def __init__(self, stop: StopRequest, decoder: Decoder, say: Callable[[str], None], saves: bool = True) -> None:
        self._decoder, self._say, self._saves = decoder, say, saves
        self._phase: Phase = "between"
        self._began = 0.0
        self._step_seconds: float | None = None
        self._stop = stop
        stop.listener = self._answer

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Say what goes on; the length of a step is measured."""
        self._began, self._phase = time.monotonic(), phase
        try:
            if phase == "evaluation" and self._stop.requested:
                self._decoder.stopping = True  # it was asked for before there was something to leave
            yield
            if phase == "step":
                self._step_seconds = time.monotonic() - self._began
        finally:
            self._phase = "between"

    def end(self) -> None:
        """Nothing is left to be stopped."""
        self._stop.listener = lambda count: None
        self._decoder.stopping = False

    def _answer(self, count: int) -> None:
        phase = self._phase
        if count == 1:
            if phase == "evaluation":
                self._decoder.stopping = True
            self._say(self._first(phase))
        elif count == 2 and phase != "saving":
            self._decoder.stopping = True
            state = (
                " and saving the state before it; press again to end without"
                if self._saves
                else "; press again to end at once"
            )
            self._say(f"leaving this step{state}")
        elif count == 2:
            self._say("still saving; press again to end without")

    def _first(self, phase: Phase) -> str:
        if phase == "saving":
            return "stopping after this checkpoint is saved; press again to abandon"
        saving = " and saving" if self._saves else ""
        if phase == "evaluation":
            return f"stopping{saving}; press again to abandon"
        left = ""
        if phase == "step" and self._step_seconds is not None:
            left = f" (about {max(1, round(self._step_seconds - (time.monotonic() - self._began)))} s)"
        return f"stopping after this step{left}{saving}; press again to abandon"
