"""Ctrl-C, SIGTERM and SIGHUP on the command line: the stack unwinds, so that nothing half-written stays, and one line says so.

Training collects them instead while it runs (`interrupt.py`), and a chat takes Ctrl-C for itself.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from contextlib import suppress

from ..files.system import STOPPING
from ..files.uninterrupted import throw
from ..training.interrupt import Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

PATIENCE = 5.0  # seconds in which what was begun is taken back; a signal after them ends the program wherever it is
_since: float | None = None  # when the first one came


def install_handlers(early: Callable[[int, FrameType | None], None] | None = None) -> None:
    """Answer the signals that nobody else answers, but `early`; what is ignored stays so: nohup, jobs in the background."""
    for number in STOPPING:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL, early):
            signal.signal(number, _answer)
    usual_hook = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            _send_again(getattr(lost.exc_value, "number", signal.SIGINT))
        else:
            usual_hook(lost)

    sys.unraisablehook = hook


def say_stopped() -> None:
    """The line that a stopped program ends with."""
    with suppress(OSError, ValueError):  # the terminal may be gone
        print("\nlora-c: stopped", file=sys.stderr, flush=True)


def pass_over_signals() -> None:
    """From here on the program ends by itself, in less time than it takes to stop it."""
    global _since
    _since = time.monotonic()


def _answer(number: int, frame: FrameType | None) -> None:
    """Stop once. While a library is loaded an exception could come out of it as another one: there the program just ends."""
    global _since
    now = time.monotonic()
    if _since is not None:
        if now - _since > PATIENCE:
            _end(number)
        return
    if _is_importing(frame):
        _end(number)
    _since = now
    throw(Stopped(number))


def _send_again(number: int) -> None:
    """A generator or a finalizer was about to end where the handler raised, and Python drops what comes out of those."""
    global _since
    _since = None

    def send() -> None:
        time.sleep(0.01)  # until that has ended
        os.kill(os.getpid(), number)

    with suppress(RuntimeError):  # the interpreter is ending
        _thread.start_new_thread(send, ())  # one of `threading` is waited for, here, where the signal would be dropped again


def _end(number: int) -> None:
    aside = sys.modules.get(f"{__package__.rpartition('.')[0]}.files.aside")
    if (remove := getattr(aside, "remove_open", None)) is not None:  # none while that file is being imported
        remove()
    say_stopped()
    os._exit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
