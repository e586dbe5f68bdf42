"""Standard error that outlives its reader: a log that is full, a pipe that nobody reads and a closed terminal end no run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import IO, Any


class _Steady(io.RawIOBase):
    """Writes to a file descriptor; what the system does not take is lost.

    Parameters
    ----------
    handle : int
        The descriptor.
    write : callable, optional
        What writes to it, as `os.write` does with the descriptor.
    """

    def __init__(self, handle: int, write: Callable[[memoryview], int | None] | None = None) -> None:
        self._handle, self._write = handle, write or partial(os.write, handle)

    def fileno(self) -> int:
        return self._handle

    def isatty(self) -> bool:
        return os.isatty(self._handle)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        view = memoryview(data).cast("B")
        try:
            return self._write(view)
        except OSError:
            return len(view)


def steady(stream: IO[str]) -> IO[str]:
    """The stream, so that writing to it never fails; one without a file descriptor (of a notebook or a test) as it is."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # there may be no buffer between
    if isinstance(raw, _Steady):
        return stream
    try:
        stream.flush()
        handle = stream.fileno()
    except (OSError, ValueError):
        return stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    write = None
    if type(raw).__name__ == "_WindowsConsoleIO":  # takes UTF-8, its descriptor the letters of an old code page
        write = raw.write
    return io.TextIOWrapper(io.BufferedWriter(_Steady(handle, write)), encoding, "backslashreplace", line_buffering=True)


def make_stderr_steady() -> None:
    """Replace `sys.stderr`."""
    if sys.stderr is not None:
        sys.stderr = steady(sys.stderr)
