"""How a command ends: its exit code, and one line on stderr for every expected error.

Everything else keeps its traceback, because it is a bug of ours.

==== =======================================================================================================
code meaning
==== =======================================================================================================
0    done
1    refused or failed: a file, the data, the model or the machine is not as expected (inspect: would be refused)
2    usage: a flag, an argument or a key of ``--config`` is unknown, missing or has a value that it cannot have
128+ ended by a signal of this number: 130 Ctrl-C, 141 nobody reads the output any more
==== =======================================================================================================
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

DONE, FAILED, USAGE = 0, 1, 2
_HANGUP = 0.2  # seconds between the first write that fails and the signal, at most


def code_of_signal(number: int) -> int:
    """The exit code of a program that a signal has ended, as shells count."""
    return 128 + number


INTERRUPTED = code_of_signal(signal.SIGINT)
CLOSED_PIPE = code_of_signal(getattr(signal, "SIGPIPE", 13))


class ClosedPipeError(Exception):
    """Nobody reads the output any more. click would end the program itself at a BrokenPipeError, with status 1."""


@contextmanager
def closed_pipes_pass() -> Iterator[None]:
    """Take a closed pipe through click to `friendly_errors`."""
    try:
        yield
    except BrokenPipeError:
        raise ClosedPipeError from None


def exit_code(error: BaseException) -> int:
    """The code for an error; the same kind of error has the same code in every command."""
    from ..errors import ConfigError

    return USAGE if isinstance(error, ConfigError) else FAILED


@contextmanager
def friendly_errors() -> Iterator[None]:
    """End the program where an expected error comes out: one line, and its exit code."""
    try:
        yield
    except (BrokenPipeError, ClosedPipeError):
        _leave_output()
        sys.exit(CLOSED_PIPE)
    except (ValueError, TypeError, NotImplementedError, MemoryError, OSError, RuntimeError) as error:
        if not expected(error):
            raise
        if isinstance(error, OSError) and error.errno == errno.EIO:
            time.sleep(_HANGUP)  # a terminal that is closed: the signal that says so is on its way, and counts
        from ..display.printable import printable  # a message may hold what a stranger's file says

        with suppress(OSError):  # a log that is full or gone
            print(f"lora-c: {printable(describe(error))}", file=sys.stderr, flush=True)
        _leave_output()
        sys.exit(exit_code(error))


def flush_output() -> None:
    """Write out what was printed, as long as an error in it can still be told.

    Raises
    ------
    OSError
        Nobody reads it, or there is no room for it.
    """
    sys.stdout.flush()


def _leave_output() -> None:
    """What could not be written is not tried again when the interpreter ends, which would print an error of its own."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def expected(error: BaseException) -> bool:
    """Our own errors, those of the machine (memory, disk, files, devices), and what the environment asks for in vain."""
    from ..errors import LoraCError

    if isinstance(error, (LoraCError, OSError, MemoryError, NotImplementedError)):
        return True
    if isinstance(error, RuntimeError):
        from .._core import DeviceError

        return isinstance(error, DeviceError)
    return isinstance(error, ValueError) and str(error).startswith("LORA_C_")  # a variable that is read at import


def describe(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        got = str(error) or "no memory left"
        if "expected" in got:
            return got
        return f"memory: expected enough, got: {got}; use a smaller batch, --recompute layer or a shorter --max-seq-length"
    if isinstance(error, OSError):
        from ..files.os_errors import describe as describe_os_error

        return describe_os_error(error)
    return str(error)
