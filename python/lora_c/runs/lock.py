"""One run at a time in an output folder: two would write into each other's metrics, checkpoints and settings."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from ..files.system import has_locks, lock

_PAUSE = 0.05  # seconds between two looks
_held: set[str] = set()  # folders that this process has locked


@contextmanager
def run_lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Keep a folder for one run while the block runs; the lock goes with the process, however it ends.

    A folder that is locked by this process already stays so: the command line locks earlier than the trainer. File systems
    without locks are not guarded.

    Parameters
    ----------
    folder : Path
        It exists.
    patience : float
        Seconds to wait for the end of another run.

    Raises
    ------
    ConfigError
        Another process trains into it.
    """
    real = os.path.realpath(folder)
    if real in _held or not has_locks():
        yield
        return
    handle = os.open(real, os.O_RDONLY)
    try:
        end = time.monotonic() + patience
        while not _take(handle):
            if time.monotonic() >= end:
                raise ConfigError(
                    f"output_dir: expected a folder that no other run writes into, got {str(folder)!r}, where one is under "
                    "way; give another folder, or wait for its end"
                )
            time.sleep(_PAUSE)
        _held.add(real)
        yield
    finally:
        _held.discard(real)
        os.close(handle)


def _take(handle: int) -> bool:
    """Whether the lock is ours now, or there are none."""
    try:
        lock(handle, wait=False)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True
