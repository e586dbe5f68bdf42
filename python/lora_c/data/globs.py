"""Patterns of paths that no shell has expanded, because they stood in quotes, in a file of settings or in Python."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from ..errors import DataError, shorten


def has_magic(path: str) -> bool:
    """Whether a path has one of the signs of a pattern."""
    return glob.has_magic(path)


def expand_pattern(path: str) -> list[str]:
    """Return the paths that a pattern means, in the order of their names; a path that is there, or no pattern, is itself.

    Raises
    ------
    DataError
        Nothing matches; the message lists the folder.
    """
    path = os.path.expanduser(path)
    if not has_magic(path) or os.path.lexists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise DataError(f"data: expected files that match {path!r}, got none; {_listing(path)}")
    return found


def _listing(pattern: str) -> str:
    """What is in the folder up to which a pattern has no signs."""
    folder = Path(pattern)
    while has_magic(str(folder)):
        folder = folder.parent
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r}"
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    except OSError:
        return f"the folder {str(folder)!r} cannot be read"
    shown = [name for name in names if not name.startswith(".")]
    return f"the folder {str(folder)!r} holds {shorten(shown, 8) or 'nothing'}"
