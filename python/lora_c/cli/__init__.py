"""The command line: ``lora-c train``, ``data``, ``generate``, ``chat`` and their like, see `commands`.

Nothing is imported before `main` runs, so that Ctrl-C is one line while the libraries are loaded, too. SIGTERM and SIGHUP, on
Windows SIGBREAK, do what Ctrl-C does, and end with the status that shells expect: 128 and the number of the signal.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from .commands import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Entry point of the ``lora-c`` script."""
    _prepare_streams()
    from ..files.system import STOPPING  # of the standard library alone

    for number in STOPPING:  # before anything else is imported
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):  # what is ignored stays so: nohup
            signal.signal(number, _end_at_once)
    from ..display.steady_stream import make_stderr_steady
    from .signals import install_handlers, pass_over_signals, say_stopped

    make_stderr_steady()
    try:
        install_handlers(_end_at_once)
        from .commands import run

        run()
    except KeyboardInterrupt as error:
        say_stopped()
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    finally:
        pass_over_signals()
        gc.freeze()  # what is left goes with the process: a search through all of it takes a third of a second


def _prepare_streams() -> None:
    """Standard streams take any text; closed ones lead nowhere, else the next file opened would take their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # half a character of somebody's file, a terminal of few letters


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Until the modules are there that answer signals, there is nothing to clean up."""
    with suppress(OSError):
        print("\nlora-c: stopped", file=sys.stderr, flush=True)
    os._exit(128 + number)


def __getattr__(name: str) -> Any:
    if name != "cli":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .commands import cli

    return cli
