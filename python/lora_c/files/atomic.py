"""Atomic writes: write aside, fsync, rename. The previous state survives every failure.

A crash, a full disk or a kill at any moment leaves either the old file (folder) or the new one, never a mixture.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import SaveError
from .aside import IN_PLACE, aside_of, is_aside, name_aside, name_for_people, names_aside, remove_stale
from .in_place import finish, move_in, must_stay
from .os_errors import saving
from .system import sync, sync_file, sync_folder
from .uninterrupted import uninterrupted

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` only when the block ends without an error.

    Raises
    ------
    SaveError
        It cannot be written (no room, no permission, a folder in its place, ...); the file that stood at `path` is unchanged.
    """
    with saving(path):
        target = Path(os.path.realpath(path))
        _refuse_other_kinds(path, target, stat.S_ISREG, "a file or a free name")
        with aside_of(target, folder=False) as (aside, handle):
            with open(aside if handle is None else handle, "wb", closefd=handle is None) as file:
                yield file
                file.flush()
                sync(file.fileno())
            os.replace(aside, target)
            sync_folder(target.parent)


def _refuse_other_kinds(path: str | os.PathLike[str], target: Path, wanted: Callable[[int], bool], expected: str) -> None:
    """What is neither a file nor a folder (a pipe, a device) is not ours to replace."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if not wanted(mode):
        kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        got = kinds.get(stat.S_IFMT(mode), "a device")
        raise SaveError(f"{name_for_people(path)}: expected {expected}, got {got}; choose another name")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically, keys in the order given."""
    with atomic_file(path) as file:
        file.write(json_bytes(value))


@contextmanager
def atomic_folder(path: str | os.PathLike[str], owned: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Give an empty folder whose files appear together at `path` when the block ends without an error.

    Parameters
    ----------
    path : path
        The folder to create or to replace.
    owned : callable, optional
        Says by its path in the folder ("a.txt", "sub/a.txt") whether a file was written by an earlier save; it is dropped.
        All others (logs, notes, subfolders) stay in the folder unless the new one has a file of the same name.

    Raises
    ------
    SaveError
        It cannot be written (no room, no permission, a file in its place, ...); the folder that stood at `path` is unchanged.
    """
    with saving(path):
        target = Path(os.path.realpath(path))
        _refuse_other_kinds(path, target, stat.S_ISDIR, "a folder or a free name")
        if is_aside(target):  # a part of another save: nobody sees it before the whole is there
            target.mkdir(exist_ok=True)
            yield target
            return
        stays = must_stay(target)
        if stays:
            finish(target)
        with aside_of(target / IN_PLACE if stays else target, folder=True) as (aside, _):
            yield aside
            _sync_tree(aside)
            with uninterrupted():
                _put_in_place(target, aside, owned or (lambda name: False), stays)


def _put_in_place(target: Path, aside: Path, owned: Callable[[str], bool], stays: bool) -> None:
    if stays:
        _kept(target, aside, owned)  # refuses a folder in the place of a file
        move_in(target, aside, owned)
        sync_folder(target)
        return
    if target.exists():
        _swap(target, aside, owned)
    else:
        os.rename(aside, target)
    sync_folder(target.parent)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            sync_file(os.path.join(root, name))
        sync_folder(Path(root))


def _swap(target: Path, aside: Path, owned: Callable[[str], bool]) -> None:
    """Put `aside` at `target` in one step where the system can, keeping entries that are not ours."""
    aside.chmod(stat.S_IMODE(target.stat().st_mode))
    # Hard links first: when the names change hands, what is kept is at both places, and nothing is left to do.
    later = [name for name in _kept(target, aside, owned) if not _link(target / name, aside / name)]
    if later:  # these must outlive a kill before they are moved: under this name nothing is taken for an unfinished save
        aside = aside.rename(name_aside(target, "swap"))
    if not _exchange(aside, target):
        previous = name_aside(target, "previous")
        os.rename(target, previous)
        os.rename(aside, target)
        os.rename(previous, aside)
    for name in later:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.rename(aside / name, target / name)
    shutil.rmtree(aside, ignore_errors=True)


def _kept(target: Path, aside: Path, owned: Callable[[str], bool], below: str = "") -> list[str]:
    """Paths in `target` that the new folder takes over: whole entries, or what of a subfolder is not ours."""
    kept: list[str] = []
    with os.scandir(target / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{below}{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=False)
            new = aside / name
            if os.path.lexists(new) and is_folder != new.is_dir():
                raise SaveError(
                    f"{name_for_people(target / name)}: expected a {'file' if is_folder else 'folder'} or a free name, got a "
                    f"{'folder' if is_folder else 'file'}; move it away or choose another folder"
                )
            if is_folder and (new.is_dir() or _holds(target, name + "/", owned)):
                kept += _kept(target, aside, owned, name + "/")
            elif not owned(name) and not os.path.lexists(new):
                kept.append(name)
    return kept


def _holds(target: Path, below: str, owned: Callable[[str], bool]) -> bool:
    """Whether a subfolder holds a file that an earlier save wrote."""
    for root, _, names in os.walk(target / below):
        inside = os.path.relpath(root, target).replace(os.sep, "/")
        if any(owned(f"{inside}/{name}") for name in names):
            return True
    return False


def _link(source: Path, copy: Path) -> bool:
    """Make a hard link of a file, or of every file of a folder; False, and nothing at `copy`, where that cannot be done."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, copy, symlinks=True, copy_function=os.link)
        else:
            os.link(source, copy, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.rmtree(copy, ignore_errors=True)
        return False
    return True


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically (Linux renameat2); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    result: int = rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return result == 0


def recover_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder, after a kill during a save: what it left is removed, and the previous state moved back in place."""
    target = Path(os.path.realpath(path))
    remove_stale(target)
    if not os.path.exists(target) and os.path.isdir(target.parent):
        with suppress(OSError):  # it cannot be moved back here: the caller says that nothing is there
            for previous in names_aside(target, "previous")[-1:]:
                os.rename(previous, target)
    elif os.path.isdir(target):
        with suppress(OSError, ValueError):  # read-only, say: what is there is read as it is
            finish(target)
    return target
