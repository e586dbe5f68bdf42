"""What the operating system refuses, in words: what was expected, what was found, the way out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LoraCError, SaveError
from .aside import name_for_people

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM)

# errno: what was expected, and the way out
_SAVING = {
    **dict.fromkeys(_FULL, ("room on the disk", "free some space or choose another folder")),
    **dict.fromkeys(_DENIED, ("a place that may be written", "change its permissions or choose another folder")),
    errno.EROFS: ("a file system that can be written", "choose a folder on another disk"),
    errno.ENOTDIR: ("folders all the way to it", "a part of the path is a file: choose another name"),
    errno.EEXIST: ("a folder or a free name", "choose another name"),
    errno.EISDIR: ("the name of a file", "a folder is there: choose another name"),
    errno.ENAMETOOLONG: ("a name that the file system can hold", "choose a shorter one"),
    errno.ELOOP: ("a path that ends somewhere", "the links lead back to themselves: choose another name"),
    errno.EBUSY: ("a folder that can be replaced", "something is mounted there: choose a folder inside it"),
    errno.ENOENT: ("a folder that exists while it is written", "it was removed meanwhile: save again"),
    errno.EIO: ("a disk that works", "check the disk or choose another one"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), ("a file more that may be open", "raise the limit (ulimit -n)")),
}


def reason(error: BaseException) -> str:
    """The cause without the number and the path that Python writes around it."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return " ".join(str(error).split()) or type(error).__name__


def cannot_save(path: str | os.PathLike[str], error: OSError) -> SaveError:
    """The refusal of the system to write at `path`, as one of our errors."""
    expected, way_out = _SAVING.get(error.errno or 0, ("a place that can be written", "choose another folder"))
    other = _other_file(path, error)
    of = f" (of {other})" if other else ""
    return SaveError(
        f"{name_for_people(path)}: expected {expected}, got {reason(error)}{of}; {way_out} (what was there before is "
        "unchanged)"
    )


def _other_file(path: str | os.PathLike[str], error: OSError) -> str | None:
    """The file that the system names, where it is not the one that is saved or a part of it."""
    if not isinstance(error.filename, str):
        return None
    named, target = name_for_people(error.filename), name_for_people(os.path.realpath(path))
    return None if named in (target, name_for_people(path)) or named.startswith(target + os.sep) else named


@contextmanager
def saving(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every refusal of the system into a `SaveError` that names what the user wanted to write."""
    if "\0" in os.fspath(path):
        raise SaveError(f"{os.fspath(path)!r}: expected the name of a file or folder, got one with a null character")
    try:
        yield
    except OSError as error:
        raise cannot_save(path, error) from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and those above it where they do not exist.

    Raises
    ------
    SaveError
        It cannot be created, or a file is there.
    """
    with saving(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def describe(error: OSError) -> str:
    """One line for a refusal that nobody nearer to its cause has put into words."""
    if error.filename is None and error.errno in _FULL:
        return f"output: expected room for it, got {reason(error)}; free some space or send it to another place"
    if error.filename is None:
        return f"the system: expected to go on, got {reason(error)}"
    where = name_for_people(os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename))
    return str(LoraCError(f"{where}: expected a file or folder that can be used, got {reason(error)}"))
