"""Ctrl-C, SIGTERM and SIGHUP between two steps instead of inside one, so that what is saved is the state after a whole step.

Python runs handlers of signals in the main thread only, and between bytecodes: not while that thread is inside a step, which
may take a minute. So the C handler writes the number of each signal to a pipe, and a thread that waits there answers at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..files.system import STOPPING, signal_pipe
from ..files.uninterrupted import throw

_END_AT_ONCE = 3  # the signal that ends the program wherever it is


class Stopped(KeyboardInterrupt):
    """A signal ended the run; number: which one."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text or signal.Signals(number).name)
        self.number = number


class StopRequest:
    """What signals have asked for so far.

    Attributes
    ----------
    number : int or None
        The first signal.
    listener : callable
        Called with the count of signals as each arrives, by another thread than the main one.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.listener: Callable[[int], None] = lambda count: None
        self._arrived = self._handled = 0

    @property
    def requested(self) -> bool:
        return self.number is not None

    def exception(self, text: str = "") -> Stopped:
        """What to raise when everything is saved."""
        return Stopped(self.number or signal.SIGINT, text)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        self._handled += 1
        if max(self._handled, self._arrived) >= _END_AT_ONCE:
            throw(Stopped(number))

    def _arrive(self, number: int) -> None:
        self.number = self.number or number
        self._arrived += 1
        self.listener(self._arrived)


_current: StopRequest | None = None


def is_deferred() -> bool:
    """Whether signals are being collected, and will be answered by whoever began with it."""
    return _current is not None


@contextmanager
def deferred_interrupt() -> Iterator[StopRequest]:
    """Collect SIGINT, SIGTERM and SIGHUP while the block runs; the third one raises `Stopped`.

    Ignored signals stay ignored (a run under nohup), and a program's own handlers of SIGTERM and SIGHUP stay. Inside of
    another such block its request goes on. Outside the main thread, where Python delivers no signals, nothing changes.
    """
    global _current
    request = _current or StopRequest()
    taken = [number for number in STOPPING if _may_take(number)]
    if _current is not None or threading.current_thread() is not threading.main_thread() or not taken:
        yield request
        return
    with _told_at_once(request, taken):
        before = {number: signal.signal(number, request._handle) for number in taken}
        _current = request
        try:
            yield request
        finally:
            _current = None
            for number, handler in before.items():
                signal.signal(number, handler)


def _may_take(number: signal.Signals) -> bool:
    handler: Any = signal.getsignal(number)
    if number == signal.SIGINT:
        return handler not in (signal.SIG_IGN, None)
    is_usual = handler in (signal.SIG_DFL, signal.default_int_handler)
    return is_usual or getattr(handler, "__module__", "").startswith(f"{__package__.partition('.')[0]}.")


@contextmanager
def _told_at_once(request: StopRequest, taken: list[signal.Signals]) -> Iterator[None]:
    """A thread that hears of signals while the main thread is in C; those of others go on to whoever listened before."""
    reader, writer = signal_pipe()
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number == 0:
                    return
                with suppress(Exception):  # what is said may fail; the next signal is heard all the same
                    if number in taken:
                        request._arrive(number)
                    elif previous >= 0:
                        os.write(previous, bytes([number]))

    thread = threading.Thread(target=listen, name="lora-c signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)
