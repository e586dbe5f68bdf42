"""What a save writes before it takes its place, and what killed saves left of that.

It is a file or folder `.NAME.lora-c-<8 hex digits>.part` beside NAME. The process that writes it holds a lock on it (flock),
so one that nobody holds was left by a process that is gone. Other names are never touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .system import FOLDERS_OPEN, NO_LINK, NO_WAIT, RENAMES_OPEN, has_locks, lock
from .uninterrupted import uninterrupted

_MARK = "lora-c-"
_LONGEST = 160  # bytes of a name that is repeated in the name aside; a file system holds 255
_NUMBER = re.compile("[0-9a-f]{8}")
_ASIDE = re.compile(rf"\.(?P<name>.+)\.{_MARK}{_NUMBER.pattern}\.(part|swap|previous|ready)")
_open: set[Path] = set()  # what this process writes now
IN_PLACE = "in-place"  # the name of what is written inside the folder that it belongs to


@contextmanager
def aside_of(target: Path, folder: bool) -> Iterator[tuple[Path, int | None]]:
    """Create a locked file or folder beside `target` after removing what killed saves left; yield its path and handle.

    None stands for the handle where what is open could not be renamed (Windows).

    The handle is closed at the end; whoever uses it moves the path away or leaves it to be removed here.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    created: tuple[Path, int | None] | None = None
    try:
        with uninterrupted():
            created = _create(target, folder)
            _open.add(created[0])
        yield created
    except BaseException:
        with uninterrupted():
            if created is not None:
                _remove(created[0])
        raise
    finally:
        if created is not None:
            if created[1] is not None:
                os.close(created[1])
            _open.discard(created[0])


def remove_open() -> None:
    """Remove all that is being written; for a program that ends without unwinding its stack."""
    for aside in list(_open):
        _remove(aside)


def name_aside(target: Path, ending: str) -> Path:
    """A name beside `target` that nobody uses; ending: "part", "swap", "previous" or "ready"."""
    return target.with_name(f".{_stem(target.name)}.{_MARK}{uuid.uuid4().hex[:8]}.{ending}")


def names_aside(target: Path, ending: str) -> list[Path]:
    """What is there beside `target` under such names."""
    begin, end = f".{_stem(target.name)}.{_MARK}", f".{ending}"

    def is_one(name: str) -> bool:  # no expression of its own for each target, all of which `re` would keep
        return name.startswith(begin) and name.endswith(end) and bool(_NUMBER.fullmatch(name[len(begin) : -len(end)]))

    with os.scandir(target.parent) as entries:
        return sorted(Path(entry.path) for entry in entries if is_one(entry.name))


def is_aside(path: Path) -> bool:
    """Whether a path lies in what another save writes aside, which will take its place as a whole."""
    return any((match := _ASIDE.fullmatch(part)) is not None and match[2] == "part" for part in path.parts)


def name_for_people(path: str | os.PathLike[str]) -> str:
    """The path with the name that a save aside will take instead of the hidden one."""
    shown = []
    for part in os.fspath(path).split(os.sep):
        hidden = False
        while match := _ASIDE.fullmatch(part):  # a save inside of a save
            part, hidden = match["name"], True
        if not (hidden and part == IN_PLACE):
            shown.append(part)
    return os.sep.join(shown)


def _stem(name: str) -> str:
    raw = os.fsencode(name)
    if len(raw) <= _LONGEST:
        return name
    return os.fsdecode(raw[: _LONGEST - 17]) + "-" + hashlib.blake2b(raw, digest_size=8).hexdigest()


def remove_stale(target: Path) -> None:
    """Remove what unfinished saves of `target` left, unless a process still writes it. Never fails.

    Without locks nobody can say whether it does, and all of it stays.
    """
    if not has_locks():
        return
    with suppress(OSError):
        for path in names_aside(target, "part"):
            with suppress(OSError):  # held by its writer, not ours to remove, or no locks on this file system: it stays
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | NO_LINK | NO_WAIT)  # a pipe of that name is not waited for
    try:
        lock(handle, wait=False)
        _remove(path)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _create(target: Path, folder: bool) -> tuple[Path, int | None]:
    """Between its creation and its lock another process may take it for a stale one: then there is a next name."""
    while True:
        aside = name_aside(target, "part")
        if folder:
            aside.mkdir()
            if not FOLDERS_OPEN:
                return aside, None
        try:
            handle = os.open(aside, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            if folder and not aside.exists():
                continue
            raise
        except OSError:
            if folder:
                aside.rmdir()
            raise
        if not RENAMES_OPEN:
            os.close(handle)
            return aside, None
        with suppress(OSError):  # no locks here: nobody can take it for a stale one either
            lock(handle)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(aside), os.fstat(handle)):
                return aside, handle
        os.close(handle)
