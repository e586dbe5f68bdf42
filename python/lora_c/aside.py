"""What a save writes before it takes its place, and what killed saves left of that.

It is a file or folder `.NAME.<8 hex digits>.part` beside NAME. The process that writes it holds a lock on it (flock), so one
that nobody holds was left by a process that is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def aside_of(target: Path, folder: bool) -> Iterator[tuple[Path, int]]:
    """Create a locked file or folder beside `target` after removing what killed saves left; yield its path and handle.

    The handle is closed at the end; whoever uses it moves the path away or leaves it to be removed here.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    aside, handle = _create(target, folder)
    try:
        yield aside, handle
    except BaseException:
        _remove(aside)
        raise
    finally:
        os.close(handle)


def remove_stale(target: Path) -> None:
    """Remove what unfinished saves of `target` left, unless a process still writes it. Never fails."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.part")
    with suppress(OSError), os.scandir(target.parent) as entries:
        for path in [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]:
            with suppress(OSError):  # held by its writer, not ours to remove, or no locks on this file system: it stays
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _create(target: Path, folder: bool) -> tuple[Path, int]:
    """Between its creation and its lock another process may take it for a stale one: then there is a next name."""
    while True:
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        if folder:
            aside.mkdir()
        try:
            handle = os.open(aside, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            if folder and not aside.exists():
                continue
            raise
        with suppress(OSError):  # no locks here: nobody can take it for a stale one either
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(aside), os.fstat(handle)):
                return aside, handle
        os.close(handle)
