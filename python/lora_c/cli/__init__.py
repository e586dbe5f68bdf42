"""The command line: ``lora-c train | generate | chat | eval | merge | export | quantize | bench | demo``.

Nothing is imported before `main` runs, so that Ctrl-C is one line while the libraries are loaded, too.
"""

from __future__ import annotations

import io
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from .commands import cli

__all__ = ["cli", "main"]

INTERRUPTED = 130  # as cli/errors.py has it; nothing is imported from there before an interrupt can be answered


def main() -> None:
    """Entry point of the ``lora-c`` script."""
    _prepare_streams()
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        from .commands import run

        run()
    except KeyboardInterrupt:
        print("\nlora-c: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


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


def _interrupt(number: int, frame: FrameType | None) -> None:
    """While a library is loaded there is nothing to clean up, and an exception could come out of it as another one."""
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            print("\nlora-c: stopped", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def __getattr__(name: str) -> Any:
    if name != "cli":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .commands import cli

    return cli
