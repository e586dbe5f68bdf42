"""Standard error that outlives its reader: a log that is full, a pipe that nobody reads and a closed terminal end no run."""

from __future__ import annotations

import io
import os
import sys
from typing import IO, Any


class _Steady(io.RawIOBase):
    """Writes to a file descriptor; what the system does not take is lost."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def fileno(self) -> int:
        return self._handle

    def isatty(self) -> bool:
        return os.isatty(self._handle)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            return os.write(self._handle, view)
        except OSError:
            return len(view)


def steady(stream: IO[str]) -> IO[str]:
    """The stream, so that writing to it never fails; one without a file descriptor (of a notebook or a test) as it is."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if isinstance(raw, _Steady):
        return stream
    try:
        stream.flush()
        handle = stream.fileno()
    except (OSError, ValueError):
        return stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(_Steady(handle)), encoding, "backslashreplace", line_buffering=True)


def make_stderr_steady() -> None:
    """Replace `sys.stderr`."""
    if sys.stderr is not None:
        sys.stderr = steady(sys.stderr)
