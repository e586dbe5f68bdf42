"""Short pieces of work that an exception from the handler of a signal must not cut: it is raised behind them.

A handler runs between any two bytecodes. What it raises between the creation of a file and the line that would remove it
again leaves the file; so handlers raise with `throw`, and such lines stand in an `uninterrupted` block.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_depth = 0  # of blocks of the main thread, which alone runs handlers
_waiting: BaseException | None = None


def throw(error: BaseException) -> None:
    """Raise from the handler of a signal: now, or where the block ends that must not be cut."""
    global _waiting
    if not _depth:
        raise error
    _waiting = _waiting or error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let what handlers `throw` wait until the block has ended, and Python's own KeyboardInterrupt, too."""
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_plain:
        signal.signal(signal.SIGINT, _interrupt)  # which does the same, with `throw`: it may stay where this is cut itself
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if is_plain:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not _depth:
            _throw_waiting()


def _interrupt(number: int, frame: FrameType | None) -> None:
    throw(KeyboardInterrupt())


def _throw_waiting() -> None:
    global _waiting
    error, _waiting = _waiting, None
    if error is not None:
        raise error
