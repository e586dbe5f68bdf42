"""Opening files that others named: a pipe that nobody writes to, a device or a link to itself never stops the program."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from ..errors import LoraCError
from .os_errors import reason as reason_of
from .system import BINARY, NO_WAIT

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a folder",
}
_PIECE = 1 << 20
_FLAGS = os.O_RDONLY | NO_WAIT | getattr(os, "O_CLOEXEC", 0) | BINARY


def open_regular(path: str | os.PathLike[str], error: type[LoraCError]) -> BinaryIO:
    """Open a file for reading bytes, without waiting for anybody.

    Raises
    ------
    error
        There is no regular file at the path (a link to one is one), or it may not be read.
    """
    check_regular(path, error)  # first, because opening a device can already do something
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as reason:
        raise error(_unreadable(path, reason)) from None
    try:
        _refuse_others(path, os.fstat(descriptor).st_mode, error)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], error: type[LoraCError], most: int) -> bytes:
    """Read a file whole.

    Raises
    ------
    error
        It cannot be opened, or has more than `most` bytes: a file of a few kilobytes on disk can claim to have gigabytes.
    """
    with open_regular(path, error) as file:
        check_regular(path, error, most)
        return b"".join(_pieces(file, most))


def _pieces(file: BinaryIO, most: int) -> Iterator[bytes]:
    """Not the limit at once, for which the room would be asked of the system however small the file is."""
    left = most
    while left > 0 and (piece := file.read(min(left, _PIECE))):
        left -= len(piece)
        yield piece


def check_regular(path: str | os.PathLike[str], error: type[LoraCError], most: int | None = None) -> None:
    """Refuse what is not a regular file, or has more than `most` bytes; for libraries that open a path themselves."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as reason:  # ValueError: a path with a null character
        raise error(_unreadable(path, reason)) from None
    _refuse_others(path, found.st_mode, error)
    if most is not None and found.st_size > most:
        raise error(f"{os.fspath(path)}: expected at most {most:,} bytes, got {found.st_size:,}")


def _refuse_others(path: str | os.PathLike[str], mode: int, error: type[LoraCError]) -> None:
    if stat.S_ISREG(mode):
        return
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    way_out = "; write what comes out of it to a file and give that file" if stat.S_ISFIFO(mode) else ""
    raise error(f"{os.fspath(path)}: expected a regular file, got {kind}{way_out}")


def _unreadable(path: str | os.PathLike[str], reason: OSError | ValueError) -> str:
    if isinstance(reason, FileNotFoundError):
        return f"{os.fspath(path)}: expected a file, got nothing there"
    return f"{os.fspath(path)}: expected a readable file, got: {reason_of(reason)}"
